"""A step's memory is bounded whatever the prompts' lengths, and the cache leaves room for it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helix_jobs.engine.attention import groups
from helix_jobs.engine.attention.cache_geometry import BlockRows, CacheGeometry
from helix_jobs.engine.attention.groups import plan_groups
from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE, CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.loading.cache_size import choose_cache
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model import step_memory
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.layer_sections import sections_of
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.model.step_memory import StepWidths, mask_elements, step_bytes
from tests.unit.engine.tiny_models import VOCAB_SIZE, copy_of, ragged_logits, reference_logits, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB, GIB = 1 << 20, 1 << 30


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor) and one._base is None]
        self.num_bytes = max([self.num_bytes, *(one.nbytes for one in made)])
        return result


def storages(values: Any) -> list[torch.UntypedStorage]:
    """Those of all tensors in arguments or results of an operator; packed weights have none."""
    return [one.untyped_storage() for one in tree_leaves(values) if isinstance(one, torch.Tensor) and not one.is_mkldnn]


def identity(storage: torch.UntypedStorage) -> int:
    """The same for all objects that stand for one storage; its address would be zero on the meta device."""
    return storage._cdata


class LiveBytes(TorchDispatchMode):
    """Notes the most bytes that tensors made by operators take together at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = self.most = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = self._storages | set(map(identity, storages((args, kwargs))))
        for storage in storages(result):
            key = identity(storage)
            if key in known:  # a view, or computed in place
                continue
            self._storages.add(key)
            self.num_bytes += storage.nbytes()
            weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.most = max(self.most, self.num_bytes)
        return result

    def _freed(self, storage: int, num_bytes: int) -> None:
        self._storages.remove(storage)
        self.num_bytes -= num_bytes


def largest_of(slices: list[TokenSlice], num_blocks: int, **config: Any) -> int:
    """Bytes of the largest tensor in one step of a model with one layer; its cache is there before."""
    decoder = build_decoder(tiny_model(num_hidden_layers=1, max_position_embeddings=1 << 15, **config))
    runner = ModelRunner(decoder, CacheConfig(num_blocks=num_blocks, block_size=16))
    with torch.no_grad(), LargestTensor() as largest:
        runner.forward(runner.plan(slices), [[1] * part.num_tokens for part in slices], [0])
    return largest.num_bytes


@pytest.mark.thorough
def test_a_long_prompt_takes_no_more_memory_than_a_group_may() -> None:
    chunk = TokenSlice(1024, (1 << 14) - 1024, range(1024))
    assert largest_of([chunk], 1024) <= 64 * MIB


@pytest.mark.thorough
def test_many_long_contexts_are_not_gathered_all_at_once() -> None:
    decodes = [TokenSlice(1, 8191, range(512))] * 12
    shape = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    assert largest_of(decodes, 512, **shape) <= 256 * MIB


@pytest.mark.parametrize(
    ("scores", "gathered"), [(1, 1 << 26), (200, 1 << 26), (3000, 1 << 26), (1 << 24, 1), (1 << 24, 1500), (900, 700)]
)
def test_dividing_groups_changes_no_value(monkeypatch: pytest.MonkeyPatch, scores: int, gathered: int) -> None:
    monkeypatch.setattr(groups, "MAX_GROUP_SCORES", scores)
    monkeypatch.setattr(groups, "MAX_GATHERED_ELEMENTS", gathered)
    model = tiny_model(seed=3)
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (1, 3, 90, 33, 3, 90, 64)]
    for prompt, logits in zip(prompts, ragged_logits(build_decoder(copy_of(model)), prompts, chunk=40), strict=True):
        torch.testing.assert_close(logits, reference_logits(model, prompt), rtol=1e-4, atol=1e-4)


def config_of(**limits: Any) -> EngineConfig:
    return EngineConfig(**{"max_batch_size": 4, "token_budget": 64, **limits})


@pytest.mark.parametrize("limits", [{"token_budget": 1024}, {"max_batch_size": 64}])
def test_larger_steps_are_reckoned_larger(limits: dict[str, int]) -> None:
    decoder = build_decoder(tiny_model())
    assert step_bytes(decoder, config_of(**limits), 256) > step_bytes(decoder, config_of(), 256)
    assert step_bytes(decoder, config_of(), 1 << 22) > step_bytes(decoder, config_of(), 1 << 20)


