"""Layouts: how the keys of a keyspace are spread over streams. The store above sees one interface, whatever the layout."""

from mqkv.layout.base import Keyspace, Options
from mqkv.layout.per_key import PerKeyKeyspace
from mqkv.layout.shared import LOCKS, SharedKeyspace, lock_stream

__all__ = ["LOCKS", "Keyspace", "Options", "PerKeyKeyspace", "SharedKeyspace", "lock_stream"]
