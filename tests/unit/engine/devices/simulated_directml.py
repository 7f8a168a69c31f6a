"""A DirectML device made of CPU tensors: it computes everything and notes every breach of the rules.

Its tensors say that they are on ``privateuseone``, so the engine takes the paths it takes on the real device.
"""

from __future__ import annotations

import inspect
import sys
import types
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import helix_jobs
from helix_jobs.device_names import DIRECTML_DEVICE_TYPE
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.placement import Placement
from tests.unit.engine.devices.operator_rules import base_name, breaches, operator_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from helix_jobs.engine.model.decoder import Decoder

DIRECTML = torch.device(DIRECTML_DEVICE_TYPE, 0)
PACKAGE = Path(helix_jobs.__file__).parent


class DirectmlTensor(torch.Tensor):
    """A tensor on the simulated device; ``host`` is what it is made of, views and all."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DIRECTML,
        )

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
        """torch's own asks for a device guard before it clones."""
        return self if self.is_contiguous(memory_format=memory_format) else self.clone(memory_format=memory_format)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} runs outside the simulated device")


class SimulatedDirectml(TorchDispatchMode):
    """While entered, ``privateuseone`` exists.

    Attributes:
        breaches: What broke the rules, each with the line of the package that did.
        operators: Names of the operators that ran on the device.
        downloads: How many tensors went to the CPU.
        uploads: How many came from there.
        shapes: Operators with the shapes of their inputs: each is compiled once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.breaches: set[str] = set()
        self.operators: set[str] = set()
        self.downloads = 0
        self.uploads = 0
        self.shapes: set[tuple[object, ...]] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard against it takes a tenth of a generation."""
        return False

    def __enter__(self) -> Self:
        # torch looks here for the backend's initialisation.
        backend = types.ModuleType(f"torch.{DIRECTML_DEVICE_TYPE}")
        backend._lazy_init = lambda: None  # type: ignore[attr-defined]
        sys.modules.setdefault(backend.__name__, backend)
        super().__enter__()
        return self

    @staticmethod
    def left() -> AbstractContextManager[None]:
        """For what runs on the host alone: no operator in it takes the way through ``__torch_dispatch__``."""
        return _disable_current_modes()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors: list[torch.Tensor] = []
        host_args = [_on_host(one, tensors) for one in args]
        host_kwargs: dict[str, Any] = {}
        device = None
        if kwargs:
            host_kwargs = {name: _on_host(value, tensors) for name, value in kwargs.items()}
            device = kwargs.get("device")
        inputs = [tensor for tensor in tensors if type(tensor) is DirectmlTensor]
        goes_to_device = torch.device(device).type == DIRECTML_DEVICE_TYPE if device is not None else bool(inputs)
        if not inputs and not goes_to_device:
            return func(*args, **host_kwargs)
        if device is not None:
            host_kwargs["device"] = torch.device("cpu")
        result = func(*host_args, **host_kwargs)
        name, base, places = _schema_of(func)
        is_upload = goes_to_device and not inputs and base == "_to_copy"
        self.uploads += is_upload
        if inputs:
            self.shapes.add((base, *(one.shape for one in inputs)))
        if not is_upload and len(inputs) < len(tensors):
            self._note([f"{base} mixes tensors of host and device"])
        if not goes_to_device:
            self.downloads += 1
            self._note(breaches(name, _hosts(inputs), [], [result]))
            return result
        self.operators.add(base)
        written = [args[place] for place in places if place < len(args)] if places else []
        if base == "scatter" and len(inputs) == 3:
            self._check_unique(inputs[1].host)
        if base in {"_local_scalar_dense", "is_nonzero", "equal"}:
            self.downloads += 1
            self._note([f"{base} waits for the device"])
            return result
        if written:
            self._note(breaches(name, _hosts(inputs), _hosts(written), [written[0].host]))
            return written[0]
        outputs: list[torch.Tensor] = []
        wrapped = _on_device(result, outputs)
        self._note(breaches(name, _hosts(inputs), [], outputs))
        return wrapped

    def _check_unique(self, index: torch.Tensor) -> None:
        rows = index.select(1, 0)
        if len(rows.unique()) < len(rows):
            self._note(["scatter writes a row twice"])
        if not bool((index == rows.unsqueeze(1)).all()):
            self._note(["scatter of less than whole rows"])

    def _note(self, found: list[str]) -> None:
        if found:
            self.breaches |= {f"{one} ({_caller()})" for one in found}


# Arguments that hold no tensor.
_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype))


# torch's own functions for trees take most of a test's time: operators nest lists and tuples alone.
def _on_host(value: Any, tensors: list[torch.Tensor]) -> Any:
    """An argument with what its tensors on the device are made of; ``tensors`` receives its tensors, in order."""
    kind = type(value)
    if kind is DirectmlTensor:
        tensors.append(value)
        return value.host
    if kind in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value
    if isinstance(value, list | tuple):
        return kind([_on_host(one, tensors) for one in value])
    return value


def _on_device(value: Any, hosts: list[torch.Tensor]) -> Any:
    """A result with its tensors on the device; ``hosts`` receives what they are made of, in order."""
    if isinstance(value, torch.Tensor):
        hosts.append(value)
        return DirectmlTensor(value)
    if isinstance(value, list | tuple):
        return type(value)([_on_device(one, hosts) for one in value])
    return value


def _hosts(tensors: Sequence[DirectmlTensor]) -> list[torch.Tensor]:
    return [tensor.host for tensor in tensors]


@cache  # asking torch for an operator's schema takes longer than most operators
def _schema_of(func: Any) -> tuple[str, str, tuple[int, ...]]:
    """An operator's name in ATen, its base name, and the places of the arguments that it changes."""
    written = (argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)
    name = operator_name(func)
    return name, base_name(name), tuple(place for place, is_written in enumerate(written) if is_written)


def _caller() -> str:
    frame: types.FrameType | None = inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"


def built_on_device(model: Any) -> Decoder:
    """As the loader does it: the model is taken apart on the host, and each finished tensor is moved."""
    return build_decoder(model, Placement(dtype=model.dtype, device=DIRECTML), keeps_origins=True)
