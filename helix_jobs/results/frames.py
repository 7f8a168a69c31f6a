"""Results as data frames of the library that a person uses. None is imported before it is asked for."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import ConfigurationError
from helix_jobs.results.export import results_schema, results_tables
from helix_jobs.tables.arrow_rows import import_pyarrow

if TYPE_CHECKING:
    from helix_jobs.storage.records import JobResult


class AsFrames(ABC):
    """What can be had as a data frame. All of it is in memory then."""

    @abstractmethod
    def to_arrow(self) -> Any:  # noqa: ANN401  (pyarrow is untyped)
        """A pyarrow table.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """

    def to_pandas(self) -> Any:  # noqa: ANN401  (pandas is not imported here)
        """A pandas data frame.

        Raises:
            ConfigurationError: pyarrow or pandas is not installed.
        """
        table = self.to_arrow()
        _library("pandas")
        return table.to_pandas()

    def to_polars(self) -> Any:  # noqa: ANN401  (polars is not imported here)
        """A polars data frame.

        Raises:
            ConfigurationError: pyarrow or polars is not installed.
        """
        return _library("polars").from_arrow(self.to_arrow())


class Results(AsFrames, Iterator["JobResult"]):
    """The results of a batch, one by one, or the rest of them as a data frame with the columns of result files.

    Args:
        results: The results, taken when they are asked for.
    """

    def __init__(self, results: Iterator[JobResult]) -> None:
        self._results = results

    def __next__(self) -> JobResult:
        return next(self._results)

    def to_arrow(self) -> Any:  # noqa: ANN401  (pyarrow is untyped)
        """A pyarrow table of the results that have not been taken yet.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        pyarrow = import_pyarrow("data frames")
        schema = results_schema(pyarrow)
        return pyarrow.concat_tables([schema.empty_table(), *results_tables(self._results, pyarrow)])


def _library(name: str) -> Any:  # noqa: ANN401  (a module)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(f"{name} is not installed; run pip install {name}, or take to_arrow()") from error
