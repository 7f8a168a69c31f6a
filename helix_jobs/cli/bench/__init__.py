"""``helix bench`` on the command line: its options, and what it found as tables."""
