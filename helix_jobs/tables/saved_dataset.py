"""Rows of a Hugging Face data set on this disk, as ``save_to_disk`` writes it: a folder of Arrow streams.

Only the files are read, by pyarrow; the library ``datasets`` is not needed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InputError
from helix_jobs.intake.line_faults import cut
from helix_jobs.tables.arrow_files import ArrowFilesRows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helix_jobs.tables.row import Row

_STATE: Final = "state.json"
_SPLITS: Final = "dataset_dict.json"


class SavedDatasetRows:
    """The rows of all files of a data set, in the order that its ``state.json`` names them.

    Args:
        folder: The data set's folder.

    Attributes:
        columns: The names.
        schema: Arrow's fields.

    Raises:
        ConfigurationError: pyarrow is not installed.
        InputError: The folder holds several splits, or a part of the data set is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        if (folder / _SPLITS).is_file():
            splits = _document(folder / _SPLITS).get("splits", [])
            raise InputError(
                f"{folder} holds a data set of several splits ({cut(', '.join(map(str, splits)))}); name one of them, "
                f"such as {folder / str(splits[0] if splits else 'train')}"
            )
        state = _document(folder / _STATE)
        if state.get("_indices_data_files"):
            raise InputError(
                f"{folder} holds a data set with a list of chosen rows, which Helix does not follow; save it again "
                "behind flatten_indices()"
            )
        names = [str(file.get("filename")) for file in state.get("_data_files", []) if isinstance(file, dict)]
        if not names or any("/" in name or "\\" in name for name in names):
            raise InputError(f"{folder / _STATE} names no files of the data set; save it again")
        files = [folder / name for name in names]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is missing, which {_STATE} names; fetch or save the data set again")
        self._rows = ArrowFilesRows(files)
        self.columns, self.schema = self._rows.columns, self._rows.schema

    def rows(self) -> Iterator[Row]:
        """The rows, numbered from 1 over all files."""
        return self._rows.rows()


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder holds a data set, or several splits of one."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read; save the data set again") from error
    return found if isinstance(found, dict) else {}
