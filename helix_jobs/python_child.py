"""Child processes of this interpreter: they run Helix's modules, never code in the working directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python_command(*arguments: str) -> list[str]:
    """This interpreter's command line with ``arguments``, such as ``-m helix_jobs worker``.

    ``-P`` keeps the working directory off ``sys.path``. Without it ``-m`` and ``-c`` put that directory before the
    standard library, and the child would execute a user's own ``queue.py`` or ``celery.py``.
    """
    return [sys.executable, "-P", *arguments]


def import_path() -> dict[str, str]:
    """The environment variable with which a child finds an uninstalled package beside ``submit.py``.

    Empty for an installed package: the packages beside it would come before the standard library.
    """
    checkout = Path(__file__).parents[1]
    if not (checkout / "pyproject.toml").is_file():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))}
