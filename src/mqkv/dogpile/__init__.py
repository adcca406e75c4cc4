"""dogpile.cache on a stream: ``make_region().configure("mqkv", arguments={"url": ...})``. See docs/dogpile.md."""

from mqkv.dogpile.backend import StreamBackend
from mqkv.dogpile.invalidation import StreamInvalidation
from mqkv.dogpile.mutex import StreamMutex
from mqkv.dogpile.options import UnknownArgument

__all__ = ["StreamBackend", "StreamInvalidation", "StreamMutex", "UnknownArgument"]
