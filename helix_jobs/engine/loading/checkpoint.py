"""Checkpoint: where a model's files are and what their headers say, before any weight is read.

Only safetensors and GGUF files are opened: a pickle can run code.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.loading.demo_model import DEMO_DIRECTORY, DEMO_MODEL, ensure_demo_model, is_current
from helix_jobs.engine.loading.expert_tensors import (
    is_mxfp4,
    with_plain_experts,
    with_stacked_experts,
    with_upright_experts,
)
from helix_jobs.engine.loading.folder_files import PICKLES, not_a_model, safetensors_files
from helix_jobs.engine.loading.gguf_file import GgufFile, read_gguf
from helix_jobs.engine.loading.gguf_hub import HubFile
from helix_jobs.engine.loading.hub import downloaded
from helix_jobs.engine.loading.hub_model import HubModel, find_on_hub
from helix_jobs.engine.loading.joined_tensors import with_joined_tensors
from helix_jobs.engine.loading.quantized_checkpoint import (
    check_not_quantized,
    quantized_format,
    without_quantization,
)
from helix_jobs.engine.loading.quantized_format import plain_layout, refusal
from helix_jobs.engine.loading.stored_tensor import StoredBlocks, StoredTensor, read_safetensors_header
from helix_jobs.engine.loading.tensor_names import canonical, is_computed, without_layers_from
from helix_jobs.engine.model.architecture import check_model_type, stores_mxfp4, without_mxfp4
from helix_jobs.engine.model.families.registry import FAMILIES
from helix_jobs.engine.model.model_words import subject
from helix_jobs.engine.model.text_tower import TEXT_TOWERS, text_settings, text_tensors
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.level_layouts import LEVEL_LAYOUTS
from helix_jobs.engine.weights.packed_int8_linear import BYTE_LAYOUTS
from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from helix_jobs.engine.loading.quantized_format import QuantizedFormat, QuantizedMatrix

logger = logging.getLogger(__name__)


_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LAYOUTS: Final = {**BLOCK_LAYOUTS, **LEVEL_LAYOUTS}
STORED_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Model files found on this machine.

    Attributes:
        name: The model's name as the user gave it.
        folder: The directory with the files.
        gguf_file: The file's name inside ``folder`` when the weights are GGUF, else None.
        files: The files that hold its weights.
        tensors: The tensors in these files, by their names in transformers; of a model that also reads images, those of
            its language model.
        settings: The content of config.json, not interpreted by transformers; empty for a GGUF file.
        gguf: The GGUF file's header, or None.
        quantized: The format in which safetensors store quantised matrices, or None.
        on_hub: Where on the hub it is, if only the headers of its files have been read; None if they are on this
            machine.
        hub_bytes: Bytes of the files there.
    """

    name: str
    folder: Path
    gguf_file: str | None
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    gguf: GgufFile | None = None
    quantized: QuantizedFormat | None = None
    on_hub: HubFile | HubModel | None = None
    hub_bytes: int = 0

    @property
    def matrices(self) -> dict[str, QuantizedMatrix]:
        """The quantised matrices by the names of their weights, experts aside."""
        return {name: tensor.matrix for name, tensor in self.tensors.items() if tensor.matrix is not None}

    @property
    def is_text_tower(self) -> bool:
        """Whether its language model is a part of a model that also reads images."""
        return self.settings.get("model_type") in TEXT_TOWERS

    @property
    def parameters(self) -> int:
        """Number of weights stored."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of the files that hold its weights."""
        return self.hub_bytes if self.on_hub is not None else sum(file.stat().st_size for file in self.files)

    @property
    def kind(self) -> str | None:
        """The type that most of the weights are stored in, as the file format names it; None without weights.

        Blocks of our own have the name that results give them.
        """
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[LEVEL_LAYOUTS[tensor.kind].name if tensor.kind in LEVEL_LAYOUTS else tensor.kind] += tensor.elements
        return max(sizes, key=lambda kind: sizes[kind]) if sizes else None

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that most of the weights are stored in; None when quantised."""
        return None if self.kind is None else STORED_DTYPES.get(self.kind)

    @property
    def is_uniform(self) -> bool:
        """Whether every weight is stored in ``dtype``, so that reading in it neither rounds nor copies."""
        return self.gguf is None and len({one.kind for name, one in self.tensors.items() if not is_computed(name)}) == 1

    @property
    def blocks(self) -> StoredBlocks:
        """Its weights in blocks that can be multiplied as they are."""
        layouts = _LAYOUTS
        weights = Counter[str]()
        for tensor in self.tensors.values():
            if tensor.kind in layouts:
                weights[tensor.kind] += tensor.elements
        nbytes = sum(count // layouts[kind].weights * layouts[kind].nbytes for kind, count in weights.items())
        if self.quantized is not None:
            for name, tensor in self.tensors.items():
                if (layout := plain_layout(name, tensor)) is not None:
                    layouts = {**layouts, tensor.kind: layout}
                    weights[tensor.kind] += tensor.elements
            nbytes = sum(count // layouts[kind].weights * layouts[kind].nbytes for kind, count in weights.items())
        orders = sum(matrix.order_bytes for matrix in self.matrices.values())
        has_bytes = bool(weights) and all(kind in BYTE_LAYOUTS for kind in weights)
        return StoredBlocks(weights.total(), nbytes + orders, has_bytes=has_bytes)

    def blocks_beside(self, embedding: str) -> StoredBlocks:
        """These, and whether the embedding is among them.

        Args:
            embedding: The canonical name of its weight.
        """
        kind = None
        for name, tensor in self.tensors.items():
            if canonical(name) == embedding and (
                tensor.kind in _LAYOUTS or (self.quantized is not None and plain_layout(name, tensor) is not None)
            ):
                kind = tensor.kind
        return replace(self.blocks, embedding=kind)

    def without(self, modules: Iterable[str]) -> Checkpoint:
        """The same without the weights of modules whose names end so."""
        ends = tuple(f".{module}.weight" for module in modules)
        return replace(self, tensors={name: tensor for name, tensor in self.tensors.items() if not name.endswith(ends)})

    @property
    def has_blocks(self) -> bool:
        """Whether weights are stored in blocks that can be multiplied as they are."""
        return self.blocks.weights > 0

    def packed_bytes(self, dtype: torch.dtype) -> int:
        """Memory of its weights if blocks stay as they are and other weights are in ``dtype``."""
        return self.blocks.nbytes + (self.parameters - self.blocks.weights) * dtype.itemsize

    def copied_weights(self, dtype: torch.dtype) -> int:
        """Number of weights that reading safetensors in ``dtype`` copies: those stored in another form, or in parts."""
        return sum(
            tensor.elements
            for tensor in self.tensors.values()
            if tensor.is_merged or STORED_DTYPES.get(tensor.kind) is not dtype
        )

    @property
    def is_merged(self) -> bool:
        """Whether reading it merges tensors, in whichever dtype."""
        return any(tensor.is_merged for tensor in self.tensors.values())


def find_checkpoint(name: str, home: Path, on_progress: Callable[[str], None]) -> Checkpoint:
    """Find a model by its name: ``demo``, a ``.gguf`` file, a directory or a hub id (downloaded on first use).

    Raises:
        ModelNotFoundError: There is no such model, or none that may be opened.
        UnsupportedArchitectureError: The engine cannot serve the hub model; checked before its weights are downloaded.
    """
    return fetched(look_up_checkpoint(name, home, on_progress), on_progress)


def look_up_checkpoint(name: str, home: Path, on_progress: Callable[[str], None]) -> Checkpoint:
    """Find a model as ``find_checkpoint`` does; of one that is on the hub alone read its files' headers there.

    Raises:
        ModelNotFoundError, UnsupportedArchitectureError: As in ``find_checkpoint``.
        ModelError: The file is damaged.
    """
    with _files_of(name):
        if name == DEMO_MODEL:
            return _from_directory(name, ensure_demo_model(home, on_progress))
        found = _from_path(name)
        if found is not None:
            return found
        file = HubFile.parse(name)
        return _look_up_model(name, on_progress) if file is None else _look_up_file(name, file, on_progress)


def _look_up_model(name: str, on_progress: Callable[[str], None]) -> Checkpoint:
    model = find_on_hub(name, on_progress)
    if not model.has_whole_headers:  # Trade-off: hundreds of small requests would fetch what is missing
        model.download(name, on_progress)
    if model.is_here:
        return _from_directory(name, model.folder)
    with model.headers(name) as headers:
        found = _from_directory(name, model.folder, headers)
        return replace(found, on_hub=model, hub_bytes=found.file_bytes)


def _look_up_file(name: str, file: HubFile, on_progress: Callable[[str], None]) -> Checkpoint:
    cached = file.downloaded()
    if cached is not None:
        return _from_gguf(name, cached)
    on_progress(f"looking up {name} on the hub")
    with file.headers(name) as header:
        found = _from_gguf(name, header)
        return replace(found, on_hub=file, hub_bytes=found.file_bytes)


def fetched(found: Checkpoint, on_progress: Callable[[str], None]) -> Checkpoint:
    """The checkpoint with its files on this machine, downloaded if they are not.

    Raises:
        ModelNotFoundError: They cannot be fetched.
        ModelError: They are no longer those that were looked up.
    """
    if found.on_hub is None:
        return found
    with _files_of(found.name):
        place = found.on_hub.download(found.name, on_progress)
        made = _from_directory(found.name, place) if place.is_dir() else _from_gguf(found.name, place)
    if made.tensors != found.tensors or _vocabulary(made) != _vocabulary(found):
        raise ModelError(f"model {found.name} changed on the hub while it was fetched; start again")
    return made


def _vocabulary(found: Checkpoint) -> Mapping[str, Any] | None:
    return None if found.gguf is None else found.gguf.vocabulary


def find_local_checkpoint(name: str, home: Path) -> Checkpoint | None:
    """Find a model as ``find_checkpoint`` does, without the network; None where it would have to be downloaded.

    Raises:
        ModelNotFoundError, UnsupportedArchitectureError: As in ``find_checkpoint``; also if only a part of the model
            was downloaded.
    """
    with _files_of(name):
        if name == DEMO_MODEL:
            folder = home / "models" / DEMO_DIRECTORY
            return _from_directory(name, folder) if is_current(folder) else None
        found = _from_path(name)
        if found is not None:
            return found
        on_hub = HubFile.parse(name)
        if on_hub is not None:
            file = on_hub.downloaded()
            return None if file is None else _from_gguf(name, file)
        cached = downloaded(name)
        return None if cached is None else _from_directory(name, cached)


@contextlib.contextmanager
def _files_of(name: str) -> Iterator[None]:
    """Name the model in errors from opening its files: no permission, a name too long, a full disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelNotFoundError(
            f"model {name:.200} cannot be opened ({reason}); check the path and its rights"
        ) from error


