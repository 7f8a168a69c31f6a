"""The Redis user that docs/security.md gives Helix, word by word."""

from __future__ import annotations

from pathlib import Path

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def acl_words(password: str) -> list[str]:
    """The page's line as a command's words, with this password."""
    (line,) = [line for line in SECURITY.read_text(encoding="utf-8").splitlines() if line.startswith("ACL SETUSER")]
    return line.replace(">PASSWORD", f">{password}").split()
