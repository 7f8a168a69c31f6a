"""What a person's program may hand over to be submitted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Protocol


class DataFrame(Protocol):
    """A data frame of any library: pandas, polars, pyarrow, DuckDB and others hand their columns over like this."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Arrow's C stream in a capsule."""
        ...


Input = str | os.PathLike[str] | BinaryIO | Iterable[Mapping[str, Any]] | DataFrame
