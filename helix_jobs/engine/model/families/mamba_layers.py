"""What Granite 4, Bamba and Falcon-H1 have in common: Mamba-2 under settings of the same names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import UnsupportedSettingError
from helix_jobs.engine.model.families.settings import projection
from helix_jobs.engine.model.recurrence_description import MambaDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def mamba_layer(config: PretrainedConfig) -> MambaDescription:
    """The Mamba-2 part of a layer, in its module ``mamba``.

    Raises:
        UnsupportedSettingError: Time steps are limited.
    """
    limit = tuple(getattr(config, "time_step_limit", None) or (0.0, math.inf))
    if limit != (0.0, math.inf):
        raise UnsupportedSettingError(f"limits the time steps of its recurrent layers (time_step_limit {limit})")
    return MambaDescription(
        inner=projection("mamba.in_proj"),
        module="mamba",
        out=projection("mamba.out_proj"),
        num_heads=config.mamba_n_heads,
        head_dim=config.mamba_d_head,
        num_groups=config.mamba_n_groups,
        state_dim=config.mamba_d_state,
        activation=config.hidden_act,
        eps=float(config.rms_norm_eps),
    )
