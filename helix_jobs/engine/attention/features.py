"""The optional features of a model's parts: fields that have a default, and are in use where they differ from it.

A kernel serves a part if it knows every feature in use. Trade-off: a list of what a kernel computes has to grow with
the kernel; a list of what it does not compute would let a field that is added later be dropped in silence.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def features_of(part: DataclassInstance) -> frozenset[str]:
    """Names of the part's fields that have a default and differ from it."""
    return frozenset(
        field.name
        for field in fields(part)
        if field.default is not MISSING
        and getattr(part, field.name) is not field.default
        and getattr(part, field.name) != field.default
    )
