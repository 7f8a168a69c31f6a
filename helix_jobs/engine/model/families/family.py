"""Family: one architecture, as its file declares it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture that Helix serves.

    Attributes:
        model_type: Its name in config.json.
        class_name: The class of transformers that generates text with it.
        describe: What a configuration of it computes. Raises ``UnsupportedSettingError`` for a setting that Helix does
            not compute.
        other_names: Further names that checkpoints give that class.
        renames: Parts of the names of weights in checkpoints, and what transformers' modules call them.
        joins: Ends of the names of tensors in checkpoints, and the end of the name of the one tensor that transformers'
            modules have in their place, one's rows behind another's.
        further_layers: The setting that counts layers which checkpoints hold and nobody computes, behind the last one;
            or None.
        draft_head: Prefix (after ``model.``) of tensors that only draft further tokens, and that nobody reads; or None.
        is_transposed: Whether transformers' modules have its layers' matrices as ``[in_features, out_features]``.
        needs_transformers_5: Whether transformers 4 computes it in modules of other names or in another dtype.
        stores_mxfp4: Whether its checkpoints may hold experts in MXFP4 blocks.
        is_unread: Whether checkpoints may hold a tensor of this name (without the model's prefix) that nobody computes
            with; None for no such tensor.
        layer_lists: Settings that name each layer's kind and so count the layers, whatever ``num_hidden_layers`` says;
            the first that is there counts.
        difference: In what its answers may differ from transformers', for the log; None for nothing.
    """

    model_type: str
    class_name: str
    describe: Callable[[PretrainedConfig], ModelDescription]
    other_names: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    joins: tuple[tuple[tuple[str, ...], str], ...] = ()
    further_layers: str | None = None
    draft_head: str | None = None
    is_transposed: bool = False
    needs_transformers_5: bool = False
    stores_mxfp4: bool = False
    is_unread: Callable[[PretrainedConfig, str], bool] | None = None
    layer_lists: tuple[str, ...] = ()
    difference: Callable[[PretrainedConfig], str | None] | None = None
