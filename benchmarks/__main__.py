"""Run benchmarks by name, print a line for each figure as it is known, and all as a Markdown table in the end."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from common import Bench, Row, machine, table

NAMES = (
    "uncached_get",
    "cached_get",
    "confirmed_set",
    "threads",
    "preload",
    "load",
    "visible",
    "file_engine",
    "operations",
    "django_cache",
    "django_peers",
)
#: What depends on the broker, and is measured on LavinMQ too, where one is found.
ON_LAVINMQ = ("uncached_get", "confirmed_set", "threads", "preload", "load", "visible")
BROKERS = ("rabbitmq", "lavinmq")
BEGIN, END = "<!-- benchmarks/run --record: {broker} from here -->", "<!-- {broker} to here -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to run, of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--url", help="a broker that runs already; without, private nodes of RabbitMQ and LavinMQ are started")
    parser.add_argument(
        "--broker", choices=("rabbitmq", "lavinmq"), help="this one only (default: both, where there is a LavinMQ)"
    )
    parser.add_argument("--folder", type=Path, help="where to put the files of embedded engines (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true", help="few rounds: for a look whether it works, not for figures")
    parser.add_argument("--record", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    arguments = parser.parse_args()
    if arguments.list:
        print(*NAMES, sep="\n")
        return 0
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    brokers = [arguments.broker] if arguments.broker else ["rabbitmq"] if arguments.url or not has_lavinmq() else list(BROKERS)
    outcomes = [measure(arguments, broker) for broker in brokers]
    return 1 if any(outcomes) else 0


def has_lavinmq() -> bool:
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    import broker

    return broker.find_lavinmq().program is not None


def measure(arguments: argparse.Namespace, broker: str) -> bool:
    """All that is asked for, on one broker; whether anything was missed or failed."""
    names = [name for name in arguments.names or NAMES if broker == "rabbitmq" or name in ON_LAVINMQ]
    started = time.monotonic()
    rows: list[Row] = []
    failed = 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(temporary(arguments.folder)))
        bench = Bench(stack, folder, arguments.url, arguments.quick, rows, broker)
        for name in names:
            try:
                importlib.import_module(name).run(bench)
            except Exception:  # noqa: BLE001 -- the other benchmarks shall still run
                failed += 1
                print(f"{name}: FAILED", file=sys.stderr)
                traceback.print_exc()
        about = machine(bench)
    command = " ".join(["benchmarks/run", "--broker", broker, *(["--quick"] if arguments.quick else []), *arguments.names])
    report = f"`{command}`, {time.strftime('%Y-%m-%d')}, {time.monotonic() - started:.0f} s. {about}\n\n{table(rows)}"
    print(f"\n{report}")
    if arguments.record:
        record(report, broker)
    missed = sum(row.ok is False for row in rows)
    print(f"\n{len(rows)} figures, {missed} missed, {failed} benchmarks failed")
    return bool(missed or failed)


def record(report: str, broker: str) -> None:
    """Replace what stands between the marks in docs/performance.md."""
    page = Path(__file__).parent.parent / "docs" / "performance.md"
    opening, closing = BEGIN.format(broker=broker), END.format(broker=broker)
    before, begin, rest = page.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    assert begin and end, f"{page} has no {opening} and {closing}"
    page.write_text(f"{before}{opening}\n{report}\n{closing}{after}")


@contextlib.contextmanager
def temporary(parent: Path | None) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="mqkv-bench-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
