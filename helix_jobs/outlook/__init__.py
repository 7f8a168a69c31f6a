"""What the stored batches and runs say of the time to come: when a batch is done, and whether it keeps its deadline."""
