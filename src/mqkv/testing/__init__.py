"""Contracts that every engine and every store keep, as classes of tests to inherit from. Needs pytest, and nothing else."""

from mqkv.testing.engine import EngineContract, RecordingSink
from mqkv.testing.fixtures import Clock
from mqkv.testing.operations import OperationsContract
from mqkv.testing.store import StoreContract

__all__ = ["Clock", "EngineContract", "OperationsContract", "RecordingSink", "StoreContract"]
