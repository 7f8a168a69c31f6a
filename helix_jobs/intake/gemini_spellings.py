"""Find a field of Gemini's, which has two spellings: ``toolConfig`` and ``tool_config``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping


def spellings(name: str) -> tuple[str, str]:
    """Both spellings of a field, from the one in camel case."""
    return name, re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def spelled(values: Mapping[str, Any], name: str, path: str) -> str:
    """The spelling under which a field is given; that in camel case if it is not.

    Args:
        values: The fields that were given.
        name: The field in camel case.
        path: Where the fields stand in the line.

    Raises:
        InvalidFieldError: The field is given in both.
    """
    camel, snake = spellings(name)
    if values.get(snake) is None:
        return camel
    if values.get(camel) is not None:
        raise given_twice(f"{path}.{snake}", camel)
    return snake


def given_twice(path: str, other: str) -> InvalidFieldError:
    """The fault of a field that has been given in another spelling before."""
    return InvalidFieldError(path, f"is given twice, as {other}, too", "give one of the two")
