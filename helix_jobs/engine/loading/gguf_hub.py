"""HubFile: a ``.gguf`` file on the hub. Its header is read where it is, before gigabytes behind it are downloaded.

A header has all that says whether a model is served and what it needs: settings, tensors, vocabulary. It is put into a
file with a hole of the weights' size, which is read like any other.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.loading.gguf_config import LONG_FACTORS, ROTARY_FACTORS, SHORT_FACTORS
from helix_jobs.engine.loading.gguf_header import HEADER_LIMIT, MAGIC, read_gguf_header
from helix_jobs.engine.loading.gguf_parts import part_names
from helix_jobs.engine.loading.hub import hub_errors, no_progress_bars
from helix_jobs.engine.loading.hub_bytes import fetch_bytes, hollow_copy
from helix_jobs.errors import ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME: Final = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*):(?P<file>[^:\\/][^:\\]*\.gguf)", re.IGNORECASE
)
# Bytes that are asked for, one after another, until they hold the header. Most headers take 2 to 8 MB.
_PREFIXES: Final = (1 << 20, 1 << 23, HEADER_LIMIT)
# Tensors whose numbers belong to the configuration.
_FACTORS: Final = (ROTARY_FACTORS, LONG_FACTORS, SHORT_FACTORS)


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository.

    Attributes:
        repository: Its hub id.
        file: The file's path inside it; of a split file, any part.
    """

    repository: str
    file: str

    @classmethod
    def parse(cls, name: str) -> HubFile | None:
        """The file that a model's name such as ``OWNER/NAME:FILE.gguf`` means; None for any other name."""
        match = _NAME.fullmatch(name)
        if match is None or ".." in match["file"].split("/"):
            return None
        return cls(match["repository"], match["file"])

    @property
    def parts(self) -> tuple[str, ...]:
        """The paths of all its parts; of a file that is not split, its own."""
        folder, slash, own = self.file.rpartition("/")
        return tuple(f"{folder}{slash}{part}" for part in part_names(own))

    def downloaded(self) -> Path | None:
        """Where the hub's library keeps it on this machine; None if it does not, or not all parts."""
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(self.repository, part) for part in self.parts]
        paths = [Path(path) for path in found if isinstance(path, str)]
        return paths[self.parts.index(self.file)] if len(paths) == len(found) else None

    def download(self, name: str, on_progress: Callable[[str], None]) -> Path:
        """Download all parts into the hub's cache.

        Raises:
            ModelNotFoundError: There is no such file, or it cannot be fetched.
        """
        from huggingface_hub import hf_hub_download

        on_progress(f"downloading {name} from the hub")
        with hub_errors(name):
            paths = [Path(hf_hub_download(self.repository, part)) for part in self.parts]
        return paths[self.parts.index(self.file)]

    @contextlib.contextmanager
    def headers(self, name: str) -> Iterator[Path]:
        """Fetch the headers of all parts into files that are removed with the context; nothing is put into the cache.

        Yields:
            The file that was named, with zeros in the place of its weights.

        Raises:
            ModelNotFoundError: There is no such file, it cannot be fetched, or the hub sends whole files alone and the
                configuration stands too far behind.
            ModelError, UnsupportedArchitectureError: As in ``read_gguf_header``.
        """
        with tempfile.TemporaryDirectory(prefix="helix-hub-") as scratch:
            for part in self.parts:
                with hub_errors(name), no_progress_bars():
                    _fetch_header(name, self.repository, part, Path(scratch) / part.rpartition("/")[2])
            yield Path(scratch) / self.file.rpartition("/")[2]


def _fetch_header(name: str, repository: str, part: str, path: Path) -> None:
    url, size = hollow_copy(name, repository, part, path)
    for prefix in _PREFIXES:
        length = min(prefix, size)
        fetch_bytes(url, path, 0, length)
        with path.open("rb") as file:
            is_known = file.read(len(MAGIC)) == MAGIC
        try:
            header = read_gguf_header(name, path, length)
        except ModelError:
            if is_known and length < min(size, HEADER_LIMIT):  # it may go on behind what was fetched
                continue
            raise
        break
    for tensor in _FACTORS:
        if tensor in header.tensors and (first := header.places[tensor]) + header.tensors[tensor].elements * 4 > length:
            last = min(size, first + header.tensors[tensor].elements * 4)
            if not fetch_bytes(url, path, first, last):
                raise ModelNotFoundError(
                    f"model {name}: the hub sends no parts of files, and the header of {part:.200} does not say all; "
                    "download the file and name it"
                )
    path.chmod(0o400)
