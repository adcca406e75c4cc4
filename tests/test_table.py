"""Tables, without an engine: what they show while records come."""

from __future__ import annotations

import threading

from mqkv.batch import of_sets, pack
from mqkv.codecs import DEFAULT, JSON, TEXT, BoundCodec
from mqkv.logfmt import Log
from mqkv.record import Record, to_message
from mqkv.table import Table


def new_table() -> Table:
    return Table("stream", BoundCodec(DEFAULT), Log(None))


def test_what_a_malformed_record_lets_expire_is_hidden() -> None:
    table = new_table()
    records = [Record("set", "k", b"v", TEXT, written_ms=1_000, expires_ms=2_000, id="a")]
    for minute in range(5):  # malformed, and they tell the time all the same
        records += [Record("incr", "other", written_ms=minute * 60_000, id=f"{writer * 16}{minute}") for writer in "ab"]
    table.deliver([(offset, to_message(record, shared=True)) for offset, record in enumerate(records)])
    assert not table.state.cells and not table.shown


def test_a_batch_is_read_as_a_whole() -> None:
    """Half of its values can be shared, so that they come from what is shown; the others from cells."""
    table, keys = new_table(), [f"k{number}" for number in range(20)]
    seen: list[set[int]] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            ready, cells = table.read_many(keys)
            values = [int(str(value)) for value, _ in ready.values()] + [int(cell.body.strip(b"[]")) for cell in cells.values()]
            if len(values) not in (0, len(keys)) or len(set(values)) > 1:
                seen.append(set(values))

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for offset in range(500):
        forms = (b"%d", b"[%d]") if offset % 2 else (b"[%d]", b"%d")
        body = pack(of_sets((key, forms[number % 2] % offset, JSON) for number, key in enumerate(keys)))
        table.deliver([(offset, to_message(Record("set_many", "", body, id=f"{offset}"), shared=True))])
    done.set()
    for reader in readers:
        reader.join()
    assert not seen and len(table.read_many(keys)[0]) == len(keys) // 2
