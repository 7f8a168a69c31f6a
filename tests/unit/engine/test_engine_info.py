"""What an engine says about itself: how it was built, and where the time of its steps went."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.config import SpeculationConfig
from tests.unit.engine.kernels.native_models import compiled_engine, compiled_models
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import PROMPT, request, tiny_engine


@pytest.mark.parametrize(
    ("config", "draft", "depth"),
    [
        ({"adaptive": True}, "same", None),
        ({"adaptive": True, "drafters": ["lookup"]}, None, None),
        ({"adaptive": True}, None, 0),
        ({"depth": 3}, "same", 3),
        ({"depth": 3, "drafters": ["lookup"]}, None, 3),
        ({"depth": 3}, None, 0),
        ({"depth": 0, "adaptive": True, "drafters": ["lookup"]}, "same", 0),
    ],
)
def test_the_depth_is_what_the_drafts_there_are_allow(config, draft, depth):
    info = tiny_engine(draft=draft, **config).info
    assert (info.speculation_depth, info.kernels) == (depth, "torch")


def test_compiled_kernels_are_named(compiled_folder):
    engine = compiled_engine(
        compiled_models(compiled_folder, torch.float32), speculation=SpeculationConfig(depth=0), num_blocks=8
    )
    assert engine.info.kernels == "compiled"


def test_attention_outside_of_steps_is_not_counted_to_them():
    """Passes that measure costs, and those of steps that fail, run on the same clock."""
    engine = tiny_engine(draft=None, depth=0)
    clock = opened(engine).target._clock
    assert clock is not None
    clock.start()
    clock._started -= 1000.0
    clock.stop()
    engine.generate([request("a", PROMPT, max_tokens=4)])
    counters = engine.counters()
    assert 0.0 < counters.attention_seconds < counters.target_seconds
