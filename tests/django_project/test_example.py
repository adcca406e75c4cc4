"""The example project runs with one command, and shows what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from places import ON_BROKERS

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "django_live.py"


@pytest.mark.parametrize("url", ["file", *ON_BROKERS], indirect=True)
def test_a_setting_changes_in_two_workers(url: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    command = [sys.executable, str(EXAMPLE), "--check", url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seen in process") == 3
