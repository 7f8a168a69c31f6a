"""Collect all faults of one line in one reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, Unpack, cast

from helix_jobs.errors import InvalidFieldError, InvalidFieldsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

WHOLE_LINE: Final = "(line)"

_Arguments = TypeVarTuple("_Arguments")
_Value = TypeVar("_Value")
# More than a person reads; a line may have a hundred thousand faults.
_MAX_FAULTS: Final = 20
_KINDS: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class Faults:
    """Collects the faults of a line, so that a person sees all of them at once."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[InvalidFieldError] = []

    def __bool__(self) -> bool:
        """Whether there is any fault."""
        return bool(self._found)

    @property
    def is_full(self) -> bool:
        """Whether there are so many that no further one is told; whoever looks for more may stop."""
        return len(self._found) >= _MAX_FAULTS

    def of(self, check: Callable[[Unpack[_Arguments]], _Value], /, *args: *_Arguments) -> _Value:
        """Return a check's result. If the check refuses, note the fault; the result is then unused: see `settle`."""
        try:
            return check(*args)
        except InvalidFieldError as error:
            self.add(error)
            return cast("_Value", None)

    def add(self, error: InvalidFieldError) -> None:
        """Note one fault, or all faults that an inner check has found."""
        if not self.is_full:
            self._found += error.faults if isinstance(error, InvalidFieldsError) else (error,)

    def settle(self) -> None:
        """Raise the collected faults, if there are any.

        Raises:
            InvalidFieldError: The only fault.
            InvalidFieldsError: All faults, if there are several.
        """
        if len(self._found) > 1:
            raise InvalidFieldsError(tuple(self._found[:_MAX_FAULTS]))
        if self._found:
            raise self._found[0]


def refuse_others(values: Mapping[str, Any], known: Collection[str], path: str = "") -> None:
    """Refuse every field but the known ones, unless it is null.

    Args:
        values: The fields that were given.
        known: The names of those that have a meaning here.
        path: Where they stand in the line; empty for the line itself.

    Raises:
        InvalidFieldError: There is another field.
        InvalidFieldsError: There are several.
    """
    faults = Faults()
    for name, value in values.items():
        if name not in known and value is not None:
            field = f"{path}.{short(name)}" if path else short(name)
            faults.add(InvalidFieldError(field, "is not a field that is taken here", "remove it"))
    faults.settle()


def asks_for_nothing(value: object, neutral: tuple[Any, ...]) -> bool:
    """Whether a field is null or has one of the values that change nothing."""
    # Python has True == 1 and False == 0; JSON has not. 1 and 1.0 are the same number in both.
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )


def kind(value: object) -> str:
    """Name a JSON type in words that the author of the file would use."""
    return _KINDS.get(type(value), type(value).__name__)


def short(text: str) -> str:
    """A name from the file, made fit for a message: one line, cut."""
    cut = text if len(text) <= 40 else text[:37] + "..."  # noqa: PLR2004  (room in a table)
    return cut if cut.isprintable() and cut else ascii(cut)


def cut(text: str, limit: int = 200) -> str:
    """A text from the file, made fit for a message: printable, cut."""
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return shown if shown.isprintable() else ascii(shown)[1:-1]
