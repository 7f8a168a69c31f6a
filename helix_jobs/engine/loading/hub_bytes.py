"""Parts of a file on the hub: its first bytes, or some behind them, in a file with a hole in the place of the rest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK: Final = 1 << 16
_WHOLE, _PART = 200, 206
# Where the hub sends whole files alone, bytes further behind are not read for.
REACH: Final = 64_000_000


def hollow_copy(name: str, repository: str, file: str, path: Path, revision: str | None = None) -> tuple[str, int]:
    """Make a file of the size of one on the hub, with nothing in it.

    Args:
        name: The model's name as the user gave it.
        repository: A hub id.
        file: The file's path inside the repository.
        path: The file that is made.
        revision: A commit; None for the newest.

    Returns:
        The file's address, for ``fetch_bytes``, and its size.

    Raises:
        ModelError: The hub does not tell the size.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, file, revision=revision)
    size = get_hf_file_metadata(url).size
    if not size:
        raise ModelError(f"model {name}: the hub does not tell the size of {file:.200}; download it and name the file")
    path.touch()
    with path.open("r+b") as stream:
        stream.truncate(size)
    return url, size


def fetch_bytes(url: str, path: Path, first: int, last: int) -> bool:
    """Write the bytes of a file from ``first`` to before ``last`` in their place.

    Returns:
        Whether the bytes came. A server may send the whole file instead, of which too much would have to be read.
    """
    with _opened(url, first, last) as (status, chunks), path.open("r+b") as file:
        if status not in (_WHOLE, _PART):
            raise OSError(f"the hub answered with {status}")
        position = 0 if status == _WHOLE else first
        if position < first and last > REACH:
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
