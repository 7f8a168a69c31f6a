"""The memory that one step may need beside weights and cache: sizing the cache must leave it free."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.attention.groups import MAX_GATHERED_ELEMENTS, MAX_GROUP_SCORES
from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE
from helix_jobs.engine.devices.devices import compiles_each_shape
from helix_jobs.engine.devices.shape_sizes import power_size, query_size, row_size
from helix_jobs.engine.model.experts import most_rows
from helix_jobs.engine.model.experts_beside import experts_of

if TYPE_CHECKING:
    from helix_jobs.engine.attention.cache_geometry import CacheGeometry
    from helix_jobs.engine.config import EngineConfig
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.recurrence.recurrence import StateShape

_FLOAT32_BYTES: Final = 4
# Hidden states alive at once in a layer: the residual, the normalised input, and one more beside the widest product.
_HIDDEN_COPIES: Final = 3
# Inputs of a recurrent layer alive at once: as they come, in order of computation, convolved, by head, and products of
# them; and its states, as they are read, faded and written.
_INPUT_COPIES: Final = 8
_STATE_COPIES: Final = 3
_LAYER_INPUT_COPIES: Final = 3
# What a layer reads and predicts, what it corrects, and one sum of each.
_STREAM_COPIES: Final = 4
# Queries and results of attention; and the results of latent attention.
_ATTENDED_COPIES: Final = 2
_RESULT_COPIES: Final = 2
# Logits of prompts that a step may score, 64 MiB in float32. Trade-off: more would score long prompts in fewer steps,
# but every step leaves room for them, whether prompts are scored or not.
_MAX_SCORED_LOGITS: Final = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWidths:
    """What the memory of a model's steps depends on.

    Attributes:
        geometry: Shapes of its keys and values.
        num_heads: Query heads.
        num_windows: Different windows of its layers, full attention counted as one.
        hidden_size: Width of the residual stream.
        widest: Outputs of a layer's widest product.
        vocab_size: Logits of a row.
        itemsize: Bytes of an activation.
        repeats: Whether shapes are padded so that they repeat, as in ``plan_groups``.
        chosen_experts: Experts of each token; 0 without experts.
        num_experts: Experts of a layer; 0 without experts.
        experts_at_once: Whether all experts' products are in memory at once (compiled kernels on a CPU).
        states: The state of each recurrent layer.
        layer_inputs: Elements of a token's inputs of all layers beside the residual; 0 without such.
        num_streams: Residual streams.
    """

    geometry: CacheGeometry
    num_heads: int
    num_windows: int
    hidden_size: int
    widest: int
    vocab_size: int
    itemsize: int
    repeats: bool
    chosen_experts: int = 0
    num_experts: int = 0
    experts_at_once: bool = False
    states: tuple[StateShape, ...] = ()
    layer_inputs: int = 0
    num_streams: int = 1

    @classmethod
    def of(cls, decoder: Decoder) -> StepWidths:
        """Those of a loaded model."""
        parts = (experts_of(layer.feed_forward) for layer in decoder.layers)
        experts = [part for part in parts if part is not None]
        return cls(
            geometry=decoder.geometry,
            num_heads=decoder.attention.spec.num_heads,
            num_windows=len(decoder.attention.spec.windows),
            hidden_size=decoder.embedding.shape[1],
            widest=max(linear.out_features for layer in decoder.layers for linear in layer.linears()),
            vocab_size=decoder.vocab_size,
            itemsize=decoder.dtype.itemsize,
            repeats=compiles_each_shape(decoder.device),
            chosen_experts=max((one.top_k for one in experts), default=0),
            num_experts=max((len(one.experts) for one in experts), default=0),
            experts_at_once=decoder.device.type == "cpu",
            states=tuple(one.shape for one in decoder.recurrences),
            layer_inputs=0 if decoder.layer_inputs is None else decoder.layer_inputs.table.shape[1],
            num_streams=1 if decoder.streams is None else decoder.streams.count,
        )

    def step_bytes(self, config: EngineConfig, max_keys: int) -> int:
        """See the function of this name."""
        geometry, itemsize, num_heads = self.geometry, self.itemsize, self.num_heads
        queries = 1 + config.speculation.ceiling
        num_rows = config.max_batch_size * queries
        num_tokens = config.token_budget + num_rows
        # The widest product of a layer is in memory together with its activation.
        layer = num_tokens * (_HIDDEN_COPIES * self.hidden_size + 2 * self.widest) * itemsize
        # What experts read, what they yield, and that once more while it is put side by side.
        expert_rows = most_rows(num_tokens * self.chosen_experts, self.num_experts)
        layer += expert_rows * _HIDDEN_COPIES * self.hidden_size * itemsize
        if self.experts_at_once:
            layer += num_tokens * self.chosen_experts * 2 * self.widest * itemsize
        layer += self._recurrent_bytes(config, num_tokens)
        # In memory through all layers; and while they are made, what is looked up, and what is projected.
        inputs = num_tokens * _LAYER_INPUT_COPIES * self.layer_inputs * itemsize
        if self.num_streams > 1:
            inputs += num_tokens * _STREAM_COPIES * self.num_streams * self.hidden_size * itemsize
        # The softmax reads one copy of the scores and writes another. One query's scores are never divided, however
        # many its keys.
        scores = max(MAX_GROUP_SCORES, num_heads * max_keys) * 2 * _FLOAT32_BYTES
        one_sequence = geometry.widest * max_keys
        gathered = min(max(MAX_GATHERED_ELEMENTS, one_sequence), config.max_batch_size * one_sequence) * 2 * itemsize
        # Plain products keep one step's masks for all layers. The fused operator makes some anew in each layer, which
        # the scores that it does not make leave room for.
        masks = mask_elements(config, max_keys, repeats=self.repeats) * self.num_windows * _FLOAT32_BYTES
        attended = num_tokens * self._attended_elements() * itemsize
        # Rows for the host are widened before they are downloaded.
        num_rows += scored_rows(self.vocab_size, config)
        logits = num_rows * self.vocab_size * (itemsize + _FLOAT32_BYTES)
        return max(layer, scores + gathered + attended) + inputs + masks + logits

    def _attended_elements(self) -> int:
        """The most elements of a token that attention has in memory beside scores and gathered keys.

        Queries and results. Queries and results of latents are much wider than the product that they are made of. There
        the product counts too, and the results twice: when they are put side by side, in the order of tokens, or in
        that of heads. The queries are gone by then, and leave room for what pads a group.
        """
        head_dim = max(self.geometry.head_dims)
        latents = [shape.value_width for shape in self.geometry.layers if not shape.has_values]
        if not latents:
            return _ATTENDED_COPIES * self.num_heads * head_dim
        # A second product yields queries alone; the latent and its key stand behind them.
        product = self.widest + head_dim
        return product + self.num_heads * (head_dim + _RESULT_COPIES * max(latents))

    def _recurrent_bytes(self, config: EngineConfig, num_tokens: int) -> int:
        """The most bytes that a recurrent layer has in memory beside its products: inputs in float32, and states."""
        inputs = max((shape.width for shape in self.states), default=0) * num_tokens * _INPUT_COPIES
        states = max((prod(shape.matrix) for shape in self.states if shape.matrix), default=0) * config.max_batch_size
        return (inputs + states * _STATE_COPIES) * _FLOAT32_BYTES


def step_bytes(decoder: Decoder, config: EngineConfig, max_keys: int) -> int:
    """The most bytes that a model's largest step has in memory at once, weights and cache aside.

    The largest step computes a whole token budget of prompts beside a full batch that drafts to its ceiling, all of it
    with the longest context. Few steps come near it. Attention is reckoned as plain products, which take the most;
    compiled kernels make no scores and no masks.

    Args:
        decoder: The model.
        config: Bounds the step.
        max_keys: Most tokens of one sequence that the cache can hold.
    """
    return StepWidths.of(decoder).step_bytes(config, max_keys)


def scored_rows(vocab_size: int, config: EngineConfig) -> int:
    """Prompt positions whose logits one step may take for their log probabilities, at least 1.

    Args:
        vocab_size: Logits of a row.
        config: Bounds the step.
    """
    return min(config.token_budget, max(1, _MAX_SCORED_LOGITS // vocab_size))


def mask_elements(config: EngineConfig, max_keys: int, *, repeats: bool) -> int:
    """Elements that the masks of the largest step have together, for layers of one window.

    Args:
        config: Bounds the step.
        max_keys: Most tokens of one sequence that the cache can hold.
        repeats: Groups are padded so that their shapes repeat, as in ``plan_groups``.
    """
    queries = 1 + config.speculation.ceiling
    if not repeats:
        return (config.token_budget + config.max_batch_size * queries) * max_keys
    num_blocks = -(-max_keys // DEFAULT_BLOCK_SIZE)
    chunk = query_size(config.token_budget)
    verified = row_size(config.max_batch_size) * query_size(queries)
    return (chunk + verified) * power_size(num_blocks) * DEFAULT_BLOCK_SIZE