def _from_path(name: str) -> Checkpoint | None:
    """The model in this file or directory; None if the name is a hub id, or that of a file on the hub."""
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # no such user
        raise ModelNotFoundError(f"model {name}: no such home directory is known; give a full path") from error
    if path.is_dir():
        return _from_directory(name, path)
    if HubFile.parse(name) is not None and not path.exists():
        return None
    if path.suffix.lower() == ".gguf":
        return _from_gguf(name, path)
    if path.is_file():
        if any(path.match(pattern) for pattern in PICKLES):
            raise ModelNotFoundError(
                f"model {name} is a pickle, which can run code when opened; give a directory with safetensors"
            )
        raise ModelNotFoundError(f"model {name} is a file that is not GGUF; give its directory or a .gguf file")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelNotFoundError(f"model directory {name} does not exist; check the path")
    return None


def _from_directory(name: str, folder: Path, weights: Path | None = None) -> Checkpoint:
    """The model in a directory; ``weights`` has its weight files, if they lie in another one."""
    if not (folder / "config.json").is_file():
        raise not_a_model(name, folder)
    config = check_model_type(name, folder)
    if (folder / "adapter_config.json").exists():
        # Where peft is installed, transformers would instead load the model that the adapter was made for.
        raise UnsupportedArchitectureError(
            f"{subject(name, folder)} has an adapter beside its weights (adapter_config.json), which would not be "
            "applied; merge it into them (merge_and_unload of peft), or remove it if it is merged already"
        )
    tensors: dict[str, StoredTensor] = {}
    files = safetensors_files(name, weights or folder)
    for file in files:
        tensors.update(read_safetensors_header(name, file))
    quantized = quantized_format(name, config)
    if quantized is not None:
        return _from_quantized(Checkpoint(name, folder, None, tuple(files), tensors, config), quantized)
    has_blocks = stores_mxfp4(config)
    harmless = (tensor for tensor in tensors if is_computed(tensor) or (has_blocks and is_mxfp4(tensor)))
    check_not_quantized(name, folder, without_mxfp4(config), tensors, harmless)
    if has_blocks:
        tensors = with_plain_experts(name, tensors)
    return Checkpoint(name, folder, None, tuple(files), _as_modules_have_them(name, config, tensors), config)


