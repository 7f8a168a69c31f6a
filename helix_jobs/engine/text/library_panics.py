"""Panics of libraries written in Rust: they pass every ``except Exception``, and here they become an ordinary error."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LibraryPanicError(Exception):
    """A library panicked. The text is the library's own and may quote what it worked on."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a library's panic inside the context as a ``LibraryPanicError``; whoever expects errors then sees it.

    Raises:
        LibraryPanicError: Something inside panicked.
    """
    try:
        yield
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise LibraryPanicError(str(error)) from error


def _is_panic(error: BaseException) -> bool:
    """Whether it is a panic. Each library brings a class of its own, which cannot be imported: only the name is one."""
    kind = type(error)
    return kind.__module__ == "pyo3_runtime" and kind.__name__ == "PanicException"
