"""Jobs: input lines, the tables, the queue, the worker and the client. Only ``worker_service`` imports the engine."""
