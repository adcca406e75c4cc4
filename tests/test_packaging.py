"""What is installed is what was meant: the wheel, typed, with the version that it says."""

from __future__ import annotations

import re
from importlib import metadata, resources
from pathlib import Path

import mqkv

ROOT = Path(__file__).parent.parent


def test_the_package_is_typed() -> None:
    assert resources.files("mqkv").joinpath("py.typed").is_file()


def test_the_names_that_it_promises_are_there() -> None:
    assert [name for name in mqkv.__all__ if not hasattr(mqkv, name)] == []


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[?{re.escape(metadata.version('mqkv'))}\]?", changelog, re.M)
