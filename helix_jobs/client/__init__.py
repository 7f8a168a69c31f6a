"""Client: what a person's program does with batches: submit, status, wait, results, cancel, retry, purge."""
