"""Choose the device and load target and draft: the only module that turns model names into models.

Every check that can be made without reading a weight comes first: architecture, vocabulary, memory. Weights are read on
the CPU and then moved, one finished tensor after another (the only way for DirectML).
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from helix_jobs.device_names import DEVICE_KINDS, DIRECTML_DEVICE_TYPE, read_device_name
from helix_jobs.engine.config import NO_DRAFT
from helix_jobs.engine.devices.devices import (
    cleanup_memory,
    describe_device,
    explaining_shortage,
    import_directml,
    prepare_device,
    resolve_dtype,
)
from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
from helix_jobs.engine.loading.cache_format import check_cache_device, check_cache_geometry
from helix_jobs.engine.loading.model_adapters import check_adapters
from helix_jobs.engine.loading.model_memory import check_device_memory, check_host_memory
from helix_jobs.engine.loading.model_pair import makes_int8_copy
from helix_jobs.engine.loading.model_source import ModelSource, open_source
from helix_jobs.engine.loading.model_weights import read_weights
from helix_jobs.engine.loading.trial_pass import TRIAL_TEXT, logits_are_finite
from helix_jobs.engine.loading.vocabulary import check_vocabularies, end_token_ids, turn_end_ids
from helix_jobs.engine.loading.weight_format import INT8, PACKED, WeightFormat, check_packs, format_of
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.placement import Float16OverflowError, Placement
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.text.chat_forms import chat_forms
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from helix_jobs.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    ModelError,
    RequestError,
    UnsupportedArchitectureError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import GenerationConfig

    from helix_jobs.engine.loading.peft_adapter import PeftAdapter
    from helix_jobs.engine.model.decoder import Decoder

__all__ = [
    "available_devices",
    "cleanup_memory",
    "describe_device",
    "directml_absence",
    "get_device",
    "load_models",
    "resolve_dtype",
]

logger = logging.getLogger(__name__)


def get_device(name: str | None = None) -> torch.device:
    """Return the named device, or the first available of torch-directml, CUDA/ROCm, XPU, MPS and CPU.

    Args:
        name: None or ``auto`` for the first available; else see ``read_device_name``.

    Raises:
        ConfigurationError: The name is unknown or there is no such device; the message lists the available ones.
    """
    if name is None or name == "auto":
        return next(device for kind in DEVICE_KINDS if (device := _device(kind, 0)) is not None)
    kind, index = read_device_name(name)
    device = _device(kind, index or 0)
    if device is None:
        there = [kind for kind in DEVICE_KINDS if _device(kind, 0) is not None]
        raise ConfigurationError(f"device {name!r} is not available{_why_not(kind)}; there is {', '.join(there)}")
    return device


def available_devices() -> tuple[torch.device, ...]:
    """Every available device, in the order in which ``get_device`` prefers them."""
    found = []
    for kind in DEVICE_KINDS:
        index = 0
        while (device := _device(kind, index)) is not None:
            found.append(device)
            index += 1
    return tuple(found)


def directml_absence() -> str:
    """Why there is no DirectML device; empty when there is one."""
    return import_directml()[1]


def _device(kind: str, index: int) -> torch.device | None:
    """The device of this kind and index, or None when the machine has none."""
    if kind == "cpu":
        return torch.device("cpu") if index == 0 else None
    if kind == "directml":
        module, _ = import_directml()
        if module is None or index >= module.device_count():
            return None
        device: torch.device = module.device(index)
        return device
    if kind == "mps":
        return torch.device("mps") if index == 0 and torch.backends.mps.is_available() else None
    backend = torch.cuda if kind == "cuda" else torch.xpu
    return torch.device(kind, index) if backend.is_available() and index < backend.device_count() else None


def _why_not(kind: str) -> str:
    reason = import_directml()[1] if kind == "directml" else ""
    return f": {reason}" if reason else ""


def load_models(
    target: str,
    draft: str,
    *,
    device: torch.device,
    dtype: str,
    home: Path,
    on_progress: Callable[[str], None] | None = None,
    compiles: bool = False,
    copies_blocks: bool = True,
    adapters: Sequence[PeftAdapter] = (),
    kv_cache_dtype: str = "auto",
) -> LoadedModels:
    """Load target and draft onto the device.

    Args:
        target: A hub id, a directory, a ``.gguf`` file, here or on the hub (``OWNER/NAME:FILE.gguf``), or ``demo``.
        draft: Any of these, ``int8`` (an int8 copy of the target) or ``none``.
        device: From ``get_device``.
        dtype: A name for ``resolve_dtype``, ``int8`` or ``packed``; the draft's activations have the target's dtype.
        home: HELIX_HOME; the demo model is kept under it.
        on_progress: Receives one line for each thing that is done.
        compiles: Whether kernels will be compiled: int8 layers made of blocks then keep these, and others hold some of
            the weights once more.
        copies_blocks: Whether the draft ``int8`` is made of a target in blocks, see ``DraftSpec``.
        adapters: Are to be served with the target. They are checked here, and added later: see ``add_adapters``.
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.

    Raises:
        ModelNotFoundError: No such model, or only a pickle of it.
        UnsupportedArchitectureError: The engine would not compute it exactly.
        TokenizerMismatchError: Target and draft do not share a vocabulary.
        InsufficientMemoryError: The device cannot hold the weights and the smallest useful cache.
        ModelError: The files are damaged or incomplete.
        ConfigurationError: The dtype, or that of the cache, is unknown or not supported on this device or for a model.
    """
    report = on_progress or logger.info
    check_cache_device(kv_cache_dtype, device)
    prepare_device(device)
    target_source = open_source(target, home, report)
    draft_source = None if draft in (INT8, NO_DRAFT) else open_source(draft, home, report)
    for source in (target_source, draft_source):
        if source is not None:
            check_cache_geometry(kv_cache_dtype, source.checkpoint.name, describe(source.config).geometry)
    stored = target_source.checkpoint
    has_blocks = stored.has_blocks and target_source.sizes.blocks.weights > 0
    if dtype == PACKED:
        check_packs(target, device, has_blocks=has_blocks)
    chosen = format_of(dtype, device, stored.dtype, has_blocks=has_blocks)
    compute = chosen.dtype
    if draft_source is not None:
        check_vocabularies(target, target_source.tokenizer.get_vocab(), draft, draft_source.tokenizer.get_vocab())
    has_int8_copy = draft == INT8 and makes_int8_copy(device, chosen, copies_blocks=copies_blocks)
    check_device_memory(
        device,
        chosen,
        target_source,
        draft_source,
        has_int8_copy=has_int8_copy,
        compiles=compiles,
        copies_blocks=copies_blocks,
        adapter_numbers=check_adapters(target, target_source.config, adapters),
        kv_cache_dtype=kv_cache_dtype,
    )
    target_source = target_source.with_files(report)
    draft_source = None if draft_source is None else draft_source.with_files(report)
    prompts = PromptEncoder(target_source.tokenizer, name=target)
    template = prompts.probe()
    forms = chat_forms(target_source.tokenizer, template)

    with explaining_shortage(device, "models were loaded", "use a smaller model, draft none, or a smaller dtype"):
        report(f"loading target {target}")
        keeps = chosen.is_packed or chosen.is_int8  # int8 products are made from the blocks, a few rows at a time
        read = _read(target_source, compute, device, prompts, keeps_blocks=keeps, keeps_origins=bool(adapters))
        loaded_target = LoadedModel(
            target,
            quantize(read.decoder, keeps_blocks=compiles) if chosen.is_int8 else read.decoder,
            is_int8=chosen.is_int8,
            overflowed=read.overflowed,
        )
        loaded_draft = None
        if draft_source is not None:
            report(f"loading draft {draft}")
            # On a CPU a draft becomes int8, which is made of blocks or keeps them.
            keeps = device.type == "cpu"
            drafting = _read(draft_source, compute, device, prompts, keeps_blocks=keeps).decoder
            loaded_draft = _draft(draft, drafting, keeps_blocks=compiles)
        elif draft == INT8 and not chosen.is_int8 and (has_int8_copy or not chosen.is_packed):
            loaded_draft = _int8_copy(loaded_target, report, keeps_blocks=compiles)
        elif draft == INT8 and chosen.is_packed:
            report(
                "lookup drafts alone: an int8 copy of weights in blocks costs nearly as much as they do (--draft int8)"
            )
        elif draft == INT8:
            logger.warning(
                "an int8 draft of an int8 target is the target itself; speculation with a draft model is off"
            )
    return LoadedModels(
        target=loaded_target,
        draft=loaded_draft,
        tokenizer=target_source.tokenizer,
        eos_token_ids=end_token_ids(target_source.tokenizer, target_source.config, read.generation_config),
        vocab_size=min(loaded_target.decoder.vocab_size, int(target_source.config.vocab_size)),
        max_context=int(target_source.config.max_position_embeddings),
        turn_end_ids=(
            turn_end_ids(target_source.tokenizer, None if template is None else template.probe)
            | target_source.turn_end_ids
            | forms.turn_ends
        )
        - forms.within_turn,
        chat_forms=forms,
        prompts=prompts,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A model read from its files; ``overflowed`` is as in ``LoadedModel``."""

    decoder: Decoder
    generation_config: GenerationConfig | None
    overflowed: bool = False


