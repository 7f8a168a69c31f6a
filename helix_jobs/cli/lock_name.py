"""The name under which workers lock a device."""

from __future__ import annotations

from helix_jobs.device_names import torch_device_name
from helix_jobs.endpoint_url import checked_endpoint_url


def lock_name(device: str) -> str:
    """What a person's name of a device stands for: torch's name, or the address of a server of the user's.

    Raises:
        ConfigurationError: No device is called so.
    """
    return checked_endpoint_url(device) if "://" in device else torch_device_name(device)
