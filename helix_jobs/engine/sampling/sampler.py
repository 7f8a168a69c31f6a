"""Logits -> processed probabilities -> token, as pure functions of CPU tensors.

The *processed distribution* of a row is the one sampled from: shaped logits (see ``logits_processors``), then
temperature, top-k, top-p, min-p, in transformers' order. Target and draft rows are processed alike. Everything is fp32;
cumulative sums are fp64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.sampling_params import SamplingParams

# Top-p first tries this many of the most likely tokens; if any row needs more, all are sorted.
_TOP_P_CANDIDATES: Final = 1024


def argmax_of_rows(logits: torch.Tensor) -> list[int]:
    """The most likely token of each row; of equals, the first.

    numpy compares many numbers at once, on one thread: here a seventh of the time of torch's argmax, and with few rows
    less still, as torch splits each of them among threads.

    Args:
        logits: ``[num_rows, vocab_size]`` fp32 on the CPU, without NaN.
    """
    ids: list[int] = logits.numpy().argmax(axis=1).tolist()
    return ids


def processed_probs(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Turn logits of sampled rows into processed distributions.

    Tokens exactly as likely as the last token that top-k or top-p keeps are kept as well.

    Args:
        logits: ``[num_rows, vocab_size]`` fp32, shaped.
        params: One per row, each with a temperature above 0.

    Returns:
        ``[num_rows, vocab_size]`` fp32 probabilities.
    """
    vocab_size = logits.shape[1]
    temperatures = torch.tensor([p.temperature for p in params], dtype=torch.float32)
    # Shift before scaling, so that a tiny temperature cannot overflow.
    shifted = logits - logits.max(dim=1, keepdim=True).values
    probs = torch.softmax(shifted / temperatures[:, None], dim=1)
    top_ks = torch.tensor([min(p.top_k or vocab_size, vocab_size) for p in params])
    if bool((top_ks < vocab_size).any()):
        rows = (top_ks < vocab_size).nonzero()[:, 0]
        probs[rows] = _keep_top_k(probs[rows], top_ks[rows])
    top_ps = torch.tensor([p.top_p for p in params], dtype=torch.float64)
    if bool((top_ps < 1.0).any()):
        rows = (top_ps < 1.0).nonzero()[:, 0]
        probs[rows] = _keep_top_p(probs[rows], top_ps[rows])
    min_ps = torch.tensor([p.min_p for p in params], dtype=torch.float32)
    if bool((min_ps > 0.0).any()):
        rows = (min_ps > 0.0).nonzero()[:, 0]
        chosen = probs[rows]
        floor = min_ps[rows, None] * chosen.max(dim=1, keepdim=True).values
        probs[rows] = _renormalise(torch.where(chosen >= floor, chosen, 0.0))
    return probs


def sample(probs: torch.Tensor, uniforms: Sequence[float]) -> list[int]:
    """Draw one token a row by inverting the cumulative distribution. Tokens of probability zero are never drawn.

    Args:
        probs: ``[num_rows, vocab_size]``, not necessarily normalised, each row with some mass.
        uniforms: One number in [0, 1) per row.
    """
    cumulative = probs.to(torch.float64).cumsum(dim=1).contiguous()
    totals = cumulative[:, -1:].contiguous()
    targets = (torch.tensor(uniforms, dtype=torch.float64)[:, None] * totals).contiguous()
    tokens = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    # u * total may round up to the total itself; the last token with any mass is then the right one.
    last = torch.searchsorted(cumulative, totals, right=False)[:, 0]
    ids: list[int] = torch.minimum(tokens, last).tolist()
    return ids


def _keep_top_k(probs: torch.Tensor, top_ks: torch.Tensor) -> torch.Tensor:
    values = probs.topk(int(top_ks.max()), dim=1).values
    threshold = values.gather(1, top_ks[:, None] - 1)
    return _renormalise(torch.where(probs >= threshold, probs, 0.0))


def _keep_top_p(probs: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    vocab_size = probs.shape[1]
    candidates = min(_TOP_P_CANDIDATES, vocab_size)
    while True:
        values = probs.topk(candidates, dim=1).values
        cumulative = values.to(torch.float64).cumsum(dim=1)
        if candidates == vocab_size or bool((cumulative[:, -1] >= top_ps).all()):
            break
        candidates = vocab_size
    # The smallest set with at least ``top_p`` mass ends with the first token that reaches it.
    last = (cumulative < top_ps[:, None]).sum(dim=1, keepdim=True).clamp(max=candidates - 1)
    threshold = values.gather(1, last)
    return _renormalise(torch.where(probs >= threshold, probs, 0.0))


def _renormalise(probs: torch.Tensor) -> torch.Tensor:
    """Divide each row by its total.

    torch's sum splits a lone long row among threads, but adds up each of several rows in one order. A lone row is
    passed twice, so that its total is the same as in a larger batch.
    """
    rows = probs if len(probs) != 1 else probs.expand(2, -1)
    return probs / rows.sum(dim=1, keepdim=True)[: len(probs)]
