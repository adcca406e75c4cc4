"""Streams on RabbitMQ (3.9 and later) and LavinMQ. The only package that may import pika."""

from mqkv.streams.amqp.engine import AmqpEngine

__all__ = ["AmqpEngine"]
