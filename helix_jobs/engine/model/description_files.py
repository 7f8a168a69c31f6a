"""The small files that describe a model: bounded in size, and JSON only where they should be.

transformers reads them whole and without a limit, and would wait for ever on a pipe.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.model.model_words import subject
from helix_jobs.errors import ModelError, ModelNotFoundError
from helix_jobs.wording import rough_size

if TYPE_CHECKING:
    from pathlib import Path

_MEGABYTE: Final = 1_000_000
# The largest vocabularies in use (262,144 tokens) take 35 MB as tokenizer.json.
_LIMITS: Final = {
    "tokenizer.json": 100 * _MEGABYTE,
    "tokenizer.model": 50 * _MEGABYTE,
    "vocab.json": 50 * _MEGABYTE,
    "vocab.txt": 50 * _MEGABYTE,
    "merges.txt": 50 * _MEGABYTE,
    "model.safetensors.index.json": 50 * _MEGABYTE,
    "tokenizer_config.json": 20 * _MEGABYTE,
    "added_tokens.json": 20 * _MEGABYTE,
    "special_tokens_map.json": 20 * _MEGABYTE,
    "config.json": 5 * _MEGABYTE,
    "quantize_config.json": 5 * _MEGABYTE,
    "quant_config.json": 5 * _MEGABYTE,
    "hf_quant_config.json": 5 * _MEGABYTE,
    "generation_config.json": 5 * _MEGABYTE,
    "chat_template.jinja": _MEGABYTE,
    "chat_template.json": _MEGABYTE,
    "additional_chat_templates/*.jinja": _MEGABYTE,
}


def check_description_files(name: str, folder: Path) -> None:
    """Refuse a folder in which one of these files is larger than any of its kind, or is not a regular file.

    Raises:
        ModelError: The message names the file and the limit.
    """
    for pattern, limit in _LIMITS.items():
        for path in folder.glob(pattern):
            if not path.is_file():
                raise ModelError(f"{subject(name, path)} is not a regular file; fetch the model again")
            size = path.stat().st_size
            if size > limit:
                raise ModelError(
                    f"{subject(name, path)} has {rough_size(size)}, and no such file has more than "
                    f"{rough_size(limit)}; fetch the model again"
                )


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        ModelNotFoundError: There is no ``config.json``.
        ModelError: It is not a JSON object, or is too large.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(f"model {name} has no config.json; give a transformers model")
    check_description_files(name, folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{subject(name, path)} is not JSON; fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{subject(name, path)} is not a JSON object; fetch the model again")
    return config
