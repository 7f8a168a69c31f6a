"""Recurrences written plainly, token by token in float64, beside the engine's own that are made of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

from helix_jobs.engine.recurrence.delta_rule import DeltaHeads, DeltaRule
from helix_jobs.engine.recurrence.mamba2 import Mamba2, MambaHeads
from helix_jobs.engine.recurrence.selective_scan import Selection, SelectiveScan
from helix_jobs.engine.recurrence.short_conv import ShortConv

if TYPE_CHECKING:
    from helix_jobs.engine.recurrence.recurrence import Recurrence

EPS = 1e-5


class PlainRecurrence(Protocol):
    """What a recurrence means, and the weights that it is made of."""

    @property
    def inputs(self) -> int:
        """Numbers that it reads of a token."""

    @property
    def outputs(self) -> int:
        """Numbers that it yields for a token."""

    def made(self) -> Recurrence:
        """The engine's."""

    def results(self, projected: torch.Tensor) -> torch.Tensor:
        """From ``[n, inputs]`` of one sequence to ``[n, outputs]``."""


@dataclass(frozen=True, eq=False)
class PlainShortConv:
    """``C * conv(B * x)``; ``taps`` are ``[taps, width]``, the oldest input's first."""

    taps: torch.Tensor
    bias: torch.Tensor | None

    @property
    def inputs(self) -> int:
        return 3 * self.taps.shape[1]

    @property
    def outputs(self) -> int:
        return self.taps.shape[1]

    def made(self) -> ShortConv:
        return ShortConv(self.taps, self.bias)

    def results(self, projected: torch.Tensor) -> torch.Tensor:
        before, after, values = projected.chunk(3, dim=1)
        return after * convolved(before * values, self.taps, self.bias)


@dataclass(frozen=True, eq=False)
class PlainDeltaRule:
    """The gated delta rule over ``heads``, each with a state from keys to values."""

    heads: DeltaHeads
    taps: torch.Tensor
    decay: torch.Tensor
    decay_bias: torch.Tensor
    norm: torch.Tensor
    rate_scale: float

    @property
    def inputs(self) -> int:
        return sum(self.heads.widths) + 2 * self.heads.num_value_heads + self.outputs

    @property
    def outputs(self) -> int:
        return self.heads.num_value_heads * self.heads.value_dim

    def made(self) -> DeltaRule:
        return DeltaRule(
            self.heads,
            taps=self.taps,
            activation=functional.silu,
            decay=self.decay,
            decay_bias=self.decay_bias,
            norm=self.norm,
            eps=EPS,
            rate_scale=self.rate_scale,
        )

    def results(self, projected: torch.Tensor) -> torch.Tensor:
        heads, count = self.heads, self.heads.num_value_heads
        mixed, rates, decays, gates = projected.split((sum(heads.widths), count, count, self.outputs), dim=1)
        queries, keys, values = silu(convolved(mixed, self.taps, None)).split(heads.widths, dim=1)
        rows = []
        states = torch.zeros(count, heads.key_dim, heads.value_dim, dtype=torch.float64)
        for position in range(len(projected)):
            row = []
            for head in range(count):
                shared = head // (count // heads.num_key_heads)
                query, key = (part[position].view(-1, heads.key_dim)[shared] for part in (queries, keys))
                query, key = (part / (part @ part + 1e-6).sqrt() for part in (query, key))
                value = values[position].view(count, -1)[head]
                step = softplus(decays[position, head] + self.decay_bias[head].double())
                states[head] *= torch.exp(-torch.exp(self.decay[head].double()) * step)
                rate = torch.sigmoid(rates[position, head]) * self.rate_scale
                states[head] += rate * torch.outer(key, value - key @ states[head])
                row.append(query @ states[head] * heads.key_dim**-0.5)
            rows.append(torch.stack(row))
        # [n, num_value_heads, value_dim]
        found = torch.stack(rows)
        found = found / ((found * found).mean(dim=-1, keepdim=True) + EPS).sqrt() * self.norm.double()
        return found.flatten(1) * silu(gates)


