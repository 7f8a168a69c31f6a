"""Adapters as people have them: trained-looking, made and computed by PEFT."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.loading.peft_adapter import read_adapter
from helix_jobs.engine.model.adapters import with_adapters
from helix_jobs.engine.model.assembly import build_decoder
from tests.unit.engine.tiny_models import copy_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from helix_jobs.engine.loading.peft_adapter import PeftAdapter
    from helix_jobs.engine.model.decoder import Decoder

# A test extra, as it is the reference alone.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERYTHING = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def peft_model(model: Any, seed: int = 1, *, spread: float = 0.3, **settings: Any) -> Any:
    """PEFT's model with one adapter of random weights around a copy of this model."""
    made = wrapped(copy_of(model), **{"r": 4, "lora_alpha": 6, **settings})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return made.eval().requires_grad_(requires_grad=False)


def wrapped(model: Any, **settings: Any) -> Any:
    """PEFT's model around this one; the warnings of its own innards are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, peft.LoraConfig(**settings))


def save_adapter(folder: Path, made: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(folder)
    return folder


def read_all(folder: Path, peft_models: Mapping[str, Any]) -> list[PeftAdapter]:
    """The adapters of these models, by the names that they are to have."""
    return [read_adapter(name, save_adapter(folder / name, made)) for name, made in peft_models.items()]


def adapted_decoder(model: Any, adapters: Sequence[PeftAdapter]) -> Decoder:
    return with_adapters(build_decoder(copy_of(model), keeps_origins=True), [one.adapter for one in adapters])