def _as_modules_have_them(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """A checkpoint's tensors under the names, and in the shapes, of transformers' modules."""
    tower = TEXT_TOWERS.get(config["model_type"])
    if tower is not None:
        own = with_stacked_experts(name, text_tensors(tensors))
        return with_upright_experts(own, text_settings(config).get("hidden_size")) if tower.may_flip_experts else own
    family = FAMILIES[config["model_type"]]
    if family.further_layers is not None and config.get(family.further_layers):
        tensors = without_layers_from(config.get("num_hidden_layers"), tensors)
    return with_joined_tensors(name, with_stacked_experts(name, tensors, family.renames), family.joins)


def _from_quantized(found: Checkpoint, quantized: QuantizedFormat) -> Checkpoint:
    """A directory in a quantised format that is read: each of its matrices counts as one tensor."""
    name, tensors = found.name, found.tensors
    matrices = quantized.matrices(name, tensors)
    if not matrices:
        raise refusal(name, quantized.name, "says config.json, but no weight is stored so")
    parts = {id(part) for matrix in matrices.values() for part in matrix.parts.values()}
    plain = {tensor: stored for tensor, stored in tensors.items() if id(stored) not in parts}
    settings = without_quantization(found.settings)
    check_not_quantized(name, found.folder, settings, plain, filter(is_computed, plain), read=quantized.name)
    weights = {f"{module}.weight": matrix for module, matrix in matrices.items()}
    if twice := sorted(weights.keys() & plain.keys()):
        raise ModelError(f"model {name} has the weight {twice[0]:.200} both as it is and quantised; fetch it again")
    # Such formats store every matrix as that of a linear layer, and transformers' module may have it transposed.
    family = FAMILIES.get(found.settings["model_type"])
    step = -1 if family is not None and family.is_transposed else 1
    whole = plain | {
        tensor: StoredTensor(matrix.kind, matrix.shape[::step], matrix=matrix) for tensor, matrix in weights.items()
    }
    return replace(found, tensors=_as_modules_have_them(name, found.settings, whole), quantized=quantized)


def _from_gguf(name: str, path: Path) -> Checkpoint:
    if not path.is_file():
        raise ModelNotFoundError(f"model file {name} does not exist; check the path")
    gguf = read_gguf(name, path)
    return Checkpoint(name, path.parent, path.name, gguf.files, gguf.tensors, gguf=gguf)
