"""Speculation: the step that drafts, verifies, commits and rolls back; and how deep to draft."""
