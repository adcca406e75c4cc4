"""The brokers that tests run on, as parameters: for the fixture ``url``, and for tests that choose among its places."""

from __future__ import annotations

import pytest

from broker import find_lavinmq

#: The names of the fixtures that give a running node.
BROKERS = ["rabbitmq", "lavinmq"] if any(find_lavinmq()) else ["rabbitmq"]
#: The same as parameters.
ON_BROKERS = [pytest.param(kind, marks=pytest.mark.broker) for kind in BROKERS]
