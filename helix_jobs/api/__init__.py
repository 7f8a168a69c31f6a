"""The HTTP server: OpenAI's interface over the queue, the worker and the results table."""
