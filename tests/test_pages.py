"""Every example with ``>>>`` in README.md and docs/ runs, on the embedded engines.

For the authors of pages:

* A block that starts with ```` ```python ```` (or ``pycon``) and holds ``>>>`` is run as a doctest; one without ``>>>`` must at
  least be Python that compiles. Broker URLs go into blocks without ``>>>``.
* The blocks of one page run in order and share their names: a page can build on what it showed above.
* The current folder is a fresh temporary one, and the name ``folder`` holds its path: ``mqkv.Store(f"file://{folder}/kv")``.
  Stores left open are closed afterwards.
* ``...`` in expected output stands for anything; white space counts as in plain doctest.
* ``<!-- skip -->`` on the line above a block leaves it out.
"""

from __future__ import annotations

import contextlib
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if p.exists())
BLOCK = re.compile(r"^(?P<skip><!-- skip -->\n)?```(?:python|pycon)\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and text of each block of Python."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in BLOCK.finditer(text) if not m["skip"]]


def close_stores(names: dict[str, object]) -> None:
    for value in names.values():
        if type(value).__module__.startswith("mqkv") and hasattr(value, "close"):
            with contextlib.suppress(Exception):  # closed already, by the page
                value.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_examples_of_a_page_do_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"folder": str(tmp_path)}
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    try:
        for line, code in blocks(page):
            if ">>>" not in code:
                compile(code, f"{page.name}:{line + 1}", "exec", flags=0x2000)  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                continue
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            runner.run(test, out=report.append, clear_globs=False)
            names = test.globs
    finally:
        close_stores(names)
    assert not runner.failures, "".join(report)