def _read(
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    prompts: PromptEncoder,
    *,
    keeps_blocks: bool = False,
    keeps_origins: bool = False,
) -> _Read:
    """Read a model, in float32 if its weights, or its activations over a fixed text, do not fit into float16.

    Many models that were trained in bfloat16 overflow float16 within a layer or two, whatever the prompt. ``prompts``
    tokenises the text, within its limits; a draft has the target's vocabulary. With
    ``keeps_blocks`` matrices in blocks stay so; ``keeps_origins``: see ``build_decoder``.

    Raises:
        ModelError: The tokenizer fails on the text.
    """
    if dtype != torch.float16:
        return _build(source, dtype, device, keeps_blocks=keeps_blocks, keeps_origins=keeps_origins)
    with contextlib.suppress(Float16OverflowError):
        read = _build(source, dtype, device, keeps_origins=keeps_origins)
        if logits_are_finite(read.decoder, _trial_ids(source.checkpoint.name, prompts)):
            return read
        del read
    cleanup_memory(device)
    name = source.checkpoint.name
    logger.warning("model %s does not fit float16's range; it runs in float32, which takes twice the memory", name)
    try:
        check_device_memory(device, WeightFormat(torch.float32), source, None, has_int8_copy=False)
    except InsufficientMemoryError as error:
        raise InsufficientMemoryError(f"model {name} does not fit float16's range, and in float32 {error}") from error
    return replace(_build(source, torch.float32, device, keeps_origins=keeps_origins), overflowed=True)


