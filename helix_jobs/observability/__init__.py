"""Logging and rounds. Pure standard library: every command imports it."""
