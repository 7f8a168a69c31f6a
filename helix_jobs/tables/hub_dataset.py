"""Data sets of the Hugging Face hub, ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``: their files come to this disk.

PATH is a file, or a pattern of Parquet files. Without it the data set must hold one table. Files that are parts of one
table are told by their names, ``train-00000-of-00002.parquet``, as the hub's own library writes them.

The hub's library keeps what it has fetched, asks with ``HF_TOKEN``, and reads a file that PATH names from its cache
alone with ``HF_HUB_OFFLINE``. Nobody but the hub tells which files a data set has.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import HelixError, InputError
from helix_jobs.tables.read_options import HUB_PREFIX, is_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PLACE: Final = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^/@\s]+))?(?:/(?P<path>[^\s].*))?"
)
_PACKED: Final = ("", ".gz", ".bz2", ".xz", ".zst")
_TABLES: Final = tuple(
    kind + packed for kind in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".xlsx") for packed in _PACKED
)
_PARQUET: Final = ".parquet"
_PART: Final = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
# Tables that an error names.
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A table on the hub.

    Attributes:
        text: As a person gave it.
        repository: ``OWNER/NAME``.
        revision: A branch, tag or commit; None for the newest.
        path: Its file, or a pattern of files; None for the only table that there is.
    """

    text: str
    repository: str
    revision: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubDataset | None:
        """The table that a text means; None if it is none of the hub.

        Raises:
            InputError: It begins like one, and is none.
        """
        if not text.startswith(HUB_PREFIX):
            return None
        match = _PLACE.fullmatch(text.removeprefix(HUB_PREFIX).rstrip("/"))
        if match is None or ".." in (match["path"] or "").split("/"):
            raise InputError(f"{text} names no data set; write hf://datasets/OWNER/NAME, @REVISION and /PATH behind it")
        return cls(text, match["repository"], match["revision"], match["path"])

    def fetch(self) -> Sequence[Path]:
        """Its files on this disk, the parts of a table in their order; what was not there is downloaded.

        Raises:
            InputError: There is no such data set or file, it cannot be fetched, or it holds several tables.
        """
        from huggingface_hub import hf_hub_download

        with self._errors():
            return [
                Path(hf_hub_download(self.repository, name, repo_type="dataset", revision=self.revision))
                for name in self._names()
            ]

    def _names(self) -> list[str]:
        if self.path is not None and not is_pattern(self.path):
            return [self.path]
        from huggingface_hub import HfApi

        files = HfApi().list_repo_files(self.repository, repo_type="dataset", revision=self.revision)
        found = sorted(name for name in files if name.lower().endswith(_TABLES))
        if self.path is not None:
            found = [name for name in found if fnmatch.fnmatchcase(name, self.path)]
        tables = sorted({_PART.sub("-*", name) for name in found})
        if not found:
            raise InputError(f"{self.text}: the data set has no such table; it has {_some(files)}")
        if self.path is None and len(tables) > 1:
            raise InputError(
                f"{self.text} holds several tables ({_some(tables)}); name one, such as "
                f"'{HUB_PREFIX}{self.repository}{f'@{self.revision}' if self.revision else ''}/{tables[0]}'"
            )
        if len(found) > 1 and any(not name.lower().endswith(_PARQUET) for name in found):
            raise InputError(f"{self.text}: of several files only Parquet's are read as one table; name one of them")
        return found

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Say in one sentence what the hub's library raises, and what to do."""
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            yield
        except HelixError:
            raise
        except GatedRepoError as error:
            raise InputError(f"{self.text} needs its licence accepted on the hub; do so and set HF_TOKEN") from error
        except RevisionNotFoundError as error:
            raise InputError(f"{self.text}: the data set has no such revision; check what stands behind @") from error
        except RepositoryNotFoundError as error:
            raise InputError(
                f"{self.text} is not on the hub; check the name, and set HF_TOKEN if it is private"
            ) from error
        except EntryNotFoundError as error:
            if not isinstance(error, LocalEntryNotFoundError):
                raise InputError(f"{self.text}: the data set has no such file; check the path") from error
            raise self._unreachable(error) from error
        except Exception as error:  # each release of the library has another HTTP client, with errors of its own
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> InputError:
        return InputError(
            f"{self.text} could not be fetched from the hub ({type(error).__name__}); check the network, or give a file"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "no files"
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
