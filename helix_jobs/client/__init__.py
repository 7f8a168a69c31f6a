"""The Python client: submit, status, wait, results, cancel, retry and purge of batches."""
