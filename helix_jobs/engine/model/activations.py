"""Activations of the MLP, by the names that model configurations give them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PretrainedConfig

tanh_gelu: Final = partial(functional.gelu, approximate="tanh")

# Several names mean one function written in different ways. The results differ by rounding; the fused one is used.
ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_accurate": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_python_tanh": tanh_gelu,
    "relu": functional.relu,
}


def activation_name(config: PretrainedConfig) -> str:
    """The configuration's name for the activation; a key of ``ACTIVATIONS`` if it is supported.

    Gemma's first checkpoints say ``gelu`` and mean the tanh form; transformers 5 corrects that, 4 does not. No PyTorch
    module reads the ``hidden_activation`` beside it.
    """
    name = str(config.activation_function if config.model_type == "gpt2" else config.hidden_act)
    return "gelu_pytorch_tanh" if config.model_type == "gemma" and name == "gelu" else name
