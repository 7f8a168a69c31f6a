"""Broker: job ids in Redis. Where the broker is, the embedded server, and which ids are published."""
