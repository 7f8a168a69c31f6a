"""Intake: files and lines that a person hands over, in whatever form, become validated requests."""
