"""Runs Django's own cache and session tests against mqkv, as ``run.py [memory] [file] [rabbitmq] [lavinmq]``.

The tests are those of the source distribution of the Django that is installed, which pip fetches. MQKV_TEST_BROKER names a
RabbitMQ that runs already; else one is started. On LavinMQ they run where one is found, as all tests do (``broker.py``). What
can't apply is in ``SKIPPED``, and in docs/django.md, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
from django.conf import settings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import broker  # noqa: E402 -- that of our tests

CULLING = "mqkv evicts the oldest write, one at a time, so that the cache holds exactly MAX_ENTRIES; no share of it is culled"
SKIPPED = {"test_cull": CULLING, "test_zero_cull": CULLING}


def tests_folder() -> Path:
    """Django's ``tests`` folder, fetched once and kept."""
    version = django.get_version()
    kept = Path(os.environ.get("MQKV_DJANGO_SDIST", Path(tempfile.gettempdir()) / f"mqkv-django-sdist-{os.getuid()}"))
    found = kept / f"django-{version}" / "tests"
    if not found.is_dir():
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--no-binary", ":all:", "--dest", folder, f"Django=={version}"], check=True)
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            (unpacked,) = (path for path in Path(folder).iterdir() if path.is_dir())
            with contextlib.suppress(OSError):  # somebody else was quicker
                unpacked.rename(kept / f"django-{version}")
    return found


@contextlib.contextmanager
def locations(wanted: list[str]) -> Iterator[dict[str, str]]:
    """A fresh place for each engine."""
    with contextlib.ExitStack() as stack:
        found = {}
        for engine in wanted:
            if engine == "memory":
                found[engine] = f"memory://{uuid.uuid4().hex}"
            elif engine == "file":
                found[engine] = f"file://{stack.enter_context(tempfile.TemporaryDirectory())}/kv"
            elif engine == "rabbitmq":
                named = os.environ.get("MQKV_TEST_BROKER")
                found[engine] = named or stack.enter_context(broker.private_broker(settle=False)).url
            else:
                named = broker.find_lavinmq().url
                found[engine] = named or stack.enter_context(broker.private_lavinmq()).url
        yield found


def entry(location: str, name: str) -> dict[str, Any]:
    return {"BACKEND": "mqkv.django.StreamCache", "LOCATION": location, "OPTIONS": {"prefix": "django-suite", "name": name}}


def configure(first: str, folder: Path) -> None:
    sys.path.insert(0, str(folder))
    settings.configure(
        SECRET_KEY="django_tests_secret_key",
        ROOT_URLCONF="urls",
        DATABASES={alias: {"ENGINE": "django.db.backends.sqlite3"} for alias in ("default", "other")},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        CACHES={"default": entry(first, "sessions")},
        INSTALLED_APPS=[
            *("django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sites", "django.contrib.sessions"),
            *("django.contrib.messages", "mqkv.django", "cache", "sessions_tests"),
        ],
        SITE_ID=1,
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        USE_TZ=False,
    )
    django.setup()


def cases(engine: str, location: str) -> Iterator[type[unittest.TestCase]]:
    """Django's tests of a cache backend, and of the sessions that stand on one, against this engine."""
    from cache.tests import BaseCacheTests, caches_setting_for_tests
    from django.test import TestCase, override_settings
    from sessions_tests.tests import CacheDBSessionTests, CacheSessionTests

    names = {name: unittest.skip(reason)(getattr(BaseCacheTests, name)) for name, reason in SKIPPED.items()}
    caches = caches_setting_for_tests(base=entry(location, "suite"))
    # The two that are bounded are keyspaces of their own, and the name is one of OPTIONS.
    for alias in ("cull", "zero_cull"):
        caches[alias]["OPTIONS"] = {**caches[alias]["OPTIONS"], "prefix": "django-suite", "name": alias}
    yield override_settings(CACHES=caches)(type(f"Cache_{engine}", (BaseCacheTests, TestCase), names))
    default = {"default": entry(location, "sessions")}
    for base in (CacheSessionTests, CacheDBSessionTests):
        yield override_settings(CACHES=default)(type(f"{base.__name__}_{engine}", (base,), {}))


def main(wanted: list[str]) -> int:
    from django.test.runner import DiscoverRunner

    everywhere = ["memory", "file", "rabbitmq"]
    if any(broker.find_lavinmq()):
        everywhere.append("lavinmq")
    elif not wanted:
        print(f"LavinMQ: none found, so nothing runs on it. To have it: {broker.HOW_TO_GET_LAVINMQ}")
    with locations(wanted or everywhere) as places:
        configure(next(iter(places.values())), tests_folder())
        suite = unittest.TestSuite()
        loader = unittest.TestLoader()
        for engine, location in places.items():
            for case in cases(engine, location):
                suite.addTests(loader.loadTestsFromTestCase(case))
        runner = DiscoverRunner(verbosity=1, interactive=False)
        runner.setup_test_environment()
        databases = runner.setup_databases()
        try:
            result = runner.run_suite(suite)
        finally:
            runner.teardown_databases(databases)
            runner.teardown_test_environment()
            purge(places)
    print(f"Django {django.get_version()}: {result.testsRun} tests, {len(result.skipped)} skipped, on {', '.join(places)}")
    for test, reason in sorted({(str(test).split()[0], reason) for test, reason in result.skipped}):
        print(f"  skipped {test}: {reason}")
    return 0 if result.wasSuccessful() else 1


def purge(places: dict[str, str]) -> None:
    """Leave nothing behind on a broker that is somebody else's."""
    import mqkv
    import mqkv.django

    mqkv.django.close_stores()
    for location in places.values():
        for name in ("suite", "sessions", "cull", "zero_cull"):
            with mqkv.Store(location, prefix="django-suite", layout="shared", name=name, _maker="") as store:
                store.purge()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
