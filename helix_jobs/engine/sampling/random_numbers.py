"""Per-request random numbers: a pure function of (seed, choice, position, purpose), computed on the CPU.

A shared generator would make an output depend on which other requests were in the batch. Here the same request draws
the same numbers in any batch, after a preemption and after a crash.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from hashlib import blake2b

_MASK_64 = 2**64 - 1


class Purpose(IntEnum):
    """What a number decides at a position. Each purpose has its own stream, so that no two decisions share a number.

    A position has at most one final draw: the recovered token after a rejection, or the bonus token. A position whose
    draft was dropped is drafted again only if its earlier draw decided nothing that was kept.
    """

    DRAFT = 0
    ACCEPT = 1
    FINAL = 2


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of a request's choices: the request's own for the first, a hash of both for the others."""
    if choice == 0:
        return seed
    message = struct.pack("<QQ", seed & _MASK_64, choice)
    (derived,) = struct.unpack("<Q", blake2b(message, digest_size=8, person=b"helix-choice").digest())
    return int(derived)


def uniform(seed: int, position: int, purpose: Purpose) -> float:
    """A number in [0, 1) with 53 random bits (BLAKE2b over seed, position and purpose)."""
    message = struct.pack("<QQB", seed & _MASK_64, position, purpose)
    (bits,) = struct.unpack("<Q", blake2b(message, digest_size=8, person=b"helix-rng").digest())
    return float(bits >> 11) * 2.0**-53
