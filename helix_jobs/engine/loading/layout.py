"""The layout of a checkpoint: a configuration's tensors compared with the files' tensors, before any weight is read.

A tensor that would not be read is refused: the model was trained with it, and without it writes fluent text that is not
its own. A missing tensor is refused because transformers would make it up, and so is a tensor of another shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from helix_jobs.engine.loading.quantized_checkpoint import is_part_of_quantized
from helix_jobs.engine.loading.tensor_names import HEAD, canonical, is_computed
from helix_jobs.engine.model.families.registry import FAMILIES
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PretrainedConfig

    from helix_jobs.engine.loading.stored_tensor import StoredTensor


def check_layout(
    name: str, config: PretrainedConfig, model: nn.Module, tensors: Mapping[str, StoredTensor], *, is_gguf: bool = False
) -> None:
    """Refuse files that do not hold exactly what this configuration needs.

    Args:
        name: The model's name as the user gave it.
        config: Configuration of a served architecture; its number of layers has passed ``check_layers``.
        model: What it describes, without memory for its weights (``skeleton``).
        tensors: The files' tensors, under transformers' names.
        is_gguf: Whether they come from a GGUF file, of which transformers reads only the tensors on its list.

    Raises:
        ModelError: A tensor is missing or has another shape.
        UnsupportedArchitectureError: There is a tensor that would not be read.
    """
    needed, family = _needed(model), FAMILIES[config.model_type]
    draft_head, is_unread = family.draft_head, family.is_unread
    there: dict[str, StoredTensor] = {}
    unread = []
    for tensor, stored in tensors.items():
        short = canonical(tensor)
        if short in needed and short not in there:
            there[short] = stored
        elif not (
            is_computed(tensor)
            or (draft_head is not None and short.startswith(draft_head))
            or (is_unread is not None and is_unread(config, short))
        ):
            unread.append(tensor)
    if unread:
        raise _unread(name, sorted(unread), is_gguf=is_gguf)
    missing = sorted(needed.keys() - there.keys() - ({HEAD} if config.tie_word_embeddings else set()))
    first = needed[missing[0]].name if missing else ""
    if missing == [HEAD] and is_gguf:
        raise UnsupportedArchitectureError(
            f"model {name}: the GGUF file has no output head ({HEAD}), for which its embedding cannot stand here; "
            "use the model's safetensors"
        )
    if missing == [HEAD]:
        raise ModelError(
            f"model {name} lacks its output head ({HEAD}); if the model uses its embedding as head, set "
            '"tie_word_embeddings": true in config.json, else fetch the model again'
        )
    if missing:
        raise ModelError(f"model {name} lacks {len(missing)} weights (first {first}); fetch the model again")
    for tensor, stored in there.items():
        wanted = needed[tensor]
        if stored.shape != wanted.shape:
            raise ModelError(
                f"model {name}: the weight {wanted.name} has the shape {list(stored.shape)} and its configuration says "
                f"{list(wanted.shape)}; fetch the model again, configuration and weights together"
            )


class _Needed(NamedTuple):
    """A weight of the model that a configuration describes."""

    name: str
    shape: tuple[int, ...]


def _needed(model: nn.Module) -> dict[str, _Needed]:
    """Each weight that transformers would read, by its canonical name."""
    return {canonical(tensor): _Needed(tensor, tuple(weight.shape)) for tensor, weight in model.state_dict().items()}


def _unread(name: str, tensors: list[str], *, is_gguf: bool) -> UnsupportedArchitectureError:
    count, first = len(tensors), tensors[0]
    if is_gguf:
        return UnsupportedArchitectureError(
            f"model {name}: {count} of its weights (first {first:.200}) cannot be read from a GGUF file of this "
            "architecture; use the model's safetensors"
        )
    scales = [tensor for tensor in tensors if is_part_of_quantized(tensor)]
    if scales:
        return UnsupportedArchitectureError(
            f"model {name} is quantised (it has the tensor {scales[0]:.200}); use the model's original weights"
        )
    return UnsupportedArchitectureError(
        f"model {name} has {count} weights that its architecture does not use (first {first:.200}), so its answers "
        "would not be its own; its config.json may be another model's or name the wrong architecture"
    )
