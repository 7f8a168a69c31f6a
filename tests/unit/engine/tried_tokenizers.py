"""A fixture for tests that load many models with one and the same tokenizer, and are about something else.

Loading tries a tokenizer and its chat template in two processes of their own, which takes longer than loading a tiny
model. What the processes said of a tokenizer does not change, so each is asked once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helix_jobs.engine.loading import model_source
from helix_jobs.engine.text.prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.text.prompt_encoder import FoundTemplate

_try_tokenizer = model_source.try_tokenizer
_probe = PromptEncoder.probe
_sound: set[tuple[tuple[str, bytes], ...]] = set()
_found: dict[bytes, FoundTemplate | None] = {}


def _try_once(name: str, folder: Path) -> None:
    files = tuple((path.name, path.read_bytes()) for path in sorted(folder.glob("*token*.json")))
    if files not in _sound:
        _try_tokenizer(name, folder)
        _sound.add(files)


def _probe_once(encoder: PromptEncoder) -> FoundTemplate | None:
    setup = encoder._setup
    if setup not in _found:
        _found[setup] = _probe(encoder)
    return _found[setup]


@pytest.fixture
def _tokenizers_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "try_tokenizer", _try_once)
    monkeypatch.setattr(PromptEncoder, "probe", _probe_once)
