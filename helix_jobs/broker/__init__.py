"""Broker: job ids in Redis: where it is, the embedded server, and what is published."""
