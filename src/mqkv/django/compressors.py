"""How large values become smaller. A compressor of your own is a class or an object with ``compress(data)`` and
``decompress(data, max_length)``, which raises, or gives more than ``max_length`` bytes, where there are more."""

from __future__ import annotations

import lzma
import zlib
from typing import Protocol


class Compressor(Protocol):
    """Must be thread-safe."""

    def compress(self, data: bytes, /) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class ZlibCompressor:
    """Quick, and good enough for text: HTML shrinks to about a fifth."""

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, 6)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        machine = zlib.decompressobj()
        plain = machine.decompress(data, max_length + 1)
        if not machine.eof and len(plain) <= max_length:
            raise ValueError("truncated")
        return plain


class LzmaCompressor:
    """Smaller than zlib, and many times as slow."""

    def compress(self, data: bytes) -> bytes:
        return lzma.compress(data, preset=4)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        machine = lzma.LZMADecompressor(memlimit=256 * 2**20)
        plain = machine.decompress(data, max_length + 1)
        if not machine.eof and len(plain) <= max_length:
            raise ValueError("truncated")
        return plain


COMPRESSORS: dict[str, type[Compressor]] = {"zlib": ZlibCompressor, "lzma": LzmaCompressor}
