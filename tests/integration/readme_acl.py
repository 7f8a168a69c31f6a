"""The Redis user that README gives Helix, word by word."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def acl_words(password: str) -> list[str]:
    """README's line as a command's words, with this password."""
    (line,) = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("ACL SETUSER")]
    return line.replace(">PASSWORD", f">{password}").split()
