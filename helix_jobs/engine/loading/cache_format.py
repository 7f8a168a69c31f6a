"""Where keys and values can be kept in 8 bits, and what a block of them takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.device_names import DIRECTML_DEVICE_TYPE
from helix_jobs.engine.attention.stored_rows import stored_dtype
from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE, INT8_CACHE
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.attention.cache_geometry import CacheGeometry
    from helix_jobs.engine.model.decoder import Decoder


def check_cache_device(kv_cache_dtype: str, device: torch.device) -> None:
    """Refuse keys and values of 8 bits on a device that has no such numbers.

    Args:
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.
        device: Where models compute.

    Raises:
        ConfigurationError: See above.
    """
    if kv_cache_dtype == INT8_CACHE and device.type == DIRECTML_DEVICE_TYPE:
        raise ConfigurationError("KV cache dtype int8 does not run on DirectML; use --kv-cache-dtype auto")


def check_cache_geometry(kv_cache_dtype: str, name: str, geometry: CacheGeometry) -> None:
    """Refuse keys and values of 8 bits for a model with latent attention.

    Trade-off: a latent and the rotated key beside it are one row of the cache, and their numbers differ so much in size
    that one scale would round the smaller of them away. With a scale for each they could be served, but such a row is
    small already: it stands for the keys and values of all heads.

    Args:
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.
        name: The model's name as the user gave it.
        geometry: Shapes of its keys and values.

    Raises:
        ConfigurationError: See above.
    """
    if kv_cache_dtype == INT8_CACHE and not all(shape.has_values for shape in geometry.layers):
        raise ConfigurationError(
            f"KV cache dtype int8 does not hold the latents of model {name}; use --kv-cache-dtype auto"
        )


def block_bytes(decoder: Decoder, kv_cache_dtype: str) -> int:
    """Bytes of one cache block over all layers of a decoder, where no window frees blocks.

    Args:
        decoder: The decoder.
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.
    """
    return decoder.geometry.block_bytes(DEFAULT_BLOCK_SIZE, stored_dtype(kv_cache_dtype, decoder.dtype))
