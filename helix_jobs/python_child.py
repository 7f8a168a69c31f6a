"""Child processes of this interpreter: they run Helix's modules, never what lies in the working directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python_command(*arguments: str) -> list[str]:
    """The command line of this interpreter with ``arguments``, such as ``-m helix_jobs worker``.

    ``-P`` keeps the working directory off ``sys.path``. Without it ``-m`` and ``-c`` put it before the standard
    library, and a person's own ``queue.py`` or ``celery.py`` would be executed in the child.
    """
    return [sys.executable, "-P", *arguments]


def import_path() -> dict[str, str]:
    """The variable that lets a child find a package that is not installed but lies beside ``submit.py``.

    Empty for an installed package: its neighbours would come before the standard library.
    """
    checkout = Path(__file__).parents[1]
    if not (checkout / "pyproject.toml").is_file():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))}
