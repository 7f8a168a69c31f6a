"""The model hub: its cache on this machine, a model's description without its weights, and errors in words."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.quantized_checkpoint import (
    QUANTIZATION_FILES,
    check_not_quantized,
    quantized_format,
    without_quantization,
)
from helix_jobs.engine.model.architecture import check_model_type, without_mxfp4
from helix_jobs.engine.model.text_tower import TEXT_TOWERS
from helix_jobs.errors import HelixError, ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from huggingface_hub import HfApi, ModelInfo

# The files that tell whether a model is served.
_CONFIGURATION_FILES: Final = ("config.json", *QUANTIZATION_FILES)
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = f"{_WEIGHTS}.index.json"


@dataclass(frozen=True, slots=True)
class HubDescription:
    """What the hub tells of a model without its weights.

    Attributes:
        folder: Its configuration files, in a directory that is removed with the context of ``hub_description``.
        settings: The content of its config.json.
        sizes: Bytes of each file at the top of the repository, by name.
        kinds: Number of weights by the type they are stored in, as safetensors names it; empty if the hub does not
            tell.
        tensors: Names of its tensors, of a model that also reads images; else empty.
    """

    folder: Path
    settings: Mapping[str, Any]
    sizes: Mapping[str, int]
    kinds: Mapping[str, int]
    tensors: Collection[str]


def check_announced(name: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a quantisation that the small files announce and Helix does not read.

    Raises:
        UnsupportedArchitectureError: See ``check_not_quantized`` and ``quantized_format``.
    """
    found = quantized_format(name, config)
    if found is None:
        check_not_quantized(name, folder, without_mxfp4(config), {}, ())
    else:
        check_not_quantized(name, folder, without_quantization(config), {}, (), read=found.name)


def downloaded(name: str) -> Path | None:
    """The folder in which the hub's library keeps this model on this machine; None if it does not.

    It also keeps descriptions alone, of models that were looked up and then refused; these count as not being there.

    Raises:
        ModelNotFoundError: The name is none that the hub has.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except HFValidationError as error:
        raise _no_name(name) from error
    except LocalEntryNotFoundError:
        return None
    return folder if any(folder.glob("*.safetensors")) else None


@contextlib.contextmanager
def hub_description(name: str) -> Iterator[HubDescription]:
    """Fetch a model's configuration and the list of its files; nothing is put into the hub's cache.

    A configuration in the cache would look like a part of a model that was downloaded.

    Raises:
        ModelNotFoundError: There is no such model, it has only ``.gguf`` files, or the hub cannot be asked.
        UnsupportedArchitectureError, ModelError: As in ``check_model_type`` and ``check_not_quantized``.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    with tempfile.TemporaryDirectory(prefix="helix-hub-") as scratch, without_folder(scratch):
        folder = Path(scratch)
        with hub_errors(name), no_progress_bars():
            info = hub.model_info(name, files_metadata=True)
            files = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
            check_files(name, info)
            for file in files.keys() & {*_CONFIGURATION_FILES}:
                hub.hf_hub_download(name, file, revision=info.sha, local_dir=folder)
            config = check_model_type(name, folder)
            check_announced(name, folder, config)
            kinds = {} if info.safetensors is None else dict(info.safetensors.parameters)
            tensors = (
                _tensor_names(hub, name, str(info.sha), folder, files) if config["model_type"] in TEXT_TOWERS else ()
            )
        yield HubDescription(folder, config, files, kinds, tensors)


def check_files(name: str, info: ModelInfo) -> None:
    """Refuse a repository whose weights are in ``.gguf`` files alone: a GGUF model is one of them, not all.

    Raises:
        ModelNotFoundError: The message names one of the files.
    """
    files = sorted(file.rfilename for file in info.siblings or ())
    gguf = [file for file in files if file.lower().endswith(".gguf")]
    if gguf and not any(file.endswith(".safetensors") for file in files):
        raise ModelNotFoundError(
            f"model {name} has only .gguf files on the hub; name one of them, such as {name}:{gguf[0]:.200}"
        )


def _tensor_names(hub: HfApi, name: str, revision: str, folder: Path, files: Collection[str]) -> Collection[str]:
    """The names of a model's tensors, from its index or the header of its one file; none if it has neither.

    ``get_safetensors_metadata`` would put the index into the cache and ask for the header of each shard.
    """
    if _WEIGHTS in files:
        return hub.parse_safetensors_file_metadata(name, _WEIGHTS, revision=revision).tensors.keys()
    if _INDEX not in files:
        return ()
    index = json.loads(Path(hub.hf_hub_download(name, _INDEX, revision=revision, local_dir=folder)).read_bytes())
    names: dict[str, str] = index["weight_map"]
    return names.keys()


@contextlib.contextmanager
def without_folder(scratch: str) -> Iterator[None]:
    """Leave a directory that is gone by then out of the errors that name a file in it.

    Raises:
        ModelError: The error from inside, of its own class.
    """
    try:
        yield
    except ModelError as error:
        words = str(error).replace(f"{scratch}/", "").replace(f": {scratch}", " on the hub")
        if words == str(error):
            raise
        raise type(error)(words) from error


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Fetch small files without the library's bars."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Say in one sentence what the hub's library raises, and what to do.

    Raises:
        ModelNotFoundError: The library raised an error.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except HelixError:
        raise
    except HFValidationError as error:
        raise _no_name(name) from error
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"model {name} needs its licence accepted on the hub; do so and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"model {name} is no directory here and not on the hub; check the name") from error
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the hub could not be asked
            raise _unreachable(name, error) from error
        raise ModelNotFoundError(f"model {name}: its repository on the hub has no such file; check the name") from error
    except Exception as error:  # each release of the library has another HTTP client, with errors of its own
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"model {name} is no directory here and could not be fetched from the hub ({type(error).__name__}); check the "
        "name and the network, or give a directory"
    )


def _no_name(name: str) -> ModelNotFoundError:
    """The error for a name that only the hub refuses, such as one with two hyphens side by side."""
    return ModelNotFoundError(f"model {name:.200} is no directory here and no name on the hub; check the name")
