"""Measures the queue with a fake engine that costs nothing: submit, read, drain, export, cancel. Needs no torch."""