def _trial_ids(name: str, prompts: PromptEncoder) -> tuple[int, ...]:
    try:
        return prompts.encode_prompt(TRIAL_TEXT)
    except RequestError as error:
        raise ModelError(f"model {name}: its tokenizer fails on a plain text ({error}); use another model") from error


def _build(
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keeps_blocks: bool = False,
    keeps_origins: bool = False,
) -> _Read:
    """Read the weights onto the CPU, and move each to the device in ``dtype`` while building the decoder.

    If all weights are stored in one dtype, they are read in that dtype: transformers then hands out views of the mapped
    file, and the model is never in memory twice.

    Raises:
        Float16OverflowError: A weight lies beyond float16's range.
        UnsupportedArchitectureError: The device does not compute it.
    """
    checkpoint = source.checkpoint
    check_recurrent(checkpoint.name, device, is_recurrent=describe(source.config).is_recurrent)
    if device.type not in ("cpu", "mps"):  # these share the machine's memory
        check_host_memory(source, dtype)
    stored = checkpoint.dtype if checkpoint.is_uniform else None
    model = read_weights(source, stored or dtype)
    generation_config = model.generation_config
    placement = Placement(
        dtype=dtype,
        device=device,
        checks_range=dtype == torch.float16 and checkpoint.dtype != torch.float16,
        keeps_blocks=keeps_blocks,
        has_whole_norms=checkpoint.gguf is not None,
    )
    decoder = build_decoder(model, placement, keeps_origins=keeps_origins)
    del model
    cleanup_memory(device)
    return _Read(decoder, generation_config)


def check_recurrent(name: str, device: torch.device, *, is_recurrent: bool) -> None:
    """Refuse recurrent layers on DirectML.

    Raises:
        UnsupportedArchitectureError: The device does not compute them.
    """
    if is_recurrent and device.type == DIRECTML_DEVICE_TYPE:
        raise UnsupportedArchitectureError(
            f"model {name} has recurrent layers, which Helix does not compute on DirectML; use --device cpu"
        )


def _draft(name: str, decoder: Decoder, *, keeps_blocks: bool) -> LoadedModel:
    """A draft only affects speed, so it is quantised wherever that is faster."""
    if decoder.device.type != "cpu":
        return LoadedModel(name, decoder)
    return LoadedModel(name, quantize(decoder, keeps_blocks=keeps_blocks), is_int8=True)


def _int8_copy(target: LoadedModel, report: Callable[[str], object], *, keeps_blocks: bool) -> LoadedModel | None:
    if target.decoder.device.type != "cpu":
        # Elsewhere the weights would be widened anew at each step: such a draft costs more than its target.
        logger.warning("an int8 draft is only faster on a CPU; speculation with a draft model is off")
        return None
    report("making the int8 draft")
    copied = quantize(target.decoder, keeps_blocks=keeps_blocks)
    return LoadedModel(f"{target.name} (int8)", copied, is_int8=True, is_copy=True)
