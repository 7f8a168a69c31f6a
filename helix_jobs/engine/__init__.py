"""Speculative decoding over a paged KV cache.

Of the modules that stand here, ``engine``, ``engine_info``, ``loaded_models``, ``new_sequences``, ``recovery`` and
``runners`` import torch; the others do without. Each room below says what it is for. None knows of jobs, Celery, SQL
or observability: requests go in, results and statistics come out.
"""
