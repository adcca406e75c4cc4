"""Imports point down only, and each module knows no more than its layer may. A new file needs a line in the table."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mqkv"

BOTTOM = "errors check ids logfmt codecs"  # know nothing of mqkv but errors; anyone above may import them
ENGINE = f"{BOTTOM} url streams.base"
CORE = f"{BOTTOM} batch number anchor record locks clock fold view hearing middle table inbox waiting watch streams.base"
ADAPTER = "mqkv errors store outage"

# module (or pattern): the modules of mqkv that it may import; the first line that fits counts
LAYERS = {
    "errors": "",
    "check": "errors",
    "ids": "",
    "logfmt": "",
    "codecs": "errors",
    "url": "errors",
    "streams": "",
    "streams.base": "errors",
    "streams.memory": f"{ENGINE} streams.memory.*",
    "streams.memory.*": f"{ENGINE} streams.memory.*",
    "streams.file": f"{ENGINE} streams.file.*",
    "streams.file.*": f"{ENGINE} streams.file.*",
    "streams.amqp": f"{ENGINE} streams.amqp.*",
    "streams.amqp.*": f"{ENGINE} streams.amqp.*",
    "batch": "errors codecs",
    "record": "errors codecs batch streams.base",
    "clock": "",
    "remembered": "",
    "state": "clock record remembered",
    "anchor": "record state streams.base",
    "number": "codecs state",
    "locks": "batch record state",
    "operations": "anchor codecs record state number locks",
    "fold": "record state operations",
    "compaction": "errors codecs record fold streams.base",
    "view": f"{BOTTOM} record fold",
    "hearing": "fold streams.base",
    "middle": "anchor record fold",
    "table": f"{BOTTOM} anchor record fold view hearing middle streams.base",
    "inbox": f"{BOTTOM} fold table streams.base",
    "watch": f"{BOTTOM} record fold table inbox streams.base",
    "waiting": "errors streams.base",
    "layout": "layout.*",
    "layout.*": f"{CORE} compaction layout.*",
    "registry": f"{CORE} url layout layout.* streams.memory streams.file streams.amqp",
    "core": f"{CORE} url layout layout.* registry",
    "reads": f"{CORE} core layout layout.* registry",
    "writes": f"{CORE} core reads",
    "lock": f"{CORE} core layout layout.*",
    "store": f"{BOTTOM} core writes lock waiting watch",
    "aio": f"{BOTTOM} core writes lock waiting watch streams.base",
    "mapping": ADAPTER,
    "outage": "errors logfmt",
    "django": f"{ADAPTER} django.*",
    "django.*": f"{ADAPTER} django.*",
    "dogpile": "dogpile.*",
    "dogpile.*": f"{ADAPTER} dogpile.*",
    "cli": f"{ADAPTER} cli.*",
    "cli.*": f"{ADAPTER} cli.*",
    "__main__": "cli",
    "testing": "testing.*",
    "testing.*": "*",
    "mqkv": "codecs errors store aio mapping watch lock",
}
PURE = ["batch", "record", "clock", "remembered", "state", "anchor", "number", "locks", "operations", "fold", "compaction"]
NOT_PURE = {
    "socket",
    "ssl",
    "threading",
    "asyncio",
    "time",
    "datetime",
    "random",
    "secrets",
    "uuid",
    "os",
    "io",
    "subprocess",
    "logging",
}
FOREIGN = {"pika": ["streams.amqp*"], "sqlite3": ["streams.file*"]}  # who may import what others may not
PURE_LIBRARIES = {"cachetools", "msgspec"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "mqkv", path


ALL = dict(modules())


def imports(path: Path) -> Iterator[str]:
    """Full dotted names, inside functions and ``if TYPE_CHECKING`` too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write imports in full, without dots at the front"
            for alias in node.names:  # `from mqkv import registry` imports a module, `from mqkv.url import parse` does not
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("mqkv.") in ALL else str(node.module)


def fits(name: str, patterns: str | list[str]) -> bool:
    return any(fnmatch(name, p) for p in (patterns.split() if isinstance(patterns, str) else patterns))


@pytest.mark.parametrize("module", ALL)
def test_a_module_imports_only_what_its_layer_may_know(module: str) -> None:
    allowed = next((LAYERS[p] for p in LAYERS if fnmatch(module, p)), None)
    assert allowed is not None, f"{module} has no line in LAYERS of tests/test_layers.py: say there what it may import"
    for name in imports(ALL[module]):
        top = name.partition(".")[0]
        if top == "mqkv":
            target = name.removeprefix("mqkv.")
            assert fits(target, allowed), f"{module} imports {name}; its layer may know: {allowed or 'nothing'}"
        elif not fits(module, "testing.*"):
            assert fits(module, FOREIGN.get(top, ["*"])), f"{module} imports {top}; only {FOREIGN[top]} may"
        if fits(module, PURE):
            assert top not in NOT_PURE, f"{module} imports {top}: the pure files do no I/O, read no clock, start no thread"
            assert top in sys.stdlib_module_names | PURE_LIBRARIES | {"mqkv"}, f"{module} imports {top}"
