"""Helix: bulk LLM generation on one box.

``HelixClient`` and ``SamplingParams`` are the public Python interface. Importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helix_jobs._version import __version__

if TYPE_CHECKING:
    from helix_jobs.client.client import HelixClient
    from helix_jobs.engine.sampling_params import SamplingParams

__all__ = ["HelixClient", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (module attribute hook: PEP 562)
    """Import the public names on first use, so that ``import helix_jobs.errors`` stays instant."""
    if name == "HelixClient":
        from helix_jobs.client.client import HelixClient

        return HelixClient
    if name == "SamplingParams":
        from helix_jobs.engine.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
