"""README.md and the pages of docs taken apart: sections, code blocks, shell commands, tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"```(\w*)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced code block. ``not_run`` is the reason in the comment above it, if there is one."""

    page: str
    section: str
    language: str
    text: str
    not_run: str | None

    def commands(self) -> list[str]:
        """The shell commands, one a logical line, without comments, joined where a line ends in a backslash."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


@dataclass(frozen=True)
class Page:
    """One Markdown file. Its ``name`` is the file's without the suffix."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text with every code block blanked out, so that positions stay what they are."""
        return _FENCED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), self.text)

    @cached_property
    def headings(self) -> list[tuple[int, str, int, int]]:
        """Level, title, and where each heading begins and ends."""
        return [(len(match[1]), match[2], match.start(), match.end()) for match in _HEADING.finditer(self.prose)]

    @cached_property
    def sections(self) -> dict[str, str]:
        """Title -> text up to the next heading of the same or a higher level."""
        found = {}
        for index, (own, title, _, start) in enumerate(self.headings):
            later = self.headings[index + 1 :]
            end = next((begin for level, _, begin, _ in later if level <= own), len(self.text))
            found[title] = self.text[start:end]
        return found

    @cached_property
    def blocks(self) -> list[Block]:
        """The code blocks in their order, each under its heading of the first or second level."""
        found: list[Block] = []
        section, reason, language, lines = "", None, None, []
        for line in self.text.splitlines():
            if language is not None:
                if line == "```":
                    found.append(Block(self.name, section, language, "\n".join(lines), reason))
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

    def rows(self, section: str) -> list[list[str]]:
        """The cells of every table row of a section, without headers and rulers."""
        rows = []
        for table in re.findall(r"(?:^\|.*\|\n)+", self.sections[section], re.MULTILINE):
            lines = table.splitlines()[2:]
            rows += [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        return rows


PAGES = {path.stem: Page(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(page.text for page in PAGES.values())
BLOCKS = [block for page in PAGES.values() for block in page.blocks]


def code_words(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def names_option(text: str, option: str) -> bool:
    """Whether ``--stop`` itself stands in a text, not only ``--stop-token-id``."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None
