"""ModelSizes: how large a model is, from its configuration alone: weights, keys and values, and a step's shapes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from helix_jobs.engine.devices.devices import compiles_each_shape
from helix_jobs.engine.kernels.cpu.int8_decoder import NativeInt8Decoder
from helix_jobs.engine.loading.stored_tensor import NO_BLOCKS, StoredBlocks
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.placement import Placement
from helix_jobs.engine.model.recurrences import build_recurrence
from helix_jobs.engine.model.step_memory import StepWidths
from helix_jobs.engine.model.stored_parts import StoredParts
from helix_jobs.engine.weights.int8_linear import packs_int8
from helix_jobs.engine.weights.level_layouts import FLOAT_LAYOUTS
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Container

    from transformers import PretrainedConfig

    from helix_jobs.engine.attention.cache_geometry import CacheGeometry
    from helix_jobs.engine.loading.checkpoint import Checkpoint
    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.recurrence.recurrence import StateShape

# Bytes of a row's scale, of its bias and of its sum in an int8 layer.
_INT8_VECTOR_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Numbers of weights, and the shapes that memory depends on.

    Attributes:
        weights: All weights; a head that is the embedding counts once.
        products: Weights of the matrix products, the output head included.
        outputs: Rows that the matrix products yield for each token, summed over all of them.
        biases: Weights of their biases.
        tied: Weights of the output head if it is the embedding, else 0.
        geometry: Shapes of keys and values.
        num_heads: Query heads.
        windows: The window of each layer that has attention; None for all keys.
        hidden_size: Width of the residual stream.
        chosen_experts: Experts of each token; 0 without experts.
        num_experts: Experts of a layer; 0 without experts.
        states: The state of each recurrent layer.
        widest: Outputs of a layer's widest product. Trade-off: the products of one module that read the residual
            stream are taken as one, so it may be a little more than the decoder's own.
        vocab_size: Logits of a row.
        layer_inputs: See ``StepWidths``.
        num_streams: See ``StepWidths``.
        context: The most tokens of a sequence, prompt and output together.
        decoded: Weights of the matrix products that do not stay in blocks.
        blocks: The weights in blocks which can be multiplied as they are.
        has_small_steps: Whether compiled code computes its int8 layers in one call, see ``NativeInt8Decoder``.
    """

    weights: int
    products: int
    outputs: int
    biases: int
    tied: int
    geometry: CacheGeometry
    num_heads: int
    windows: tuple[int | None, ...]
    hidden_size: int
    chosen_experts: int
    num_experts: int
    states: tuple[StateShape, ...]
    widest: int
    vocab_size: int
    layer_inputs: int
    num_streams: int
    context: int
    decoded: int = 0
    blocks: StoredBlocks = NO_BLOCKS
    has_small_steps: bool = False

    def dense_bytes(self, dtype: torch.dtype, *, packs: bool) -> int:
        """Bytes of the whole model in ``dtype``.

        Args:
            dtype: Of its weights.
            packs: Whether its products are laid out anew, which parts a tied head from the embedding.
        """
        return (self.weights + (self.tied if packs else 0)) * dtype.itemsize

    def packed_bytes(self, dtype: torch.dtype, *, packs: bool) -> int:
        """Bytes of the whole model with its blocks as they are stored, and ``dtype`` elsewhere.

        Args:
            dtype: Of activations, and of weights that are in no blocks.
            packs: As in ``dense_bytes``; a head that is tied to blocks shares them.
        """
        own, kind = self.blocks, self.blocks.embedding
        # Blocks of 16 bits are made beside float32 alone.
        shares = kind is not None and (kind not in FLOAT_LAYOUTS or dtype == torch.float32)
        tied = self.tied if packs and not shares else 0
        return own.nbytes + (self.weights - own.weights + tied) * dtype.itemsize

    @property
    def int8_products_bytes(self) -> int:
        """Bytes of its matrix products in int8: weights, a scale for each row, biases."""
        return self.products + _INT8_VECTOR_BYTES * (self.outputs + self.biases)

    @property
    def int8_kernel_bytes(self) -> int:
        """Bytes that compiled kernels hold beside packed int8 products: the layers' rows, and the sums of rows.

        Trade-off: sums are not counted of a model whose layers are not computed in one call. They are less than a
        hundredth of its weights.
        """
        if not self.has_small_steps:
            return 0
        rows = self.outputs - self.vocab_size
        sums = rows if packs_int8() else rows + self.outputs
        weights = self.products - self.vocab_size * self.hidden_size if packs_int8() else 0
        return weights + _INT8_VECTOR_BYTES * sums

    def int8_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the whole model with its matrix products in int8, and ``dtype`` elsewhere.

        Trade-off: an embedding that a GGUF file stores in blocks stays so, and takes less than is counted here.
        """
        return self.int8_products_bytes + (self.weights - self.products + self.tied - self.biases) * dtype.itemsize

    def step_widths(self, dtype: torch.dtype, device: torch.device) -> StepWidths:
        """What the memory of a step depends on."""
        return StepWidths(
            geometry=self.geometry,
            num_heads=self.num_heads,
            num_windows=len(set(self.windows)),
            hidden_size=self.hidden_size,
            widest=self.widest,
            vocab_size=self.vocab_size,
            itemsize=dtype.itemsize,
            repeats=compiles_each_shape(device),
            chosen_experts=self.chosen_experts,
            num_experts=self.num_experts,
            experts_at_once=device.type == "cpu",
            states=self.states,
            layer_inputs=self.layer_inputs,
            num_streams=self.num_streams,
        )


def skeleton(name: str, config: PretrainedConfig) -> Any:  # noqa: ANN401  (its class is the architecture's)
    """The transformers model that a configuration describes, without memory for its weights.

    Args:
        name: The model's name as the user gave it.
        config: Configuration of a served architecture, with a number of layers that can be built.

    Raises:
        ModelError: Its numbers do not fit together.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    except Exception as error:  # numbers that do not fit together may fail anywhere in it
        raise ModelError(
            f"model {name}: its configuration describes no model that can be built ({type(error).__name__}: "
            f"{' '.join(str(error).split()):.200}); fetch the model again"
        ) from error


