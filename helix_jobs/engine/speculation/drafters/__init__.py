"""Drafters: the sources of the tokens that the target verifies. A draft changes the speed, never the output."""
