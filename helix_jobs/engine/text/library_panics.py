"""Turns panics of Rust libraries into ordinary errors: ``except Exception`` does not catch a panic itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LibraryPanicError(Exception):
    """A library panicked. The message is the library's own and may quote its input."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a library's panic inside the context as a ``LibraryPanicError``.

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
    """Whether the error is a panic, by its class name: each library has its own class, which cannot be imported."""
    kind = type(error)
    return kind.__module__ == "pyo3_runtime" and kind.__name__ == "PanicException"
