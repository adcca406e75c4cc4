"""Engines: append-only, totally ordered streams of messages. They know offsets and messages, never keys."""
