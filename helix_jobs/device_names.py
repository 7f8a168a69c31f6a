"""Names of devices: what people write, and what torch calls them. Light: commands read them without torch."""

from __future__ import annotations

from typing import Final

from helix_jobs.errors import ConfigurationError

# In the order in which a worker prefers them.
DEVICE_KINDS: Final = ("directml", "cuda", "xpu", "mps", "cpu")
# Torch's name of a backend from outside torch, which torch-directml is.
DIRECTML_DEVICE_TYPE: Final = "privateuseone"
_ALIASES: Final = {"dml": "directml", DIRECTML_DEVICE_TYPE: "directml", "rocm": "cuda", "hip": "cuda"}
# There is one of each, and torch names it without a number.
_SINGLE: Final = ("mps", "cpu")


def read_device_name(name: str) -> tuple[str, int | None]:
    """The kind of device that a name means, one of ``DEVICE_KINDS``, and its index; None where the name has none.

    Args:
        name: ``directml``, ``cuda``, ``rocm``, ``xpu``, ``mps`` or ``cpu``, with an index if there are several
            (``cuda:1``), in letters of either case.

    Raises:
        ConfigurationError: No device is called so; the message lists the names.
    """
    kind, _, index = name.lower().partition(":")
    kind = _ALIASES.get(kind, kind)
    if kind not in DEVICE_KINDS or not (index.isdecimal() or index == ""):
        raise ConfigurationError(f"device {name!r} is unknown; use {', '.join(DEVICE_KINDS)} (or cuda:1)")
    return kind, int(index) if index else None


def torch_device_name(name: str) -> str:
    """What torch calls the device of this name, such as ``cuda:1``; without an index all of its kind, ``cuda``.

    Raises:
        ConfigurationError: No device is called so, or there are never so many of its kind.
    """
    kind, index = read_device_name(name)
    if kind in _SINGLE:
        if index:
            raise ConfigurationError(f"device {name!r} does not exist, as there is one {kind}; use {kind}")
        return kind
    kind = DIRECTML_DEVICE_TYPE if kind == "directml" else kind
    return kind if index is None else f"{kind}:{index}"
