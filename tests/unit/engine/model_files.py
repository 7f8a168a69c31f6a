"""Model files as people have them: tiny, random, in every accepted form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.loading.model_sizes import skeleton
from helix_jobs.engine.model.families.settings import stated
from helix_jobs.engine.model.rope_settings import rope_type
from tests.unit.engine.block_files import scaled_blocks
from tests.unit.engine.tiny_models import CPU, roughen, tiny_config, tiny_model, tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from helix_jobs.engine.loaded_models import LoadedModels


def save_checkpoint(folder: Path, model: Any = None, tok: Any = None, **save: Any) -> Path:
    """A transformers directory, as ``save_pretrained`` writes it."""
    (tiny_model() if model is None else model).save_pretrained(folder, **save)
    (tok or tokenizer()).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Let ``change`` work on what the folder's one weight file holds."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def load(
    target: Path | str, draft: Path | str = "none", *, dtype: str = "auto", home: Path | None = None
) -> LoadedModels:
    return load_models(
        str(target), str(draft), device=CPU, dtype=dtype, home=home or Path("unused"), on_progress=lambda _: None
    )


GGUF_EOS = "<|im_end|>"


def write_gguf(
    path: Path,
    architecture: str = "llama",
    settings: dict[str, Any] | None = None,
    *,
    pre: str = "gpt-2",
    general: dict[str, Any] | None = None,
    leave_out: Sequence[str] = (),
    more: dict[str, torch.Tensor] | None = None,
    quantized: gguf.GGMLQuantizationType | None = None,
    blocks: Callable[[str], str | None] | None = None,
    model_type: str | None = None,
    convert: Callable[[str, torch.Tensor, Any], Iterable[tuple[str, torch.Tensor]]] | None = None,
    prepare: Callable[[Any], None] = lambda _: None,
    stated: Callable[[Any], dict[str, Any]] = lambda _: {},
    part_size: int | None = None,
    **overrides: Any,
) -> Any:
    """A model in float32, as llama.cpp converts it; returns the model.

    Args:
        path: Where to.
        architecture: Of those in ``GGUF_ARCHITECTURES``.
        settings: Further ones, by their name after the architecture's.
        pre: How a byte-level vocabulary splits text into words.
        general: Settings that are not the architecture's, by their whole name.
        leave_out: Names of the architecture's settings that the file lacks.
        more: Further tensors.
        quantized: How the MLPs' matrices are stored; those of a model that is converted in full: how all are, but those
            that the converter keeps.
        blocks: Names the type of the random blocks that a matrix of the file consists of, in place of the model's
            weights; None keeps these.
        model_type: Transformers' name of the architecture, where it is another one.
        convert: Makes a weight what the converter makes of it, under names that it knows or gives.
        prepare: Changes the model before its weights are written.
        stated: Further settings that follow from the model's weights, by their whole name.
        part_size: The most tensors of a part, of a file that is split; then ``path`` is the name that parts are named
            after. None for one file.
        overrides: Of the model's configuration.
    """
    vocabulary = _sentence_pieces() if architecture == "phi3" else _byte_level_tokens()
    model = tiny_model(model_type or architecture, vocab_size=len(vocabulary), **overrides)
    roughen(model)
    prepare(model)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part_size or 0)
    _add_sizes(writer, config)
    _add_tokenizer(writer, vocabulary, pre)
    named = {f"{architecture}.{key}": value for key, value in (settings or {}).items()}
    _add_settings(writer, {**named, **(general or {}), **stated(model)})
    for key in leave_out:
        del writer.kv_data[0][f"{architecture}.{key}"]
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    weights = model.state_dict()
    if convert is None:
        converted = list(_one_tensor_a_projection(weights).items())
    else:
        converted = [one for name, weight in weights.items() for one in convert(name, weight, config)]
    for name, weight in converted:
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        array = (_gguf_weight(name, weight, config) if convert is None else weight).contiguous().numpy().copy()
        kind = blocks(theirs) if blocks is not None and array.ndim > 1 else None
        if kind is not None:
            *outer, columns = array.shape
            stored = scaled_blocks(kind, rows=math.prod(outer), columns=columns, seed=len(theirs) + len(name))
            writer.add_tensor(theirs, stored.view(*outer, -1).numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
        elif quantized is not None and array.ndim > 1 and _is_quantized(theirs, in_full=convert is not None):
            writer.add_tensor(theirs, gguf.quantize(array, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(theirs, array)
    for name, weight in (more or {}).items():
        writer.add_tensor(name, weight.numpy())
    if (factors := _rotary_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def write_random_gguf(path: Path, kind: str, **overrides: Any) -> None:
    """A Llama whose matrices are random blocks: each shape has the same ones in every layer, so size costs no time."""
    vocabulary = _byte_level_tokens()
    config = tiny_config("llama", vocab_size=len(vocabulary), **overrides)
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, config)
    _add_tokenizer(writer, vocabulary, "gpt-2")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    blocks: dict[torch.Size, torch.Tensor] = {}
    for name, weight in skeleton("m", config).state_dict().items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        assert theirs is not None, name
        if weight.dim() == 1:
            writer.add_tensor(theirs, torch.ones(weight.shape).numpy())
            continue
        if weight.shape not in blocks:
            blocks[weight.shape] = scaled_blocks(kind, rows=weight.shape[0], columns=weight.shape[1])
        writer.add_tensor(theirs, blocks[weight.shape].numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def _is_quantized(tensor: str, *, in_full: bool) -> bool:
    kept = any(part in tensor for part in ("ffn_gate_inp", "conv1d", "shortconv.conv", "_norm", "altup", "laurel"))
    return tensor.endswith(".weight") and not kept and (in_full or "ffn" in tensor)


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    is_gpt2 = config.model_type == "gpt2"
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size if is_gpt2 else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if is_gpt2:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        head_dim = stated(config, "head_dim") or config.hidden_size // config.num_attention_heads
        writer.add_head_count_kv(stated(config, "num_key_value_heads") or config.num_attention_heads)
        writer.add_key_length(head_dim)
        writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", None) or getattr(config, "norm_eps", 1e-5))
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(head_dim)


def _add_settings(writer: gguf.GGUFWriter, settings: dict[str, Any]) -> None:
    adds = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32, list: writer.add_array}
    for key, value in settings.items():
        adds.get(type(value), writer.add_uint32)(key, value)


def _one_tensor_a_projection(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts' gates and up projections apart, as files have them."""
    apart = {}
    for name, weight in weights.items():
        if name.endswith(".experts.gate_up_proj"):
            gate, up = weight.chunk(2, dim=1)
            apart.update({name.replace("gate_up", part) + ".weight": one for part, one in (("gate", gate), ("up", up))})
        else:
            apart[f"{name}.weight" if name.endswith(".experts.down_proj") else name] = weight
    return apart


