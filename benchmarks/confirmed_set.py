"""A confirmed set, beside a BlockingConnection that publishes the same body (persistent, mandatory) and waits for the confirm."""

from __future__ import annotations

from common import LAYOUTS, VALUE, Bench, Raw, alternate, median, ms, store


def run(bench: Bench) -> None:
    if not bench.has("amqp"):
        return
    for layout in LAYOUTS:
        prefix = bench.prefix()
        with store(bench.amqp, prefix=prefix, layout=layout) as ours, Raw(bench.amqp, f"{prefix}-raw") as raw:
            a, b = alternate(lambda: ours.set("key", VALUE), raw.publish, bench.count(200), 20)
        mine, theirs = median(a), median(b)
        bench.row(
            f"confirmed set, {layout}",
            ms(mine),
            f"{ms(theirs)} (raw confirmed publish)",
            mine / theirs,
            "ratio < 1.5",
            mine / theirs < 1.5,
        )
