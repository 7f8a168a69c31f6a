"""The order of a stacked product's rows: as checkpoints store them, and as attention reads them."""

from __future__ import annotations

import torch


def pair_order(head_dim: int, rotary_dim: int) -> torch.Tensor:
    """Which dimension of a head stands where, so that pairs stored side by side lie half the rotated width apart.

    Scores do not change: they are sums over a head's dimensions, and queries and keys are reordered alike.

    Args:
        head_dim: Width of a head.
        rotary_dim: Its leading dimensions that are rotated, in pairs.

    Returns:
        ``[head_dim]`` int64.
    """
    rotated = torch.arange(rotary_dim).view(-1, 2).t().reshape(-1)
    return torch.cat((rotated, torch.arange(rotary_dim, head_dim)))


def latent_order(num_heads: int, plain_dim: int, rotary_dim: int) -> torch.Tensor:
    """Which stored row stands where in heads whose last dimensions are rotated, in pairs stored side by side.

    Args:
        num_heads: Heads, one after another.
        plain_dim: Leading dimensions of each, which stay.
        rotary_dim: Its other dimensions.

    Returns:
        ``[num_heads * (plain_dim + rotary_dim)]`` int64.
    """
    head = torch.cat((torch.arange(plain_dim), plain_dim + pair_order(rotary_dim, rotary_dim)))
    return torch.arange(num_heads * len(head)).view(num_heads, -1)[:, head].reshape(-1)


def gated_order(num_heads: int, num_kv_heads: int, head_dim: int) -> torch.Tensor:
    """Which stored row stands where in ``qkv`` with gates: all queries, all keys, all values, then all gates.

    Stored are, head by head, a query and its gate; then all keys and all values.

    Returns:
        ``[2 * (num_heads + num_kv_heads) * head_dim]`` int64.
    """
    queries, gates = torch.arange(2 * num_heads * head_dim).view(num_heads, 2, head_dim).unbind(1)
    others = torch.arange(2 * num_kv_heads * head_dim) + 2 * num_heads * head_dim
    return torch.cat((queries.reshape(-1), others, gates.reshape(-1)))


def delta_order(num_key_heads: int, num_value_heads: int, key_dim: int, value_dim: int) -> torch.Tensor:
    """Which stored row stands where in a delta rule's product: queries, keys, values, rates, decays, gates.

    Stored are, key head by key head, a query, a key, the values and the gates of its value heads; then, key head by key
    head, the rates and the decays of its value heads.

    Returns:
        ``[num_key_heads * 2 * key_dim + num_value_heads * (2 * value_dim + 2)]`` int64.
    """
    share = num_value_heads // num_key_heads
    widths = (key_dim, key_dim, share * value_dim, share * value_dim)
    num_first = num_key_heads * sum(widths)
    queries, keys, values, gates = torch.arange(num_first).view(num_key_heads, -1).split(widths, dim=1)
    rates, decays = (num_first + torch.arange(2 * num_value_heads).view(num_key_heads, -1)).split(share, dim=1)
    return torch.cat([part.reshape(-1) for part in (queries, keys, values, rates, decays, gates)])


def row_order(
    num_heads: int, num_kv_heads: int, head_dim: int, *, is_grouped: bool, interleaved_dim: int
) -> torch.Tensor | None:
    """Which stored row stands where in ``qkv``: all queries, then all keys, then all values.

    Args:
        num_heads: Query heads.
        num_kv_heads: Key-value heads.
        head_dim: Width of a head.
        is_grouped: Whether rows are stored group by group: the queries that share a key, the key, the value.
        interleaved_dim: Leading dimensions of queries and keys whose rotated pairs are stored side by side; 0 for none.

    Returns:
        ``[(num_heads + 2 * num_kv_heads) * head_dim]`` int64; None where rows stay in their order.
    """
    if not (is_grouped or interleaved_dim):
        return None
    # [heads, head_dim]
    rows = torch.arange((num_heads + 2 * num_kv_heads) * head_dim).view(-1, head_dim)
    if is_grouped:
        share = num_heads // num_kv_heads
        groups = rows.view(num_kv_heads, share + 2, head_dim)
        rows = torch.cat((groups[:, :share].reshape(-1, head_dim), groups[:, share], groups[:, share + 1]))
    turning, values = rows.split((num_heads + num_kv_heads, num_kv_heads))
    if interleaved_dim:
        turning = turning[:, pair_order(head_dim, interleaved_dim)]
    return torch.cat((turning, values)).reshape(-1)
