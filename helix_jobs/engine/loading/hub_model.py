"""HubModel: a repository with safetensors on the hub. The headers of its files are read where they are, first.

A header says how each weight is stored. With the configuration this tells whether a model is served and what memory it
needs, before gigabytes behind the header are downloaded.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.loading.folder_files import INDEX, SINGLE, shard_names
from helix_jobs.engine.loading.hub import check_announced, check_files, hub_errors, no_progress_bars, without_folder
from helix_jobs.engine.loading.hub_bytes import fetch_bytes, hollow_copy
from helix_jobs.engine.loading.quantized_checkpoint import quantized_format
from helix_jobs.engine.loading.stored_tensor import HEADER_LIMIT
from helix_jobs.engine.model.architecture import check_model_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DESCRIPTION_FILES: Final = ["*.json", "*.jinja", "*.model", "*.txt"]
# The first request of a file asks for so many bytes. Few headers are longer.
_PREFIX: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository at one commit.

    Attributes:
        repository: Its hub id.
        folder: Its description in the hub's cache on this machine: configuration, tokenizer, index.
        files: Names of the files that hold its weights; none if it has no safetensors.
        has_whole_headers: Whether the headers of these files say all of its weights.
    """

    repository: str
    folder: Path
    files: tuple[str, ...]
    has_whole_headers: bool = True

    @property
    def is_here(self) -> bool:
        """Whether all its files are on this machine."""
        return all((self.folder / file).is_file() for file in self.files)

    def download(self, name: str, on_progress: Callable[[str], None]) -> Path:
        """Download its weights into the hub's cache, and return its folder there.

        Files in which nobody looks, such as a second copy in another layout, are left where they are.

        Raises:
            ModelNotFoundError: They cannot be fetched.
        """
        from huggingface_hub import snapshot_download

        on_progress(f"downloading {name} from the hub")
        with hub_errors(name):
            wanted = [*_DESCRIPTION_FILES, *self.files]
            return Path(
                snapshot_download(
                    self.repository, revision=self._revision, allow_patterns=wanted, ignore_patterns=["*/*"]
                )
            )

    @contextlib.contextmanager
    def headers(self, name: str) -> Iterator[Path]:
        """Fetch the headers of its weight files into a directory that is removed with the context.

        Yields:
            The directory, in which the weights themselves are zeros.

        Raises:
            ModelNotFoundError: A file cannot be fetched.
            ModelError: The hub does not tell the size of a file; and errors from inside the context.
        """
        with tempfile.TemporaryDirectory(prefix="helix-hub-") as scratch, without_folder(scratch):
            place = Path(scratch)
            if self.files != (SINGLE,):
                shutil.copyfile(self.folder / INDEX, place / INDEX)
            with hub_errors(name), no_progress_bars():
                for file in self.files:
                    self._fetch_header(name, file, place / file)
            yield place

    def _fetch_header(self, name: str, file: str, path: Path) -> None:
        url, size = hollow_copy(name, self.repository, file, path, self._revision)
        there = min(size, _PREFIX)
        fetch_bytes(url, path, 0, there)
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        end = min(size, 8 + min(length, HEADER_LIMIT))
        if end > there:
            fetch_bytes(url, path, 0, end)

    @property
    def _revision(self) -> str:
        """The commit: the hub's cache has a folder for each."""
        return self.folder.name


def download_description(name: str, on_progress: Callable[[str], None]) -> Path:
    """Download a model's small files into the hub's cache, and return their folder.

    Raises:
        ModelNotFoundError: There is no such model, or it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(name):
        on_progress(f"looking up {name} on the hub")
        return Path(snapshot_download(name, allow_patterns=_DESCRIPTION_FILES, ignore_patterns=["*/*"]))


def find_on_hub(name: str, on_progress: Callable[[str], None]) -> HubModel:
    """Download a model's description into the hub's cache, and find out which files hold its weights.

    Raises:
        ModelNotFoundError: There is no such model, it cannot be fetched, or it has only ``.gguf`` files.
        UnsupportedArchitectureError: The engine does not serve it, as far as the description tells.
    """
    from huggingface_hub import HfApi

    folder = download_description(name, on_progress)
    with hub_errors(name):
        if not (folder / "config.json").is_file():
            check_files(name, HfApi().model_info(name))
        config = check_model_type(name, folder)
        check_announced(name, folder, config)
        quantized = quantized_format(name, config)
        shards = shard_names(name, folder) or ()
        model = HubModel(name, folder, tuple(shards), quantized is None or not quantized.stores_shapes)
        single = replace(model, files=(SINGLE,))
        if single.is_here:  # transformers prefers it to an index, too
            return single
        if shards and model.is_here:
            return model
        info = HfApi().model_info(name, revision=folder.name)
        check_files(name, info)
        listed = {file.rfilename for file in info.siblings or ()}
        return single if SINGLE in listed else replace(model, files=tuple(file for file in shards if file in listed))