@dataclass(frozen=True, eq=False)
class PlainMamba2:
    """Mamba-2 over ``heads``; ``norm`` is that of each group of heads, or None."""

    heads: MambaHeads
    taps: torch.Tensor
    taps_bias: torch.Tensor | None
    decay: torch.Tensor
    step_bias: torch.Tensor
    skip: torch.Tensor
    norm: torch.Tensor | None
    is_gated_last: bool

    @property
    def inputs(self) -> int:
        return self.outputs + sum(self.heads.widths) + self.heads.num_heads

    @property
    def outputs(self) -> int:
        return self.heads.width

    def made(self) -> Mamba2:
        return Mamba2(
            self.heads,
            taps=self.taps,
            taps_bias=self.taps_bias,
            activation=functional.silu,
            decay=self.decay,
            step_bias=self.step_bias,
            skip=self.skip,
            norm=self.norm,
            eps=EPS,
            is_gated_last=self.is_gated_last,
        )

    def results(self, projected: torch.Tensor) -> torch.Tensor:
        heads = self.heads
        gates, mixed, steps = projected.split((heads.width, sum(heads.widths), heads.num_heads), dim=1)
        values, keys, queries = silu(convolved(mixed, self.taps, self.taps_bias)).split(heads.widths, dim=1)
        rows = []
        states = torch.zeros(heads.num_heads, heads.state_dim, heads.head_dim, dtype=torch.float64)
        for position in range(len(projected)):
            row = []
            for head in range(heads.num_heads):
                group = head // (heads.num_heads // heads.num_groups)
                key, query = (part[position].view(heads.num_groups, -1)[group] for part in (keys, queries))
                value = values[position].view(heads.num_heads, -1)[head]
                step = softplus(steps[position, head] + self.step_bias[head].double())
                states[head] *= torch.exp(-torch.exp(self.decay[head].double()) * step)
                states[head] += torch.outer(key, value) * step
                row.append(query @ states[head] + value * self.skip[head].double())
            rows.append(torch.cat(row))
        found, gate = torch.stack(rows), silu(gates)
        if self.norm is None:
            return found * gate
        return self._normed(found) * gate if self.is_gated_last else self._normed(found * gate)

    def _normed(self, rows: torch.Tensor) -> torch.Tensor:
        assert self.norm is not None
        groups = rows.view(len(rows), self.heads.num_groups, -1)
        return (groups / ((groups * groups).mean(-1, keepdim=True) + EPS).sqrt()).flatten(1) * self.norm.double()


@dataclass(frozen=True, eq=False)
class PlainSelectiveScan:
    """Mamba; ``matrix``, ``steps``, ``step_bias`` and ``norms`` are those of a ``Selection``."""

    taps: torch.Tensor
    taps_bias: torch.Tensor | None
    matrix: torch.Tensor
    steps: torch.Tensor
    step_bias: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    decay: torch.Tensor
    skip: torch.Tensor

    @property
    def inputs(self) -> int:
        return 2 * self.outputs

    @property
    def outputs(self) -> int:
        return self.taps.shape[1]

    def made(self) -> SelectiveScan:
        return SelectiveScan(
            taps=self.taps,
            taps_bias=self.taps_bias,
            activation=functional.silu,
            selection=Selection(
                matrix=self.matrix, steps=self.steps, step_bias=self.step_bias, norms=self.norms, eps=EPS
            ),
            decay=self.decay,
            skip=self.skip,
        )

    def results(self, projected: torch.Tensor) -> torch.Tensor:
        mixed, gates = projected.chunk(2, dim=1)
        channels = silu(convolved(mixed, self.taps, self.taps_bias))
        rows = []
        state = torch.zeros(self.decay.shape, dtype=torch.float64)
        for row in channels:
            chosen = (self.matrix.double() @ row).split([len(norm) for norm in self.norms])
            normed = (
                part / ((part * part).mean() + EPS).sqrt() * norm.double()
                for part, norm in zip(chosen, self.norms, strict=True)
            )
            narrow, key, query = normed
            steps = softplus(self.steps.double() @ narrow + self.step_bias.double())
            found = []
            for channel, (value, step) in enumerate(zip(row, steps, strict=True)):
                state[channel] *= torch.exp(-torch.exp(self.decay[channel].double()) * step)
                state[channel] += step * value * key
                found.append(state[channel] @ query + self.skip[channel].double() * value)
            rows.append(torch.stack(found))
        return torch.stack(rows) * silu(gates)


def convolved(rows: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Each column over time: a row's result is the sum of itself and those right before it, each times its tap."""
    found = torch.zeros_like(rows) if bias is None else bias.double().repeat(len(rows), 1)
    for position in range(len(rows)):
        for back in range(min(position + 1, len(taps))):
            found[position] += rows[position - back] * taps[len(taps) - 1 - back].double()
    return found


def silu(rows: torch.Tensor) -> torch.Tensor:
    return rows * torch.sigmoid(rows)


def softplus(number: torch.Tensor) -> torch.Tensor:
    return number.clamp(min=0) + torch.log1p(torch.exp(-number.abs()))
