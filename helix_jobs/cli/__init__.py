"""The command line: ``helix``, ``python submit.py``, ``python worker.py``, ``python -m helix_jobs``.

Start-up stays under half a second: command modules import the client, rich and everything below inside their
functions, and only the ``worker`` command ever imports torch.
"""

from helix_jobs.cli.group import main

__all__ = ["main"]
