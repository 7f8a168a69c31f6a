"""PeftAdapter: an adapter's directory, as PEFT writes it, read into memory."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.loading.peft_config import CONFIG_FILE, REMEDY, PeftConfig, read_peft_config
from helix_jobs.engine.loading.stored_tensor import READ_KINDS, StoredTensor, read_safetensors_header, read_tensor
from helix_jobs.engine.loading.tensor_names import canonical
from helix_jobs.engine.model.text_tower import is_image_part, text_name
from helix_jobs.engine.weights.adapter import Adapter, LoraPair
from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError
from helix_jobs.files import file_sha256

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PICKLE: Final = "adapter_model.bin"
_FACTOR: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# One module holds all experts of a layer; older releases of transformers had one for each.
_PACKED_EXPERTS: Final = re.compile(r"\.experts(\.|$)")
# What other tensors of an adapter are.
_OTHERS: Final = {
    "lora_embedding_": "changes embeddings",
    ".base_layer.weight": "changes the embedding or the output head",
    "lora_magnitude_vector": "is a DoRA adapter, whose change depends on the model's own weights",
    ".lora_B.bias": "has biases of its own",
    "modules_to_save": "replaces whole modules of the model",
}
_MATRIX: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class PeftAdapter:
    """An adapter with the settings that it was trained with.

    Attributes:
        config: The settings.
        adapter: What it computes.
    """

    config: PeftConfig
    adapter: Adapter


def read_adapter(name: str, folder: Path) -> PeftAdapter:
    """Read an adapter into memory.

    Args:
        name: The name by which requests choose it.
        folder: Its directory.

    Raises:
        ModelNotFoundError: The directory is no adapter's, or holds only a pickle.
        ModelError: Its files are damaged.
        UnsupportedArchitectureError: It changes something that Helix does not change.
    """
    try:
        config = read_peft_config(name, folder)
        file = _weights_file(name, folder)
        stored = _factors(config, read_safetensors_header(str(folder), file))
        pairs = {_short(module): _pair(config, module, *factors) for module, factors in stored.items()}
        return PeftAdapter(config, Adapter(name, adapter_digest(folder), pairs))
    except OSError as error:
        raise ModelError(f"adapter {name}: its files cannot be read ({error.strerror}); fetch it again") from error


def _weights_file(name: str, folder: Path) -> Path:
    file = folder / WEIGHTS_FILE
    if file.is_file():
        return file
    if (folder / _PICKLE).is_file():
        raise ModelNotFoundError(
            f"adapter {name} has only {_PICKLE}, a pickle, which can run code; save it again as safetensors"
        )
    raise ModelNotFoundError(f"adapter {name}: {folder} has no {WEIGHTS_FILE}; fetch the adapter again")


def _factors(config: PeftConfig, tensors: dict[str, StoredTensor]) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Both matrices of each changed module, by its name in the model that was trained."""
    name = config.name
    sides: dict[str, dict[str, StoredTensor]] = {}
    for tensor, stored in tensors.items():
        found = _FACTOR.fullmatch(tensor)
        if found is None:
            reason = next((why for part, why in _OTHERS.items() if part in tensor), None)
            reason = reason or f"has the tensor {tensor:.200}, which is no matrix of LoRA"
            raise UnsupportedArchitectureError(f"adapter {name} {reason}; {REMEDY}")
        # Prompts are text alone: what reads images is never run.
        if not is_image_part(found["module"] + "."):
            sides.setdefault(found["module"], {})[found["side"]] = stored
    if not sides:
        raise ModelError(f"adapter {name} changes nothing of the language model; give another one")
    for module, both in sides.items():
        if _PACKED_EXPERTS.search(module):
            raise UnsupportedArchitectureError(
                f"adapter {name} changes experts ({module:.200}), which Helix multiplies in a form that takes no "
                f"adapter; {REMEDY}"
            )
        if both.keys() != {"A", "B"}:
            raise ModelError(f"adapter {name} lacks one of the matrices of {module:.200}; fetch it again")
        if not config.changes(module):
            raise ModelError(
                f"adapter {name} has weights for {module:.200}, which its {CONFIG_FILE} does not name; take both files "
                "from one training"
            )
        _check_shapes(config, module, both["A"], both["B"])
    return {module: (both["A"], both["B"]) for module, both in sides.items()}


def _check_shapes(config: PeftConfig, module: str, down: StoredTensor, up: StoredTensor) -> None:
    rank, name = config.rank_of(module), config.name
    for stored in (down, up):
        if stored.kind not in READ_KINDS or not READ_KINDS[stored.kind].is_floating_point:
            raise UnsupportedArchitectureError(
                f"adapter {name}: the weights of {module:.200} are of the type {stored.kind:.20}; save it in float32"
            )
    if len(down.shape) != _MATRIX or len(up.shape) != _MATRIX or (down.shape[0], up.shape[1]) != (rank, rank):
        raise ModelError(
            f"adapter {name}: the matrices of {module:.200} have the shapes {list(down.shape)} and {list(up.shape)}, "
            f"and its {CONFIG_FILE} says rank {rank}; take both files from one training"
        )


def _pair(config: PeftConfig, module: str, down: StoredTensor, up: StoredTensor) -> LoraPair:
    return LoraPair(read_tensor(config.name, down), read_tensor(config.name, up), config.scale_of(module))


def _short(module: str) -> str:
    """A module's name in the language model alone, without the prefix that only models with a head have."""
    return canonical(text_name(module))


def adapter_digest(folder: Path) -> str:
    """Of both files' content."""
    total = hashlib.sha256()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        total.update(bytes.fromhex(file_sha256(folder / file)))
    return total.hexdigest()
