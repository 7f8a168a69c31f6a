"""Adapters into a decoder: the pairs of all of them are stacked for each of its linear layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.weights.adapted_linear import AdaptedLinear, StackedPairs
from helix_jobs.engine.weights.adapter_rows import AdapterSwitch
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.model.linear_origin import LinearOrigin
    from helix_jobs.engine.weights.adapter import Adapter, LoraPair
    from helix_jobs.engine.weights.linear import Linear


def with_adapters(decoder: Decoder, adapters: Sequence[Adapter]) -> Decoder:
    """The same model with adapters, which passes choose row by row. Its weights may have any form.

    Call it last: what exchanges linear layers does not look into an adapted one.

    Args:
        decoder: The model.
        adapters: In the order in which rows count them, from 1.

    Raises:
        ModelError: A weight of an adapter does not fit into the dtype of the model's activations.
    """
    switch = AdapterSwitch(len(adapters))
    linears = decoder.linears()
    pairs = [None if origin is None else _stacked(decoder, origin, adapters) for origin in decoder.origins]
    changed: dict[int, Linear] = {
        id(linear): AdaptedLinear(linear, own, switch)
        for linear, own in zip(linears, pairs, strict=True)
        if own is not None
    }
    return replace(decoder.with_linears(lambda linear: changed.get(id(linear), linear)), adapters=switch)


def adaptable(decoder: Decoder) -> frozenset[str]:
    """The modules that adapters may change."""
    return frozenset(name for origin in decoder.origins if origin is not None for name in origin.modules)


def _stacked(decoder: Decoder, origin: LinearOrigin, adapters: Sequence[Adapter]) -> StackedPairs | None:
    """The pairs that change one layer; None if no adapter does."""
    downs, ups, ranks = [], [], []
    for adapter in adapters:
        rank, start = 0, 0
        for module, size in zip(origin.modules, origin.sizes, strict=True):
            pair = adapter.pairs.get(module)
            if pair is not None:
                downs.append(_cast(pair.down, decoder.dtype, adapter.name, module))
                up = _placed(pair, start, sum(origin.sizes))
                ups.append(_cast(origin.arranged(up), decoder.dtype, adapter.name, module))
                rank += pair.rank
            start += size
        ranks.append(rank)
    if not downs:
        return None
    device = decoder.device
    columns = torch.arange(1, len(adapters) + 1).repeat_interleave(torch.tensor(ranks))
    return StackedPairs(
        down=torch.cat(downs).to(device),
        up=torch.cat(ups).to(device),
        ranks=tuple(ranks),
        columns=columns.to(device),
        zero=torch.zeros(1, dtype=decoder.dtype).to(device),
    )


def _placed(pair: LoraPair, start: int, width: int) -> torch.Tensor:
    """``[rank, width]``: the second matrix, scaled, in the columns of its module's outputs; float32."""
    made = torch.zeros((pair.rank, width))
    made[:, start : start + pair.up.shape[0]] = pair.up.float().t() * pair.scale
    return made


def _cast(weight: torch.Tensor, dtype: torch.dtype, adapter: str, module: str) -> torch.Tensor:
    values = weight.to(dtype)
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            f"adapter {adapter}: a weight of {module} is no number, or lies beyond the range of "
            f"{str(dtype).removeprefix('torch.')}; use dtype bfloat16 or float32, or train the adapter again"
        )
    return values
