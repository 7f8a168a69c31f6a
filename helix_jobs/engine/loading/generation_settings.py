"""The settings of generation beside a model's weights: Helix reads from them which tokens end an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from transformers import GenerationConfig

from helix_jobs.engine.loading.pretrained import quiet_transformers
from helix_jobs.engine.model.model_words import in_words
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_FILE: Final = "generation_config.json"


def read_generation(name: str, folder: Path) -> GenerationConfig | None:
    """Read them; None if there are none. transformers then makes them up from config.json.

    Raises:
        ModelError: They cannot be read. transformers alone would go on as if there were none, and answers might not end
            where they should.
    """
    if not (folder / _FILE).is_file():
        return None
    try:
        with quiet_transformers():
            return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ModelError(f"model {name}: {_FILE} cannot be read ({in_words(error)}); fetch the model again") from error
