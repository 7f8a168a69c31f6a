"""Whether adapters fit a model, and what memory they take there, before a weight of the model is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from helix_jobs.engine.loading.model_sizes import skeleton
from helix_jobs.engine.loading.tensor_names import canonical
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PretrainedConfig

    from helix_jobs.engine.loading.peft_adapter import PeftAdapter
    from helix_jobs.engine.model.description import (
        FeedForwardDescription,
        LayerDescription,
        ModelDescription,
        ProjectionDescription,
    )
    from helix_jobs.engine.weights.adapter import Adapter

# Inputs and outputs.
Shape = tuple[int, int]


def check_adapters(name: str, config: PretrainedConfig, adapters: Sequence[PeftAdapter]) -> int:
    """Refuse adapters that do not fit a model.

    Args:
        name: The model's name as the user gave it.
        config: Its configuration.
        adapters: What is to be served with it.

    Returns:
        Numbers that the adapters take beside the model's weights.

    Raises:
        UnsupportedArchitectureError: One changes a module that Helix computes in another form.
        ModelError: One is for a model of another shape, or lacks weights.
    """
    if not adapters:
        return 0
    shapes, names = _linears(name, config)
    products = list(adapted_products(describe(config)))
    served = {module for product in products for module in product}
    for one in adapters:
        adapter = one.adapter
        missing = [full for short, full in names.items() if short not in adapter.pairs and one.config.changes(full)]
        if missing:
            raise ModelError(
                f"adapter {adapter.name} lacks the weights of {len(missing)} modules that its settings name (first "
                f"{missing[0]:.200}); fetch it again"
            )
        for module, pair in adapter.pairs.items():
            if module not in shapes:
                raise ModelError(
                    f"adapter {adapter.name} changes {module:.200}, and model {name} has no such linear layer; it is "
                    "for another model, or for another release of transformers"
                )
            there = (pair.down.shape[1], pair.up.shape[0])
            if there != shapes[module]:
                raise ModelError(
                    f"adapter {adapter.name} changes {module:.200} from {there[0]} inputs to {there[1]} outputs, and "
                    f"that of model {name} has {shapes[module][0]} and {shapes[module][1]}; it is for another model"
                )
            if module not in served:
                raise UnsupportedArchitectureError(
                    f"adapter {adapter.name} changes {module:.200}, which Helix computes in a form that takes no "
                    "adapter; merge it into the model with merge_and_unload of peft and serve that as the target"
                )
    return sum(_numbers(product, shapes, [one.adapter for one in adapters]) for product in products)


def adapted_products(description: ModelDescription) -> Iterator[tuple[str, ...]]:
    """The modules of each matrix product that adapters may change, as ``LinearOrigin`` names them."""
    if description.layer_inputs is not None:
        yield description.layer_inputs.projection.names
    if description.streams is not None:
        yield from (own.names for own in (*description.streams.expanding, *description.streams.merging))
    for index, layer in enumerate(description.layers):
        for projection in _projections(layer):
            yield tuple(f"{description.stack}.{index}.{name}" for name in projection.names)


def _projections(layer: LayerDescription) -> Iterator[ProjectionDescription]:
    own, recurrence = layer.attention, layer.recurrence
    if own is not None and recurrence is not None:
        # What stands behind both reads their results side by side, in one product of no module.
        yield own.qkv.beside(recurrence.inner)
    elif recurrence is not None:
        yield recurrence.inner
        yield recurrence.out
    elif own is not None:
        yield own.qkv
        if own.latent is not None and own.latent.queries is not None:
            yield own.latent.queries.product
        yield own.out
    if layer.feed_forward is not None and (layer.experts is None or layer.beside is not None):
        yield from _of_feed_forward(layer.feed_forward)
    if layer.experts is not None and layer.experts.shared is not None:
        yield from _of_feed_forward(layer.experts.shared)
    if layer.altup is not None:
        yield layer.altup.laurel_left
        yield layer.altup.laurel_right
    if layer.layer_input is not None:
        yield layer.layer_input.gate
        yield layer.layer_input.projection


def _of_feed_forward(own: FeedForwardDescription) -> Iterator[ProjectionDescription]:
    yield own.inner
    yield own.outer


def _linears(name: str, config: PretrainedConfig) -> tuple[dict[str, Shape], dict[str, str]]:
    """By short names: the shape of each linear layer of the model, and its whole name; the output head has none."""
    shapes, names = {}, {}
    model = skeleton(name, config)
    head = model.get_output_embeddings()
    for module, own in model.named_modules():
        if isinstance(own, nn.Linear | Conv1D) and own is not head:
            names[canonical(module)] = module
        if isinstance(own, nn.Linear):
            shapes[canonical(module)] = (own.in_features, own.out_features)
        elif isinstance(own, Conv1D):
            shapes[canonical(module)] = (own.weight.shape[0], own.weight.shape[1])
    return shapes, names


def _numbers(product: tuple[str, ...], shapes: Mapping[str, Shape], adapters: Sequence[Adapter]) -> int:
    """Of the matrices that are stacked for one product, see ``StackedPairs``."""
    columns = sum(pair.rank for one in adapters for module in product if (pair := one.pairs.get(module)) is not None)
    if not columns:
        return 0
    return columns * (shapes[product[0]][0] + sum(shapes[module][1] for module in product))
