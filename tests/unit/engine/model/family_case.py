"""Case: a family with some settings, its tiny model, and what transformers computes with it."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from transformers import CONFIG_MAPPING

from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.families.registry import FAMILIES
from tests.unit.engine.tiny_models import (
    VOCAB_SIZE,
    batched_reference_logits,
    reference_logits,
    roughen,
    tiny_model,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Case:
    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    changes: bool = True  # what the family computes without the settings

    def __str__(self) -> str:
        names = [
            f"{k}={'+'.join(map(str, v.values())) if isinstance(v, dict) else v}" for k, v in self.settings.items()
        ]
        return f"{self.architecture}({','.join(names)})"

    def model(self) -> Any:
        """One model for all tests of the case; they copy it before they take it apart."""
        if self.architecture not in CONFIG_MAPPING or (
            FAMILIES[self.architecture].needs_transformers_5 and TRANSFORMERS_MAJOR < 5
        ):
            pytest.skip(f"{self.architecture} is not served with this transformers")
        return _model(self)

    def expected(self) -> list[torch.Tensor]:
        """transformers' logits for each of ``prompts()``."""
        return _expected(self)


@functools.cache
def plain_model(architecture: str) -> Any:
    """A family's model without any case's settings, made once for all its cases."""
    return Case(architecture).model()


@functools.cache
def plain_logits(architecture: str) -> torch.Tensor:
    """What it says of the fourth of ``prompts()``."""
    return reference_logits(plain_model(architecture), prompts()[3])


@functools.lru_cache(maxsize=4)
def _model(case: Case) -> Any:
    return roughen(tiny_model(case.architecture, seed=3, **case.settings))


@functools.lru_cache(maxsize=4)
def _expected(case: Case) -> list[torch.Tensor]:
    return batched_reference_logits(case.model(), prompts())


def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (1, 9, 33, 60, 4)]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