def _byte_level_tokens() -> list[str]:
    return ["<|im_start|>", GGUF_EOS, *sorted(ByteLevel.alphabet()), "he", "lo"]


def _sentence_pieces() -> list[str]:
    return ["<unk>", GGUF_EOS, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "h", "e", "l", "o", "he", "lo"]


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str], pre: str) -> None:
    writer.add_token_list(tokens)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    if tokens[0] == "<unk>":
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
        writer.add_token_types([2, 3, *[6] * 256, *[1] * (len(tokens) - 258)])
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(0)
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(["h e", "l o"])


def _gguf_weight(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """llama.cpp stores Llama's rotary pairs side by side, GPT-2's weights as linear layers have them, and rows flat."""
    if weight.dim() > 1 and len(weight) == 1:
        return weight[0]
    if config.model_type == "gpt2" and weight.dim() > 1 and ".h." in name:
        return weight.t()
    if config.model_type not in ("llama", "mixtral"):
        return weight
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name and weight.dim() > 1:
            return weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return weight


def _rotary_factors(config: Any) -> torch.Tensor | None:
    """How llama.cpp stores Llama 3.1's rotary scaling: as divisors of the plain frequencies."""
    if config.model_type != "llama" or rope_type(config) != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    plain = 10000.0 ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    return plain / scaled
