"""The command line: ``helix``, ``python submit.py``, ``python worker.py``, ``python -m helix_jobs``.

Start-up stays under half a second: command modules import the client, rich and everything below inside their
functions. Only ``worker``, ``bench``, ``doctor`` and ``models`` import torch, once they run, and ``submit --local``
where its worker is a thread.
"""

from helix_jobs.cli.group import main

__all__ = ["main"]
