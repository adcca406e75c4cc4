"""Contracts that every engine and every store keep, as classes of tests to inherit from. Needs pytest, and nothing else."""

from mqkv.testing.engine import EngineContract, RecordingSink
from mqkv.testing.store import Clock, StoreContract

__all__ = ["Clock", "EngineContract", "RecordingSink", "StoreContract"]
