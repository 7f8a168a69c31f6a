"""Speculative decoding over a paged KV cache.

Imports torch and transformers, except for ``sampling_params``, ``request``, ``config``, ``protocol``, ``prefix_cache``,
``block_table``, ``sequence``, ``admission`` and ``scheduler``, which are pure Python. Knows nothing of jobs, Celery,
SQL or observability: requests go in, results and statistics come out.
"""
