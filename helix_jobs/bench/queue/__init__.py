"""Measuring the queue with an engine that costs nothing: submit, read, drain, export, cancel. Needs no torch."""
