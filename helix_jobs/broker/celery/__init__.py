"""Celery, tamed: the application, its one task, and a consumer and transport that take only Helix's own messages."""
