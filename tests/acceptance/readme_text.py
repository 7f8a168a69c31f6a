"""README.md taken apart: sections, code blocks, shell commands, tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

_FENCE = re.compile(r"```(\w*)")
_HEADING = re.compile(r"(#{1,3}) (.+)")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced code block. ``not_run`` is the reason in the comment above it, if there is one."""

    section: str
    language: str
    text: str
    not_run: str | None

    def commands(self) -> list[str]:
        """The shell commands, one a logical line, without comments, joined where a line ends in a backslash."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


def _blocks() -> list[Block]:
    found: list[Block] = []
    section, reason, language, lines = "", None, None, []
    for line in TEXT.splitlines():
        if language is not None:
            if line == "```":
                found.append(Block(section, language, "\n".join(lines), reason))
                language, reason, lines = None, None, []
            else:
                lines.append(line)
        elif fence := _FENCE.fullmatch(line):
            language = fence[1]
        elif heading := _HEADING.fullmatch(line):
            section = heading[2] if len(heading[1]) <= len("##") else section
        elif marker := _NOT_RUN.fullmatch(line):
            reason = marker[1]
        elif line.strip():
            assert reason is None, f"no code block follows the comment 'not run: {reason}'"
    return found


BLOCKS = _blocks()


def headings() -> dict[str, str]:
    """Title -> text up to the next heading of the same or a higher level."""
    parts = [(len(match[1]), match[2], match.end()) for match in re.finditer(r"^(#{1,3}) (.+)$", TEXT, re.MULTILINE)]
    ends = [
        next((end - len(title) - level - 1 for level, title, end in parts[i + 1 :] if level <= own), len(TEXT))
        for i, (own, _, _) in enumerate(parts)
    ]
    return {title: TEXT[start:end] for (_, title, start), end in zip(parts, ends, strict=True)}


SECTIONS = headings()


def table_rows(section: str) -> list[list[str]]:
    """The cells of every table row of a section, without headers and rulers."""
    rows = []
    for table in re.findall(r"(?:^\|.*\|\n)+", SECTIONS[section], re.MULTILINE):
        lines = table.splitlines()[2:]
        rows += [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return rows


def code_words(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def names_option(text: str, option: str) -> bool:
    """Whether ``--stop`` itself stands in a text, not only ``--stop-token-id``."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None
