"""How a message names a model and one of its files, each only once, and what a library said of it."""

from __future__ import annotations

from pathlib import Path


def subject(name: str, path: Path) -> str:
    """The beginning of a sentence about a model's directory or file.

    Args:
        name: The model's name as the user gave it: a path, a hub id or ``demo``.
        path: The directory or file that the sentence is about.

    Returns:
        ``model NAME`` where the name is that path, ``model NAME: config.json`` for a file in it, and else the model
        with the whole path.
    """
    try:
        own = Path(name).expanduser()
    except RuntimeError:  # no such user, so the name is no path
        own = Path(name)
    if path == own:
        return f"model {name}"
    if own in path.parents:
        return f"model {name}: {path.relative_to(own)}"
    return f"model {name}: {path}"


def in_words(error: Exception) -> str:
    """A library's error message, on one line; it may quote a whole file."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
