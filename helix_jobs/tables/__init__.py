"""Tables become lines of requests: files of rows, the rows that count, and a template that is filled in for each."""
