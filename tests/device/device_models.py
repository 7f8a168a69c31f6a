"""Models made on the spot: known shapes with random weights, so that a check needs no download."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama  # noqa: F401  (before garbage is looked for, which it makes slow)

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
from helix_jobs.engine.loading.reproducible import make_draft_reproducible, make_reproducible
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helix_jobs.engine.request import GenerationResult

MAX_CONTEXT = 1 << 17
# What was found out about products, for as long as the check runs.
_TRIALS = tempfile.TemporaryDirectory(prefix="helix-device-check-")


@dataclass(frozen=True)
class Shape:
    """What a model's speed and memory depend on."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = True

    @property
    def num_parameters(self) -> int:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * 2 * (queries + keys)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + (1 if self.tied else 2) * self.vocab * self.hidden

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=MAX_CONTEXT,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=0,
        )


@dataclass(frozen=True)
class Shapes:
    """A very small model, a small one, a draft and a large one."""

    small: Shape
    one: Shape
    draft: Shape
    large: Shape


REAL = Shapes(
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152),
    Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256),
    Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936),
    Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, tied=False),
)
_TINY = Shape("tiny", 2, 48, 96, 6, 2, 8, 512)
TINY = Shapes(_TINY, _TINY, replace(_TINY, name="tiny draft", layers=1, vocab=448), replace(_TINY, tied=False))


def separate(shape: Shape) -> Shape:
    """With a head of its own: one tied to random embeddings repeats the last token for ever."""
    return replace(shape, tied=False)


@torch.no_grad()
def make(shape: Shape, dtype: torch.dtype, device: torch.device, *, noise: float = 0.0, values: bool = True) -> Any:
    """A transformers model with random weights, always the same; some ``noise`` makes one that often agrees.

    Without ``values`` it holds whatever its memory did: enough to see where memory goes, and made in no time.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype, attn_implementation="eager")
    model.to_empty(device=device)
    model.tie_weights()
    assert sum(one.numel() for one in model.parameters()) == shape.num_parameters, "the shape says how large it is"
    generator = torch.Generator(device=device if device.type in ("cpu", "cuda") else "cpu").manual_seed(7)

    # So wide that layers change what comes in, whatever their size, and outputs do not go in circles.
    spread = 2.2 / shape.hidden**0.5

    def normal(like: torch.Tensor, std: float) -> torch.Tensor:
        made = torch.empty(like.shape, dtype=like.dtype, device=generator.device)
        return made.normal_(std=std, generator=generator).to(like.device)

    for name, parameter in model.named_parameters() if values else ():
        if parameter.dim() == 1:
            parameter.copy_(torch.ones_like(parameter))
        else:
            parameter.copy_(normal(parameter, 1.0 if "embed" in name else spread))
    if noise:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(normal(parameter, noise * spread))
    rotary = model.model.rotary_emb
    inverse, _ = rotary.compute_default_rope_parameters(model.config, device=torch.device("cpu"))
    rotary.inv_freq = inverse.to(device)
    return model.eval().requires_grad_(requires_grad=False)


def loaded(name: str, model: Any) -> LoadedModel:
    """As the loader leaves a model. ``model`` is taken apart."""
    decoder = build_decoder(model)
    decoder.pack()
    return LoadedModel(name, decoder)


def engine_of(
    target: LoadedModel,
    draft: LoadedModel | None,
    speculation: SpeculationConfig,
    *,
    max_batch_size: int = 32,
    num_blocks: int = 2048,
) -> Engine:
    vocab_size = target.decoder.vocab_size
    backend = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="t0")
    both = LoadedModels(
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        eos_token_ids=frozenset(),
        vocab_size=vocab_size,
        max_context=MAX_CONTEXT,
    )
    # Where a worker's engine would promise equal answers in any company, so does this one.
    both = make_reproducible(both, "auto", Path(_TRIALS.name))
    if not speculation.is_adaptive:
        both = make_draft_reproducible(both, "auto", Path(_TRIALS.name))
    return Engine(
        both, EngineConfig(max_batch_size=max_batch_size, speculation=speculation), CacheConfig(num_blocks=num_blocks)
    )


def prompts(count: int, longest: int, vocab_size: int, seed: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, vocab_size) for _ in range(rng.randrange(3, longest))] for _ in range(count)]


def requests(texts: Iterable[list[int]], max_tokens: int, prefix: str = "", **params: Any) -> list[Request]:
    return [
        Request(
            request_id=f"{prefix}{i}",
            prompt_token_ids=tuple(text),
            seed=i,
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **params),
        )
        for i, text in enumerate(texts)
    ]


def outputs(results: Iterable[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.output_token_ids for result in results]


@torch.no_grad()
def reference(model: Any, texts: list[list[int]], max_tokens: int) -> list[tuple[tuple[int, ...], list[float]]]:
    """transformers, greedy, one at a time: tokens, and at each the gap between the two best logits over the best."""
    made = []
    for text in texts:
        ids = torch.tensor([text], device=model.device)
        cache, tokens, gaps = None, list[int](), list[float]()
        for _ in range(max_tokens):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = out.logits[0, -1].float().topk(2)
            values = best.values.tolist()
            gaps.append((values[0] - values[1]) / max(1e-6, abs(values[0])))
            tokens.append(int(best.indices[0]))
            ids = best.indices[:1].view(1, 1)
        made.append((tuple(tokens), gaps))
    return made