def test_a_steps_experts_are_reckoned() -> None:
    one, three = (build_decoder(tiny_model("mixtral", num_experts_per_tok=count)) for count in (1, 3))
    config = config_of(token_budget=1 << 20)  # so large that attention takes less
    # Rows that two more experts read and yield, in float32.
    assert step_bytes(three, config, 16) - step_bytes(one, config, 16) >= 2 * (1 << 20) * 2 * 48 * 4


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")
def test_a_steps_latents_are_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and results of many heads take most of the memory here: scores and gathered keys are few."""
    for module in (groups, step_memory):
        monkeypatch.setattr(module, "MAX_GROUP_SCORES", 1 << 14)
        monkeypatch.setattr(module, "MAX_GATHERED_ELEMENTS", 1 << 12)
    decoder = build_decoder(tiny_model("youtu", num_hidden_layers=1, num_attention_heads=64, num_key_value_heads=64))
    runner = ModelRunner(decoder, CacheConfig(num_blocks=24, block_size=16))
    lengths = [64, 40, 23, 64, 9, 40]
    plan = runner.plan([TokenSlice(length, 0, range(4 * i, 4 * i + 4)) for i, length in enumerate(lengths)])
    assert len(plan.attention.groups) > 1
    assert plan.attention.output_rows is not None, "results are put into the order of tokens"
    no_drafts = SpeculationConfig(depth=0, adaptive=False)
    config = config_of(max_batch_size=1, token_budget=sum(lengths), speculation=no_drafts)
    with torch.no_grad(), LiveBytes() as live:
        runner.forward(plan, [[1] * length for length in lengths], [0])
    assert live.most <= step_bytes(decoder, config, max(lengths)) <= 1.1 * live.most


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(("batch", "budget", "max_keys"), [(5, 100, 300), (32, 512, 1024), (200, 1024, 5000)])
@pytest.mark.parametrize("ceiling", [0, 4, 9])
def test_the_largest_steps_masks_are_reckoned(
    batch: int, budget: int, max_keys: int, ceiling: int, *, repeats: bool
) -> None:
    config = config_of(
        max_batch_size=batch, token_budget=budget, speculation=SpeculationConfig(depth=ceiling, adaptive=False)
    )
    blocks = range(-(-max_keys // DEFAULT_BLOCK_SIZE))
    decodes = [TokenSlice(1 + ceiling, max_keys - 1 - ceiling, blocks)] * batch
    prompts = [TokenSlice(budget, max_keys - budget, blocks)] if budget < max_keys else []
    geometry = CacheGeometry.uniform(num_layers=1, num_kv_heads=2, head_dim=8)
    spare = len(blocks) if repeats else None
    rows = (BlockRows(2, 2),)
    plan = plan_groups(
        [*decodes, *prompts], geometry, DEFAULT_BLOCK_SIZE, num_heads=4, block_rows=rows, spare_block=spare
    )
    held = sum(group.num_rows * group.num_queries * group.num_keys for group in plan.attention.groups)
    reckoned = mask_elements(config, max_keys, repeats=repeats)
    # Not in every case the same: a prompt's last piece is padded, and its first ones do not see every key.
    assert 0.5 * reckoned <= held <= 1.1 * reckoned


def test_sections_of_one_window_share_their_masks() -> None:
    """Three layers without a window and one with it: four sections hold the masks of two windows."""
    max_keys, ceiling = 512, 2
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    decoder = build_decoder(tiny_model("gemma3_text", sliding_window=64, num_hidden_layers=4, layer_types=kinds))
    sections = sections_of(decoder, None, max_keys)
    assert sections.windows == (None, None, None, 64)
    speculation = SpeculationConfig(depth=ceiling, adaptive=False)
    config = config_of(max_batch_size=8, token_budget=128, speculation=speculation)
    blocks = range(max_keys // DEFAULT_BLOCK_SIZE)
    prompt, *decodes = (
        TokenSlice(count, max_keys - count, blocks, further=(blocks,) * 3) for count in (128, *[1 + ceiling] * 8)
    )
    cache = CacheConfig(num_blocks=len(blocks), block_size=DEFAULT_BLOCK_SIZE)
    plan = ModelRunner(decoder, cache, sections=sections.of_target).plan([*decodes, prompt])
    layout = plan.on_device(iter([torch.from_numpy(array) for array in plan.arrays()]))
    parts: list[Any] = [one.attention for one in (layout, *layout.further)]
    masks = {mask.data_ptr(): mask for part in parts for group in part.groups for mask in group.masks.values()}
    assert len(masks) == len(parts[0].groups) + len(parts[3].groups)
    reckoned = StepWidths.of(decoder).num_windows * mask_elements(config, max_keys, repeats=False)
    # A window's masks are smaller than reckoned: what it hides is not gathered.
    assert 0.5 * reckoned <= sum(mask.numel() for mask in masks.values()) <= reckoned


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (GIB, 0.8),  # less than a fifth is needed, and a fifth is left
        (4 * GIB, 0.6),
        (9 * GIB, 0.5),  # the largest step may fail, and is repeated with a smaller batch
    ],
)
def test_the_cache_leaves_room_for_a_step(step: int, share: float) -> None:
    cache = choose_cache(
        block_bytes=1 << 20,
        kv_cache_mb=None,
        free_bytes=10 * GIB,
        on_host=False,
        max_batch_size=1 << 10,
        max_model_len=1 << 20,
        depth=0,
        step_bytes=step,
    )
    assert cache.num_blocks == int(share * 10 * GIB) >> 20
