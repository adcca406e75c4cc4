"""What a body is, whatever the process: its Python, and how deep in its own stack it stands."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest

import mqkv
from mqkv.codecs import DEEPEST, DEFAULT, JSON, _check_flat, _raw, is_well_formed

T = TypeVar("T")


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def deep_down(call: Callable[[], T], frames: int) -> T:
    return call() if frames == 0 else deep_down(call, frames - 1)


def at_the_bottom(call: Callable[[], T]) -> T:
    """Called with room for some 60 frames."""
    here, frame = 0, sys._getframe()
    while frame.f_back is not None:
        here, frame = here + 1, frame.f_back
    return deep_down(call, sys.getrecursionlimit() - here - 60)


def test_how_deep_json_may_be() -> None:
    assert is_well_formed(nested(DEEPEST), JSON) and not is_well_formed(nested(DEEPEST + 1), JSON)
    assert is_well_formed(b'["' + b"[" * 5000 + b'\\"["]', JSON) and is_well_formed(b"[" + b"{}," * 5000 + b"1]", JSON)
    value: Any = []
    for _ in range(DEEPEST):
        value = [value]
    with pytest.raises(mqkv.InvalidValue, match="deep"):
        DEFAULT.encode(value)
    assert DEFAULT.encode(value[0])


@pytest.mark.parametrize("body", [nested(200), nested(DEEPEST), b'{"a":[' * 100 + b"1" + b"]}" * 100, b" \n" + nested(300)])
def test_a_body_is_the_same_from_the_bottom_of_a_stack(body: bytes) -> None:
    for whole in (body, body + b"]", body[:-1], body.replace(b"]", b"", 1), body.replace(b"[", b"[,", 1)):
        assert at_the_bottom(lambda whole=whole: is_well_formed(whole, JSON)) is is_well_formed(whole, JSON), whole[:50]


def test_json_is_utf_8() -> None:
    assert (
        not is_well_formed(b'"\xff"', JSON)
        and not is_well_formed(b'["\xed\xa0\x80"]', JSON)
        and is_well_formed('"é"'.encode(), JSON)
    )


def test_what_is_checked_from_within_is_what_is_checked_from_without() -> None:
    chance = random.Random(7)

    def made(depth: int) -> object:
        kind = chance.random()
        if depth == 0 or kind < 0.3:
            return chance.choice([1, 'a"[', "]{\\", None, True, 1.5, "é\n"])
        if kind < 0.65:
            return [made(depth - 1) for _ in range(chance.randint(0, 3))]
        return {chance.choice('ab"[{'): made(depth - 1) for _ in range(chance.randint(0, 3))}

    def holds(check: Callable[[bytes], object], body: bytes) -> bool:
        try:
            check(body)
        except msgspec.DecodeError:
            return False
        return True

    good = 0
    for _ in range(5000):
        text = json.dumps(made(4))
        for _ in range(chance.choice([0, 0, 1, 1, 2, 3])):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(["", *'[]{},:"\\0 e.']) + text[at + chance.randint(0, 1) :]
        body = text.encode()
        assert holds(_check_flat, body) is holds(_raw, body), body
        good += holds(_raw, body)
    assert 1000 < good < 4000
