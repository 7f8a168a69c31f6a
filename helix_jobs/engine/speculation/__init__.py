"""Speculation: the step that drafts, verifies, commits and rolls back, and the choice of depths."""
