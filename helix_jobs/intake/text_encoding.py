"""Guess the encoding of a text that is not UTF-8 from its bytes, and name the command that converts it."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_UTF32_MARKS: Final = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
# Western European texts have single letters beyond ASCII; whole words of such letters belong to another script.
_OTHER_SCRIPT: Final = re.compile(rb"[\x80-\xff]{4}")
# Half of a surrogate pair, which some programs encode like a character.
_HALF: Final = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")


@dataclass(frozen=True, slots=True)
class Encoding:
    """The likely encoding of a text that is not UTF-8.

    Attributes:
        what: The encoding's name in a sentence, after "text in" and the like.
        command: The command that prints the text in UTF-8; FILE stands for its name.
        note: What the command leaves uncertain; empty if nothing.
        codec: Python's name of it; empty where it is not known.
    """

    what: str
    command: str
    note: str = ""
    codec: str = ""


def wide_encoding(first: bytes) -> Encoding | None:
    """UTF-16 or UTF-32, detected by a byte order mark, or by a NUL in every other byte of ASCII characters."""
    kind = None
    nul = b"\0\0"
    if first.startswith(_UTF32_MARKS):
        kind = "UTF-32"
    elif first.startswith(_UTF16_MARKS):
        kind = "UTF-16"
    elif (first[0:4:2] == nul) != (first[1:4:2] == nul):
        kind = "UTF-16BE" if first[:1] == b"\0" else "UTF-16LE"
    return None if kind is None else Encoding(kind[:6], f"iconv -f {kind} -t UTF-8 FILE", codec=kind.lower())


def narrow_encoding(data: bytes, *, is_whole: bool = True) -> Encoding | None:
    """An encoding with one or two bytes a character, or damaged UTF-8; None for UTF-8.

    Args:
        data: The text.
        is_whole: Whether this is the whole text; a mere beginning may end within a character.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=is_whole)
    except UnicodeDecodeError:
        pass
    else:
        return None
    if _HALF.search(data) or _is_mostly_utf8(data):
        return Encoding("damaged UTF-8", "iconv -c -f UTF-8 -t UTF-8 FILE", "what is no character is left out", "utf-8")
    if _OTHER_SCRIPT.search(data) or not _is_western(data):
        return Encoding(
            "another encoding than UTF-8",
            "iconv -f ENCODING -t UTF-8 FILE",
            "ENCODING is the text's, such as WINDOWS-1251, GB18030 or SHIFT_JIS",
        )
    return Encoding("WINDOWS-1252", "iconv -f WINDOWS-1252 -t UTF-8 FILE", "as its bytes look", "cp1252")


def _is_mostly_utf8(data: bytes) -> bool:
    """Whether most bytes beyond ASCII are valid UTF-8; in another encoding hardly any are, by chance."""
    characters = sum(not character.isascii() for character in data.decode(errors="ignore"))
    return characters > 0 and characters >= data.decode(errors="replace").count("\ufffd")


def _is_western(data: bytes) -> bool:
    """Whether Windows-1252, and so Latin-1, has a character for each byte."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return True
