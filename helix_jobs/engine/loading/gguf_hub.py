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
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_config import LONG_FACTORS, ROTARY_FACTORS, SHORT_FACTORS
from helix_jobs.engine.loading.gguf_header import HEADER_LIMIT, MAGIC, read_gguf_header
from helix_jobs.engine.loading.gguf_parts import part_names
from helix_jobs.engine.loading.hub import hub_errors, no_progress_bars
from helix_jobs.errors import ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME: Final = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*):(?P<file>[^:\\/][^:\\]*\.gguf)", re.IGNORECASE
)
# Bytes that are asked for, one after another, until they hold the header. Most headers take 2 to 8 MB.
_PREFIXES: Final = (1 << 20, 1 << 23, HEADER_LIMIT)
_CHUNK: Final = 1 << 16
_WHOLE, _PART = 200, 206
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
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, part)
    size = get_hf_file_metadata(url).size
    if not size:
        raise ModelError(f"model {name}: the hub does not tell the size of {part:.200}; download it and name the file")
    path.touch()
    with path.open("r+b") as file:
        file.truncate(size)
    for prefix in _PREFIXES:
        length = min(prefix, size)
        _fetch(url, path, 0, length)
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
            if not _fetch(url, path, first, last):
                raise ModelNotFoundError(
                    f"model {name}: the hub sends no parts of files, and the header of {part:.200} does not say all; "
                    "download the file and name it"
                )
    path.chmod(0o400)


def _fetch(url: str, path: Path, first: int, last: int) -> bool:
    """Write the bytes of a file from ``first`` to before ``last`` in their place.

    Returns:
        Whether the bytes came. A server may send the whole file instead, of which too much would have to be read.
    """
    with _opened(url, first, last) as (status, chunks), path.open("r+b") as file:
        if status not in (_WHOLE, _PART):
            raise OSError(f"the hub answered with {status}")
        position = 0 if status == _WHOLE else first
        if position < first and last > HEADER_LIMIT:
            return False
        for chunk in chunks:
            kept = chunk[max(0, first - position) : max(0, last - position)]
            if kept:
                file.seek(max(first, position))
                file.write(kept)
            position += len(chunk)
            if position >= last:  # the rest is not read
                break
    if position < last:
        raise OSError("the hub sent less than it said")
    return True


@contextlib.contextmanager
def _opened(url: str, first: int, last: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Ask for a part of a file: the answer's status, and its bytes as they come."""
    from huggingface_hub import utils

    library: Any = utils  # which exports these two without saying so
    headers = {**library.build_hf_headers(), "Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}
    session = library.get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, follow_redirects=True) as answer:
            yield answer.status_code, answer.iter_bytes(_CHUNK)
    else:  # before its first release the library had another HTTP client
        with session.get(url, headers=headers, stream=True) as answer:
            yield answer.status_code, answer.iter_content(_CHUNK)
