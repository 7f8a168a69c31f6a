"""CacheSections: which layers keep their keys and values in the same cache blocks, and for how long. No torch.

A *section* is a set of layers that are alike in what their queries see: the last tokens of one *window*, or everything.
A cache block holds the keys and values of one section's layers, and each sequence has a block table for each section. A
block is freed once no later token can see it, which layers with a window allow and full attention does not.

All sections take their blocks from one pool, so every section keeps about as much of a token: layers of the commoner
window are divided among several sections. A layer that reads the keys and values of another belongs where these are. A
model whose layers all see the same has one section. The idea of one pool whose
pages suit every group of layers is that of vLLM's hybrid cache (and of Zhang et al., "Jenga: Effective Memory
Management for Serving LLM with Heterogeneity", SOSP 2025).
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Trade-off: more sections fit models better whose windows are not equally common, but each has a block table of its
# own, which every step plans and uploads.
_MAX_SECTIONS: Final = 8


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What a layer with attention keeps of a token, and for how long.

    Attributes:
        window: The number of keys that its queries see at most; None for all.
        size: What it keeps of a token, in any unit that is the same for all layers of both models; 0 with a source.
        source: Index of the earlier layer whose keys and values it reads; None for its own.
    """

    window: int | None
    size: int = 1
    source: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSections:
    """The sections of one model.

    Attributes:
        windows: As in ``CacheSections``.
        layers: The section of each layer that has keys and values; empty where all are in the first.
    """

    windows: tuple[int | None, ...] = (None,)
    layers: tuple[int, ...] = ()

    def of(self, layer: int) -> int:
        """The section of a layer."""
        return self.layers[layer] if self.layers else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSections:
    """The sections of a target and its draft, which share block tables.

    Attributes:
        windows: For each section, the number of keys that its queries see at most; None for all.
        target: The section of each of the target's layers that has keys and values.
        draft: The same for the draft model; empty without one.
    """

    windows: tuple[int | None, ...] = (None,)
    target: tuple[int, ...] = ()
    draft: tuple[int, ...] = ()

    @classmethod
    def of(cls, target: Sequence[KeptLayer], draft: Sequence[KeptLayer] = (), *, context: int) -> CacheSections:
        """Divide layers into sections.

        A draft's layer goes where at least as much is kept as it sees. Trade-off: where it sees more than any layer of
        the target, the target's widest section keeps as much, which frees less; sections of the draft alone would waste
        the target's part of every block in them.

        Args:
            target: The target's layers.
            draft: Those of the draft model; empty without one.
            context: The most tokens of a sequence. A window of as many hides nothing.
        """
        own, drafts = ([_seen(layers, index, context) for index in _keepers(layers)] for layers in (target, draft))
        kinds = set(own)
        if drafts and max(drafts) > max(kinds):
            kinds = {*(kinds - {max(kinds)}), max(drafts)}
        kept = sorted(kinds, reverse=True)
        # For each layer, the place in ``kept`` of the least that is enough for it.
        own_kinds, draft_kinds = ([sum(w >= seen for w in kept) - 1 for seen in layers] for layers in (own, drafts))
        sizes = [[layers[index].size for index in _keepers(layers)] for layers in (target, draft)]
        num_sections = _choose(kept, own_kinds, draft_kinds, sizes)
        windows = [kept[kind] for kind, count in enumerate(num_sections) for _ in range(count)]
        return cls(
            windows=tuple(None if window == inf else int(window) for window in windows),
            target=_with_readers(target, _divide(own_kinds, num_sections)),
            draft=_with_readers(draft, _divide(draft_kinds, num_sections)),
        )

    @property
    def of_target(self) -> LayerSections:
        """The target's part."""
        return LayerSections(windows=self.windows, layers=self.target)

    @property
    def of_draft(self) -> LayerSections:
        """The draft's part."""
        return LayerSections(windows=self.windows, layers=self.draft)

    @property
    def frees(self) -> bool:
        """Whether blocks are freed while a sequence grows."""
        return any(window is not None for window in self.windows)

    def most_blocks(self, num_tokens: int, step_tokens: int, block_size: int) -> int:
        """Blocks of all sections that a sequence holds at most while it grows to ``num_tokens`` tokens.

        Args:
            num_tokens: Its length.
            step_tokens: The most of its tokens that one step computes, drafts included.
            block_size: Tokens a block.
        """
        return sum(self.most_of_sections(num_tokens, step_tokens, block_size))

    def most_of_sections(self, num_tokens: int, step_tokens: int, block_size: int) -> tuple[int, ...]:
        """The part of ``most_blocks`` of each section. A section holds the last blocks when it holds the most."""
        whole = -(-num_tokens // block_size)
        return tuple(
            whole if window is None else min(whole, _most_seen(window, step_tokens, block_size))
            for window in self.windows
        )

    def capacity(self, num_blocks: int, step_tokens: int, block_size: int) -> int:
        """Tokens of the longest sequence that ``num_blocks`` blocks hold. Arguments as in ``most_blocks``."""
        bounds = sorted(
            inf if window is None else _most_seen(window, step_tokens, block_size) for window in self.windows
        )
        # Sections reach their bounds one after another; the others share what is left.
        left = num_blocks
        for place, bound in enumerate(bounds):
            each = left // (len(bounds) - place)
            if each < bound:
                return each * block_size
            left -= int(bound)
        return sys.maxsize


# All layers together, and every block kept.
ONE_SECTION: Final = CacheSections()


def first_seen(window: int | None, position: int, block_size: int) -> int:
    """The first logical block of a section that the token at ``position``, or a later one, sees."""
    return 0 if window is None else max(0, position - window + 1) // block_size


def pools_of(sections: Sequence[int]) -> tuple[int, ...]:
    """For each layer, which of its model's pools holds its blocks: layers of different sections share one.

    Args:
        sections: The section of each layer.
    """
    seen: Counter[int] = Counter()
    pools = []
    for section in sections:
        pools.append(seen[section])
        seen[section] += 1
    return tuple(pools)


def num_pools(sections: Sequence[int]) -> int:
    """The layers of a model's largest section: a block takes as much memory as these."""
    return max(Counter(sections).values(), default=0)


def _most_seen(window: int, step_tokens: int, block_size: int) -> int:
    """Blocks that a sequence holds in a section of this window at most: what a step sees and what it writes."""
    return -(-(window - 1 + step_tokens) // block_size) + 1


def _keepers(layers: Sequence[KeptLayer]) -> list[int]:
    """The layers that keep keys and values of their own."""
    return [index for index, layer in enumerate(layers) if layer.source is None]


def _seen(layers: Sequence[KeptLayer], index: int, context: int) -> float:
    """The most keys of a layer that its queries see, or those of a layer that reads them."""
    windows = [layer.window for place, layer in enumerate(layers) if index in (place, layer.source)]
    return max(inf if window is None or window >= context else window for window in windows)


def _with_readers(layers: Sequence[KeptLayer], sections: Sequence[int]) -> tuple[int, ...]:
    """The section of each layer, given those of the layers that keep keys and values."""
    own = dict(zip(_keepers(layers), sections, strict=True))
    return tuple(own[index if layer.source is None else layer.source] for index, layer in enumerate(layers))


def _choose(
    kept: Sequence[float], target: Sequence[int], draft: Sequence[int], sizes: Sequence[Sequence[int]]
) -> list[int]:
    """The number of sections of each window.

    All blocks take as much memory as the largest section's, so uneven sections waste some. It is weighed for sequences
    that no window has cut yet, and for endless ones, of which only full attention counts.

    Args:
        kept: The windows.
        target: The place in ``kept`` of each layer's window, in the target.
        draft: The same in the draft.
        sizes: What each layer keeps of a token, in the target and in the draft.
    """
    if len(kept) == 1:
        return [1]
    most = max(_MAX_SECTIONS, len(kept))
    totals = Counter[int]()
    for kind, size in zip(target, sizes[0], strict=True):
        totals[kind] += size
    best, least = [1] * len(kept), inf
    for size in _section_sizes(totals, most):
        counts = [max(1, -(-totals[kind] // size)) for kind in range(len(kept))]
        if sum(counts) > most:
            continue
        block = sum(
            max(_section_totals(_divide(kinds, counts), own).values(), default=0)
            for kinds, own in zip((target, draft), sizes, strict=True)
        )
        num_full = counts[0] if kept[0] == inf else sum(counts)
        waste = sum(counts) * block * num_full * block
        if waste <= least:  # of equals the fewest sections, which come last
            best, least = counts, waste
    return best


def _section_sizes(totals: Mapping[int, int], most: int) -> Iterator[int]:
    """Sizes of a section at which the number of some window's sections changes, up to ``most`` of them, ascending."""
    yield from sorted({max(1, -(-total // count)) for total in totals.values() for count in range(1, most + 1)})


def _section_totals(sections: Sequence[int], sizes: Sequence[int]) -> Counter[int]:
    """What the layers of each section keep of a token."""
    totals = Counter[int]()
    for section, size in zip(sections, sizes, strict=True):
        totals[section] += size
    return totals


def _divide(kinds: Sequence[int], num_sections: Sequence[int]) -> tuple[int, ...]:
    """The section of each layer, given the place of its window and the number of sections of each window."""
    totals, seen = Counter(kinds), Counter[int]()
    sections = []
    for kind in kinds:
        each = -(-totals[kind] // num_sections[kind])
        sections.append(sum(num_sections[:kind]) + seen[kind] // each)
        seen[kind] += 1
    return tuple(sections)
