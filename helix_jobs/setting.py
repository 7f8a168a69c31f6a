"""Setting: one declaration of an environment variable: how it is read, its option, and their help.

The declaration is the metadata of its field of ``Settings``. Reading the environment, the worker's options and their
help, and the test of the documentation's table all follow from it.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_KEY: Final = "setting"
_DIRECTORY_NAME: Final = re.compile(r"[^\s,=]{1,128}")


class Kind(Protocol):
    """How a setting is read."""

    def read(self, variable: str, text: str) -> object:
        """Read the value from this variable's text.

        Raises:
            ConfigurationError: The text is not valid; the message names the variable and the accepted values.
        """


@dataclass(frozen=True, slots=True)
class Text:
    """Any text, unless ``check`` refuses it or changes its spelling."""

    check: Callable[[str], str] = str

    def read(self, variable: str, text: str) -> str:  # noqa: ARG002  (a check names the variable itself)
        """The text as ``check`` spells it."""
        return self.check(text)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words, in upper or lower case."""

    words: tuple[str, ...]

    def read(self, variable: str, text: str) -> str:
        """The word in lower case."""
        if text.lower() not in self.words:
            raise ConfigurationError(f"{variable} is {text.lower()!r}; use one of {', '.join(self.words)}")
        return text.lower()


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """A whole number from ``low`` to ``high``.

    Attributes:
        low: The smallest.
        high: The largest.
        none: A word that means None; empty if there is no such word.
        is_float: The field is a float, and an option may have decimals.
    """

    low: int
    high: int
    none: str = ""
    is_float: bool = False

    def read(self, variable: str, text: str) -> float | None:
        """The number, or None."""
        if self.none and text.lower() == self.none:
            return None
        try:
            value = int(text)
        except ValueError:
            value = self.low - 1
        if not self.low <= value <= self.high:
            word = f", or {self.none}" if self.none else ""
            raise ConfigurationError(
                f"{variable} is {text!r}; give a whole number from {self.low} to {self.high}{word}"
            )
        return float(value) if self.is_float else value


@dataclass(frozen=True, slots=True)
class Directory:
    """An absolute path; ``~`` and ``~user`` are home directories."""

    def read(self, variable: str, text: str) -> Path:
        """The path."""
        try:
            return Path(text).expanduser().absolute()
        except RuntimeError as error:  # no such user, or this user's home directory is unknown
            raise ConfigurationError(
                f"{variable} is {text!r}, and no such home directory is known; give a full path"
            ) from error


class NamedDirectories(tuple[tuple[str, Path], ...]):
    """Directories by name, in their order; as a text ``NAME=DIRECTORY``, with commas between several."""

    __slots__ = ()

    def __str__(self) -> str:
        return ",".join(f"{name}={folder}" for name, folder in self)


@dataclass(frozen=True, slots=True)
class Directories:
    """``NAME=DIRECTORY``, or several with commas between them; an option may be given several times instead."""

    def read(self, variable: str, text: str) -> NamedDirectories:
        """The directories by name."""
        found: dict[str, Path] = {}
        for part in text.split(","):
            name, separator, folder = part.strip().partition("=")
            if not (separator and folder and _DIRECTORY_NAME.fullmatch(name)):
                raise ConfigurationError(
                    f"{variable} has {part.strip()!r:.200}; give NAME=DIRECTORY, with commas between several; a name "
                    "has no space, comma or =, and a directory no comma"
                )
            if name in found:
                raise ConfigurationError(f"{variable} has two of the name {name!r:.200}; give each a name of its own")
            found[name] = Directory().read(variable, folder)
        return NamedDirectories(found.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An environment variable, and the option that overrides it.

    Attributes:
        kind: How the variable's text is read.
        help: The setting's purpose; the option's help, if there is one.
        option: ``--device``; with ``/`` also the name of the opposite, as in ``--compile/--no-compile``. Empty for a
            setting without an option.
        metavar: The name of the option's value in the help.
        name: The field's name.
        default: The field's value if the variable is absent; None also for a field without a fixed default.
    """

    kind: Kind
    help: str
    option: str = ""
    metavar: str | None = None
    name: str = ""
    default: Any = None

    @property
    def variable(self) -> str:
        """``HELIX_DEVICE``."""
        return f"HELIX_{self.name.upper()}"

    def read(self, text: str) -> object:
        """The value that a text of the variable means.

        Raises:
            ConfigurationError: The text is not valid; the message names the variable and the accepted values.
        """
        return self.kind.read(self.variable, text)


def declared(kind: Kind, help: str, option: str = "", metavar: str | None = None) -> dict[str, Setting]:  # noqa: A002  (what click calls it)
    """Return a field's metadata that declare a setting."""
    return {_KEY: Setting(kind=kind, help=help, option=option, metavar=metavar)}


def settings_of(fields: Iterable[Field[Any]]) -> dict[str, Setting]:
    """Field's name -> its setting, complete with the field's name and default."""
    return {
        one.name: replace(one.metadata[_KEY], name=one.name, default=None if one.default is MISSING else one.default)
        for one in fields
    }
