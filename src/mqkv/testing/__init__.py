"""Contracts that every engine and every store keep, as classes of tests to inherit from. Needs pytest, and nothing else."""

from mqkv.testing.store import StoreContract

__all__ = ["StoreContract"]
