"""Kinds of columns, and indexes over few rows."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, text

# SQLite gives a rowid alias, and so a free auto-increment, to INTEGER primary keys only.
BigId: Final = BigInteger().with_variant(Integer, "sqlite")


def column(name: str, kind: Any, *args: Any, nullable: bool = False, **kwargs: Any) -> Column[Any]:  # noqa: ANN401  (passes SQLAlchemy's own arguments through)
    """A column that is NOT NULL unless ``nullable`` is given."""
    return Column(name, kind, *args, nullable=nullable, **kwargs)


def json_or_null(name: str, holds: type) -> Column[Any]:
    """A JSON column whose NULL is SQL's own, so that plain SQL can ask for it.

    ``holds`` is what ``readable`` expects.
    """
    return column(name, JSON(none_as_null=True), nullable=True, info={"holds": holds})


def partial_index(name: str, *columns: str, where: str) -> Index:
    """An index over the few rows that match ``where``; SQLite uses it only for queries that repeat that text."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))
