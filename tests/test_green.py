"""gevent: mqkv in a process whose threads are greenlets. What blocks there blocks the whole process, so it is one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_greenlets(url: str, layout: str, prefix: str) -> None:
    program = Path(__file__).with_name("green.py")
    command = [sys.executable, "-W", "ignore", str(program), url, layout, prefix]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and ended.stdout.split() == ["done"], ended.stdout + ended.stderr
