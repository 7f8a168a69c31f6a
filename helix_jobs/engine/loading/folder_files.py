"""Which files of a model directory hold its weights, and what to do with a directory that is no model."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.model_words import subject
from helix_jobs.errors import ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

SINGLE: Final = "model.safetensors"
INDEX: Final = f"{SINGLE}.index.json"
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def not_a_model(name: str, folder: Path) -> ModelNotFoundError:
    """The error for a directory without config.json, saying what to do instead."""
    if (folder / "adapter_config.json").exists():
        return ModelNotFoundError(
            f"{subject(name, folder)} is an adapter; merge it into its base model (merge_and_unload of peft)"
        )
    gguf = _gguf_files(folder)
    if len(gguf) == 1:
        return ModelNotFoundError(f"model {name}: name the GGUF file itself: {gguf[0]}")
    if gguf:
        return ModelNotFoundError(
            f"{subject(name, folder)} has {len(gguf)} GGUF files; name the one you want, such as {gguf[0]}"
        )
    return ModelNotFoundError(f"{subject(name, folder)} has no config.json; give a transformers model directory")


def _gguf_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")


def safetensors_files(name: str, folder: Path) -> list[Path]:
    """The files of a transformers directory that hold its weights.

    Raises:
        ModelNotFoundError: There are none that may be opened, or not all of them.
    """
    single = folder / SINGLE
    if single.is_file():  # transformers prefers it to an index, too
        return [single]
    shards = shard_names(name, folder)
    if shards is not None:
        files = [folder / shard for shard in shards]
        if missing := [file.name for file in files if not file.is_file()]:
            raise ModelNotFoundError(
                f"{subject(name, folder)} lacks {len(missing)} of {len(files)} weight files (first {missing[0]}); "
                "fetch the model again"
            )
        return files
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise ModelNotFoundError(
            f"{subject(name, folder)} has its weights only as pickles, which can run code when opened; "
            "convert them to safetensors (save_pretrained of current transformers writes it)"
        )
    if gguf := _gguf_files(folder):
        raise ModelNotFoundError(f"{subject(name, folder)} has no safetensors; name the GGUF file itself: {gguf[0]}")
    raise ModelNotFoundError(f"{subject(name, folder)} has no model.safetensors; give a directory with weights")


def shard_names(name: str, folder: Path) -> list[str] | None:
    """The files of weights that the index in a directory names, there or not; None if it has no index.

    Raises:
        ModelNotFoundError: The index is damaged, or names other files.
    """
    index = folder / INDEX
    if not index.is_file():
        return None
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelNotFoundError(f"{subject(name, index)} is damaged; fetch the model again") from error
    # transformers joins these names to the folder and opens the files, pickles included.
    if strange := [shard for shard in shards if not _is_shard_name(shard)]:
        raise ModelNotFoundError(
            f"{subject(name, index)} names {strange[0]!r:.100}, and weights are read only from .safetensors files "
            "beside it (a pickle can run code when opened); convert the model to safetensors"
        )
    return shards


def _is_shard_name(shard: object) -> bool:
    """Whether ``shard`` is the plain name of a safetensors file: no path, and no other kind of file."""
    return isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.safetensors", shard, re.ASCII) is not None
