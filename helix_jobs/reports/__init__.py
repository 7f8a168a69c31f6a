"""What a person reads of batches that have run: one batch in a report, and two side by side."""
