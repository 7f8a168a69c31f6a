"""Speculative decoding over a paged KV cache.

Imports torch and transformers, except for ``sampling_params``, ``request``, ``config``, ``block_table``, ``scheduler`` and
``stats``, which are pure Python. Knows nothing of jobs, Celery, SQL or observability: requests go in, results and
statistics come out.
"""