def sizes_of(checkpoint: Checkpoint, config: PretrainedConfig, model: Any) -> ModelSizes:  # noqa: ANN401  (as above)
    """How large a model is whose files are here. ``model`` is the configuration's ``skeleton``."""
    description = describe(config)
    embedding = f"{description.embedding}.weight"
    blocks = checkpoint.without(description.decoded_matrices).blocks_beside(embedding)
    return replace(_count(model, config), blocks=blocks)


def model_sizes(name: str, config: PretrainedConfig) -> ModelSizes:
    """Count the weights that a configuration describes.

    Args:
        name: The model's name as the user gave it.
        config: Configuration that ``check_architecture`` has passed.

    Raises:
        ModelError: As in ``skeleton``.
    """
    return _count(skeleton(name, config), config)


def _count(model: Any, config: PretrainedConfig) -> ModelSizes:  # noqa: ANN401  (as above)
    description = describe(config)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    experts = [layer.experts for layer in description.layers if layer.experts is not None]
    products = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.endswith(tuple(description.plain_matrices))
    }
    linears, decoded = list(products.values()), tuple(description.decoded_matrices)
    biases = [module.bias.numel() for module in linears if module.bias is not None]
    stacks = _stacks(model, description)
    chosen = [own.router.top_k for own in experts]
    hidden_size, inputs = embedding.shape[1], description.layer_inputs
    joined = _joined(model, description)
    return ModelSizes(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        products=sum(module.weight.numel() for module in linears) + sum(stack.weights for stack in stacks),
        outputs=sum(_outputs(module) for module in linears)
        - len(joined) * hidden_size
        + sum(stack.num_experts * stack.outputs for stack in stacks),
        biases=sum(biases) + sum(stack.num_experts * stack.outputs for stack in stacks if stack.has_bias),
        tied=head.numel() if head is embedding else 0,
        geometry=description.geometry,
        num_heads=description.num_heads,
        windows=tuple(own.window for own in description.attentions),
        hidden_size=hidden_size,
        chosen_experts=max(chosen, default=0),
        num_experts=max((stack.num_experts for stack in stacks), default=0),
        states=_states(model, description),
        widest=max(
            *(_widest(module, hidden_size, set(linears)) for module in model.base_model.modules()),
            *(stack.outputs for stack in stacks),
            *joined,
        ),
        vocab_size=head.shape[0],
        layer_inputs=0 if inputs is None else inputs.width * len(description.layers),
        num_streams=1 if description.streams is None else 1 + len(description.streams.expanding),
        context=int(config.max_position_embeddings),
        decoded=sum(module.weight.numel() for name, module in products.items() if name.endswith(decoded)),
        has_small_steps=NativeInt8Decoder.describes(description),
    )


def _states(model: Any, description: ModelDescription) -> tuple[StateShape, ...]:  # noqa: ANN401  (as above)
    place = Placement.of(model)
    layers = zip(model.base_model.get_submodule(description.stack), description.layers, strict=True)
    return tuple(
        build_recurrence(StoredParts(layer, place), own.recurrence).shape
        for layer, own in layers
        if own.recurrence is not None
    )


def _joined(model: Any, description: ModelDescription) -> list[int]:  # noqa: ANN401  (as above)
    """Outputs of the first product of each layer with attention beside a recurrence.

    Their products are joined: those that read the same input, and those whose results are added.
    """
    return [
        sum(_outputs(layer.get_submodule(name)) for name in own.attention.qkv.beside(own.recurrence.inner).names)
        for layer, own in zip(model.base_model.get_submodule(description.stack), description.layers, strict=True)
        if own.attention is not None and own.recurrence is not None
    ]


@dataclass(frozen=True, slots=True)
class _Stack:
    """Matrices of a layer's experts, stacked in one parameter."""

    num_experts: int
    outputs: int
    weights: int
    has_bias: bool


def _stacks(model: Any, description: ModelDescription) -> list[_Stack]:  # noqa: ANN401  (as above)
    found = []
    for layer, own in zip(model.base_model.get_submodule(description.stack), description.layers, strict=True):
        if own.experts is None:
            continue
        if own.experts.up is not None:
            count = layer.get_parameter(own.experts.router.weight).shape[0]
            gates, back = (layer.get_parameter(name) for name in (own.experts.inner, own.experts.outer))
            found.append(_Stack(count, 2 * gates.shape[0] // count, 2 * gates.numel(), has_bias=False))
            found.append(_Stack(count, back.shape[1], back.numel(), has_bias=False))
            continue
        for name in (own.experts.inner, own.experts.outer):
            stacked = layer.get_parameter(name)
            outputs = stacked.shape[2 if own.experts.is_transposed else 1]
            found.append(_Stack(stacked.shape[0], outputs, stacked.numel(), own.experts.has_bias))
    return found


def _outputs(module: Any) -> int:  # noqa: ANN401  (a Linear or a Conv1D)
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)


def _widest(parent: nn.Module, hidden_size: int, products: Container[nn.Module]) -> int:
    """Outputs of the products in this module that read the residual stream, or of its widest product."""
    linears = [child for child in parent.children() if isinstance(child, nn.Linear | Conv1D) and child in products]
    stacked = sum(_outputs(linear) for linear in linears if linear.weight.numel() == _outputs(linear) * hidden_size)
    return max([stacked, *map(_outputs, linears)])
