"""StoredParts: the weights of one module of a loaded model, read by their names and put where the decoder computes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.model.activations import ACTIVATIONS, XIELU, SparseActivation, XieluActivation
from helix_jobs.engine.model.linear_origin import LinearOrigin
from helix_jobs.engine.model.norms import HeadLayerNorm, LayerNorm, RmsNorm
from helix_jobs.engine.model.placement import Float16OverflowError
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.block_stack import BlockStack
from helix_jobs.engine.weights.level_layouts import FLOAT_DTYPES, FLOAT_LAYOUTS
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.engine.weights.router_linear import RouterLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from helix_jobs.engine.model.description import (
        FeedForwardDescription,
        NormDescription,
        ProjectionDescription,
        RowFactor,
    )
    from helix_jobs.engine.model.feed_forward import Activation
    from helix_jobs.engine.model.linear_origin import Origins
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.model.placement import Placement
    from helix_jobs.engine.weights.block_matrix import Matrix
    from helix_jobs.engine.weights.linear import Linear

# Weights that are multiplied at once: what lies in between takes 8 MB.
_TILE_WEIGHTS: Final = 1 << 20


class StoredParts:
    """The parts inside one module, such as a layer.

    Args:
        inside: The module.
        place: Where they go.
        origins: Takes note of what linear layers are made of; None where nobody asks.
    """

    def __init__(self, inside: nn.Module, place: Placement, origins: Origins | None = None) -> None:
        self._inside = inside
        self._place = place
        self._origins = origins

    def module(self, name: str) -> Any:  # noqa: ANN401  (a module's attributes are Tensor | Module)
        """The module of this name, relative to this one."""
        return self._inside.get_submodule(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter or buffer of this name, relative to this module, as it is stored; blocks as float32."""
        path, _, own = name.rpartition(".")
        found: Any = getattr(self.module(path), own)
        made: torch.Tensor = found.dense(torch.float32) if isinstance(found, BlockMatrix) else found
        return made

    def placed(self, name: str) -> torch.Tensor | None:
        """The parameter or buffer of this name on the decoder's device, or None where its module has none."""
        path, _, own = name.rpartition(".")
        found = getattr(self.module(path), own)
        return None if found is None else self._place.take(found)

    def stacked(
        self, name: str, index: int, *, has_bias: bool, is_transposed: bool, is_interleaved: bool = False
    ) -> Linear:
        """One of many equal layers that are stored as one parameter.

        Args:
            name: The parameter, ``[count, out_features, in_features]`` or a ``BlockStack``; its biases have this name
                and ``_bias``.
            index: Which layer.
            has_bias: Whether there are biases, ``[count, out_features]``.
            is_transposed: Whether each layer is stored as ``[in_features, out_features]``; blocks never are.
            is_interleaved: Whether the rows of a gate and of an up projection alternate; those of blocks do not where
                each projection is a part of its own.
        """
        place = self._place
        stored: Any = self.tensor(name)
        bias = self.tensor(f"{name}_bias")[index] if has_bias else None
        if isinstance(stored, BlockStack):
            return self._stacked_blocks(stored.matrix(index), bias, is_interleaved=is_interleaved)
        weight = stored[index]
        # Rows and columns that a reader has exchanged are a view, and kernels read rows where they lie.
        if not (is_transposed or is_interleaved) and weight.is_contiguous():
            return DenseLinear(place.take(weight), None if bias is None else place.take(bias))
        weight = place.cast(weight)
        weight = weight.t() if is_transposed else weight
        if is_interleaved:
            weight = torch.cat((weight[::2], weight[1::2]))
            bias = None if bias is None else torch.cat((bias[::2], bias[1::2]))
        return DenseLinear(place.move(weight.contiguous()), None if bias is None else place.take(bias))

    def rows_of(self, names: Sequence[str], index: int, count: int, *, is_transposed: bool = False) -> Linear:
        """One of many equal layers whose rows stand one layer behind another.

        Args:
            names: The parameters, ``[count * rows, columns]``; the layer's outputs are those of all of them.
            index: Which layer.
            count: How many there are.
            is_transposed: Whether its rows are those of the transposed matrix.
        """
        place, own = self._place, []
        for name in names:
            stored = self.tensor(name)
            own.append(place.cast(stored.view(count, -1, stored.shape[1])[index]))
        weight = torch.cat([one.t() if is_transposed else one for one in own])
        return DenseLinear(place.move(weight.contiguous()), None)

    def _stacked_blocks(self, parts: list[BlockMatrix], bias: torch.Tensor | None, *, is_interleaved: bool) -> Linear:
        place = self._place
        if is_interleaved:
            if len(parts) == 1:  # of several, each is one of the projections
                (part,) = parts
                parts = [BlockMatrix(part.layout, torch.cat((part.data[::2], part.data[1::2])))]
            bias = None if bias is None else torch.cat((bias[::2], bias[1::2]))
        placed = None if bias is None else place.take(bias)
        if place.keeps_blocks:
            return PackedLinear([part.to(place.device) for part in parts], placed)
        return DenseLinear(place.move(torch.cat([place.cast(part) for part in parts])), placed)

    def linear(self, projection: ProjectionDescription, order: torch.Tensor | None = None) -> Linear:
        """The modules of a projection as one layer.

        Args:
            projection: Their names.
            order: ``[out_features]`` which of their rows stands where, each row once; None for their own order.
        """
        modules = [self.module(name) for name in projection.names]
        made = self._linear(projection, modules, order)
        if self._origins is not None:
            prefix = self._origins.prefix
            # A matrix in blocks is stored as it is multiplied.
            sizes = tuple(
                module.weight.shape[projection.is_transposed and isinstance(module.weight, torch.Tensor)]
                for module in modules
            )
            names = tuple(prefix + name for name in projection.names)
            self._origins.note(made, LinearOrigin(names, sizes, order, projection.factors))
        return made

    def _linear(self, projection: ProjectionDescription, modules: Sequence[Any], order: torch.Tensor | None) -> Linear:
        place, stored = self._place, [module.weight for module in modules]
        keeps_blocks = place.keeps_blocks and not projection.factors
        if keeps_blocks and any(isinstance(weight, BlockMatrix) for weight in stored):
            stored = [_as_blocks(weight) for weight in stored]
        if keeps_blocks and all(isinstance(weight, BlockMatrix) for weight in stored):
            parts = [weight.to(place.device) for weight in stored]
            packed = PackedLinear(parts, self._stacked_bias(modules))
            return packed if order is None else packed.with_outputs(order)
        if projection.factors:
            assert order is None, "no family orders rows that have factors"
            assert not projection.is_transposed, "no family transposes matrices that have factors"
            return self._multiplied(modules, projection.factors)
        if len(modules) == 1 and order is None and not projection.is_transposed:
            return DenseLinear(place.take(modules[0].weight), self._bias(modules[0]))
        # A matrix in blocks is stored as it is multiplied.
        weights = [
            place.cast(one).t().contiguous()
            if projection.is_transposed and isinstance(one, torch.Tensor)
            else place.cast(one)
            for one in stored
        ]
        biases = [None if module.bias is None else place.cast(module.bias) for module in modules]
        made = DenseLinear.stacked(weights, biases)
        weight, bias = made.weight, made.bias
        if order is not None:
            assert len(order) == len(weight), "an order names every row"
            weight, bias = weight[order], None if bias is None else bias[order]
        elif len(modules) == 1 and bias is not None:
            return DenseLinear(place.move(weight), place.take(modules[0].bias))
        return DenseLinear(place.move(weight), None if bias is None else place.move(bias))

    def summed(self, projections: Sequence[ProjectionDescription]) -> Linear:
        """Projections whose results are added, as one layer; it reads their inputs side by side."""
        host = StoredParts(self._inside, replace(self._place, device=torch.device("cpu"), keeps_blocks=False))
        made = [host.linear(projection) for projection in projections]
        parts = [one for one in made if isinstance(one, DenseLinear)]
        assert len(parts) == len(made), "nothing is kept in blocks"
        biases = [one.bias for one in parts if one.bias is not None]
        weight = torch.cat([one.weight for one in parts], dim=1)
        return DenseLinear(self._place.move(weight), self._place.move(torch.stack(biases).sum(0)) if biases else None)

    def head(self, module: nn.Linear, embedding: Matrix | None) -> Linear:
        """The output head.

        Args:
            module: As it is stored.
            embedding: The embedding if it is the head, whose memory both then share; else None.
        """
        weight = self._place.take_matrix(module.weight) if embedding is None else embedding
        if isinstance(weight, BlockMatrix):
            return PackedLinear([weight], self._bias(module))
        return DenseLinear(weight, self._bias(module))

    def norm(self, norm: NormDescription, size: int, order: torch.Tensor | None = None) -> Norm:
        """A norm.

        Args:
            norm: Its description.
            size: Width of what it normalises, for a norm without weight.
            order: ``[head_dim]`` which of a head's dimensions stands where, for a norm of heads; None for their order.
        """
        place = self._place
        if norm.heads:
            return HeadLayerNorm(torch.stack([place.take(self.module(name).weight) for name in norm.heads]), norm.eps)
        if norm.name is None:
            weight, bias = place.move(torch.ones(size, dtype=place.dtype)), None
        else:
            module = self.module(norm.name)
            weight, bias = self._norm_weight(module.weight, norm, order), self._bias(module)
        if norm.kind == "rms":
            return RmsNorm(weight, norm.eps)
        if weight.dim() > 1:
            return HeadLayerNorm(weight, norm.eps)
        return LayerNorm(weight, bias, norm.eps)

    def router_linear(self, name: str) -> RouterLinear:
        """The module of this name as a small product that keeps its form."""
        weight = self.placed(f"{name}.weight")
        assert weight is not None, "a product has a weight"
        return RouterLinear(weight)

    def activation(self, own: FeedForwardDescription) -> Activation:
        """The activation of a feed-forward; that of xIELU holds weights of its own."""
        if own.activation == XIELU:
            return XieluActivation.of(self.module(own.activation_module), self._place)
        plain = ACTIVATIONS[own.activation]
        return SparseActivation.of(plain, own.sparsity, self._place.dtype) if own.sparsity else plain

    def _norm_weight(self, stored: torch.Tensor, norm: NormDescription, order: torch.Tensor | None) -> torch.Tensor:
        place = self._place
        if norm.offset == 0.0 and order is None:
            return place.take(stored)
        # An RMS norm's sum would not survive rounding to bfloat16. Layer norms round it, as transformers does.
        has_sum = place.has_whole_norms and norm.offset != 0.0
        weight = stored.detach().float() if has_sum and norm.kind == "rms" else place.cast(stored)
        if order is not None:
            weight = weight.view(-1, len(order))[:, order].view(stored.shape)
        if norm.offset != 0.0 and not has_sum:
            weight = weight.float() + norm.offset if norm.kind == "rms" else weight + norm.offset
        return place.move(weight)

    def _multiplied(self, modules: Sequence[Any], factors: Sequence[RowFactor]) -> DenseLinear:
        """Modules side by side as one layer, each of its outputs times a factor.

        Products are rounded once, a few rows at a time, so that little of a matrix is in memory in float32.

        Raises:
            Float16OverflowError: A product lies beyond float16's range.

        Trade-off: the decoder multiplies nothing more in a step. In float16 a factor far below one costs small weights
        some of their digits, as numbers below 6e-5 have fewer there.
        """
        place = self._place
        sizes, columns = [module.weight.shape[0] for module in modules], modules[0].weight.shape[1]
        assert sum(one.count for one in factors) == sum(sizes), "factors are those of all rows"
        # [out_features, 1], [out_features]
        of_weights = torch.cat([torch.full((one.count, 1), one.weight) for one in factors])
        of_biases = torch.cat([torch.full((one.count,), one.bias) for one in factors])
        made = torch.empty((sum(sizes), columns), dtype=place.dtype)
        first, count = 0, max(1, _TILE_WEIGHTS // columns)
        for module, size in zip(modules, sizes, strict=True):
            stored = module.weight.dense(torch.float32) if isinstance(module.weight, BlockMatrix) else module.weight
            for start in range(0, size, count):
                rows = slice(first + start, first + min(start + count, size))
                made[rows] = stored[start : start + count].detach().float() * of_weights[rows]
            first += size
        # What has to lie in float16's range are the products: factors take weights into it and out of it.
        if place.dtype == torch.float16 and not bool(torch.isfinite(made).all()):
            raise Float16OverflowError
        weight = place.move(made)
        biases = [getattr(module, "bias", None) for module in modules]
        if all(bias is None for bias in biases):
            return DenseLinear(weight, None)
        parts = [
            torch.zeros(size) if bias is None else bias.detach().float()
            for bias, size in zip(biases, sizes, strict=True)
        ]
        return DenseLinear(weight, place.take(torch.cat(parts) * of_biases))

    def _stacked_bias(self, modules: Sequence[Any]) -> torch.Tensor | None:
        """The biases side by side, with zeros where a module has none."""
        biases = [self._bias(module) for module in modules]
        if all(bias is None for bias in biases):
            return None
        place = self._place
        sizes = [module.weight.shape[0] for module in modules]
        zeros = [torch.zeros(size, dtype=place.dtype, device=place.device) for size in sizes]
        return torch.cat([zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True)])

    def _bias(self, module: Any) -> torch.Tensor | None:  # noqa: ANN401  (whatever has a bias, or none)
        bias = getattr(module, "bias", None)
        return None if bias is None else self._place.take(bias)


def _as_blocks(weight: torch.Tensor | BlockMatrix) -> torch.Tensor | BlockMatrix:
    """A matrix of 16-bit numbers as blocks of such, beside matrices in blocks; others as they are."""
    if isinstance(weight, BlockMatrix):
        return weight
    layout = next((one for kind, one in FLOAT_LAYOUTS.items() if FLOAT_DTYPES[kind] is weight.dtype), None)
    if layout is None or weight.shape[1] % layout.weights:
        return weight
    return BlockMatrix(layout, weight.detach().contiguous().view(torch.uint8))
