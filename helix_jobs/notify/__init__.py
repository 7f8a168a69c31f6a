"""Notices to people and their programs: a signed webhook, a command, mail and chat. What there is to tell is stored."""
