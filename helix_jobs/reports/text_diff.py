"""The words in which two texts differ. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WORDS: Final = re.compile(r"\w+|\s+|[^\w\s]")
_LINES: Final = re.compile(r"[^\n]*\n|[^\n]+")
# Beyond so many parts the time grows with their square.
_MOST_PARTS: Final = 3000
_CONTEXT: Final = 60


class PieceKind(StrEnum):
    """Whether both texts have a piece, or which of them."""

    SAME = "same"
    REMOVED = "removed"
    ADDED = "added"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that both have, or one of them."""

    kind: PieceKind
    text: str


def text_diff(before: str, after: str) -> list[Piece]:
    """The pieces of two texts in their order, word by word.

    Trade-off: texts that differ in more than some thousand words are compared by lines, and if that is still too much
    as a whole: the exact difference would take minutes, and nobody reads it.
    """
    for parts in (_WORDS, _LINES):
        old, new = parts.findall(before), parts.findall(after)
        start = _common(old, new)
        end = _common(old[start:][::-1], new[start:][::-1])
        changed_old, changed_new = old[start : len(old) - end], new[start : len(new) - end]
        if len(changed_old) + len(changed_new) <= _MOST_PARTS:
            return list(
                _joined(
                    [
                        Piece(PieceKind.SAME, "".join(old[:start])),
                        *_changes(changed_old, changed_new),
                        Piece(PieceKind.SAME, "".join(old[len(old) - end :])),
                    ]
                )
            )
    return list(_joined([Piece(PieceKind.REMOVED, before), Piece(PieceKind.ADDED, after)]))


def around_changes(pieces: Sequence[Piece], context: int = _CONTEXT) -> list[Piece]:
    """The pieces, with what both texts have cut down to some characters beside each change."""
    found = []
    for place, piece in enumerate(pieces):
        text = piece.text
        if piece.kind is PieceKind.SAME:
            is_first, is_last = place == 0, place == len(pieces) - 1
            head, tail = "" if is_first else text[:context], "" if is_last else text[-context:]
            if len(head) + len(tail) < len(text):
                text = f"{head}…{tail}"
        found.append(Piece(piece.kind, text))
    return found


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[Piece]:
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for tag, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if tag == "equal":
            yield Piece(PieceKind.SAME, "".join(old[old_from:old_to]))
        else:
            yield Piece(PieceKind.REMOVED, "".join(old[old_from:old_to]))
            yield Piece(PieceKind.ADDED, "".join(new[new_from:new_to]))


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Without empty pieces, and with neighbours of one kind made one.

    White space alone between two changes belongs to the changes: single words that alternate are hard to read.
    """
    found: list[Piece] = []
    for place, piece in enumerate(pieces):
        is_gap = piece.kind is PieceKind.SAME and piece.text.isspace() and 0 < place < len(pieces) - 1
        parts = [Piece(PieceKind.REMOVED, piece.text), Piece(PieceKind.ADDED, piece.text)] if is_gap else [piece]
        found += [part for part in parts if part.text]
    run: dict[PieceKind, str] = {}
    for piece in found:
        if piece.kind is PieceKind.SAME:
            yield from (Piece(kind, text) for kind, text in sorted(run.items(), reverse=True))
            run.clear()
            yield piece
        else:
            run[piece.kind] = run.get(piece.kind, "") + piece.text
    yield from (Piece(kind, text) for kind, text in sorted(run.items(), reverse=True))
