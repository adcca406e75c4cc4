"""dogpile's own suites for backends, mutexes and serializers, on every engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dogpile.testing.fixtures import (
    _GenericBackendFixture,
    _GenericBackendTestSuite,
    _GenericMutexTestSuite,
    _GenericSerializerTestSuite,
)

from mqkv.dogpile import StreamBackend

pytestmark = pytest.mark.filterwarnings("ignore::mqkv.dogpile.UnknownArgument")  # the suite passes arguments that nobody knows


class OnEveryEngine:
    """The suites make backends and never close them; here they are closed when the suite has cleaned up."""

    backend = "mqkv"
    arguments: dict[str, Any] = {}  # noqa: RUF012 -- as in dogpile's classes

    @classmethod
    def setup_class(cls) -> None:
        """The base looks here whether a server is up. Ours must be."""

    @pytest.fixture(autouse=True)
    def _place(self, url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config_args = {"arguments": {"url": url, "prefix": prefix, **self.arguments}}
        self.made: list[StreamBackend] = []
        build = StreamBackend.__init__

        def noted(backend: StreamBackend, arguments: Any) -> None:
            build(backend, arguments)
            self.made.append(backend)

        monkeypatch.setattr(StreamBackend, "__init__", noted)

    def teardown_method(self, method: Any) -> None:
        super().teardown_method(method)  # type: ignore[misc]
        for number, backend in enumerate(self.made):
            if number == 0:
                backend.store.purge()
            backend.close()


class TestRegion(OnEveryEngine, _GenericBackendTestSuite, _GenericMutexTestSuite):
    arguments = {"distributed_lock": True}  # noqa: RUF012


class TestWithoutLock(OnEveryEngine, _GenericBackendTestSuite):
    variant = True


class TestSigned(OnEveryEngine, _GenericBackendTestSuite):
    variant = True
    arguments = {"distributed_lock": True, "secret": "a secret"}  # noqa: RUF012


class TestPerKey(OnEveryEngine, _GenericBackendTestSuite, _GenericMutexTestSuite):
    variant = True
    arguments = {"distributed_lock": True, "layout": "per-key"}  # noqa: RUF012


class TestSerializer(OnEveryEngine, _GenericSerializerTestSuite, _GenericBackendFixture):
    region_args = {  # noqa: RUF012
        "serializer": lambda value: json.dumps(value).encode("ascii"),
        "deserializer": json.loads,
    }
