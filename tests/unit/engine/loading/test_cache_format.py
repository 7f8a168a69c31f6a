"""Where keys and values of 8 bits are refused, and that a worker's engine has them where they are not."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from helix_jobs.doctor.model_report import Place, report_models
from helix_jobs.engine.loading import load_engine as loading
from helix_jobs.engine.loading import model_loader
from helix_jobs.engine.loading.load_engine import load_engine
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.errors import ConfigurationError
from helix_jobs.settings import Settings
from tests.unit.engine.devices.simulated_directml import DIRECTML
from tests.unit.engine.model_files import save_checkpoint
from tests.unit.engine.rounded_cache import rounded_beside
from tests.unit.engine.tiny_models import CPU, request, roughen, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

LATENTS = pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")


def settings_of(home: Path, **variables: object) -> Settings:
    given = {"HOME": home, "DEVICE": "cpu", "DTYPE": "float32", "COMPILE": "off", "KV_CACHE_DTYPE": "int8", **variables}
    settings = Settings.from_environment({f"HELIX_{name}": str(value) for name, value in given.items()})
    settings.make_home()
    return settings


@LATENTS
@pytest.mark.parametrize("place", ["target", "draft"])
def test_latents_are_refused_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(model_loader, "read_weights", lambda *_: pytest.fail("a weight is read"))
    folders = {"target": save_checkpoint(tmp_path / "target", tiny_model())}
    folders["draft"] = save_checkpoint(tmp_path / "draft", tiny_model())
    folders[place] = save_checkpoint(tmp_path / "latents", tiny_model("youtu"))
    settings = settings_of(tmp_path / "home", TARGET_MODEL=folders["target"], DRAFT_MODEL=folders["draft"])
    with pytest.raises(ConfigurationError, match=r"does not hold the latents of model .*latents; use --kv-cache-dtype"):
        load_engine(settings)


def test_directml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(save_checkpoint(tmp_path / "m", tiny_model()))
    with pytest.raises(ConfigurationError, match="does not run on DirectML; use --kv-cache-dtype auto"):
        load_models(folder, "none", device=DIRECTML, dtype="float32", home=tmp_path, kv_cache_dtype="int8")
    monkeypatch.setattr(loading, "get_device", lambda _: DIRECTML)
    monkeypatch.setattr(loading, "load_models", lambda *_, **__: pytest.fail("models are loaded"))
    with pytest.raises(ConfigurationError, match="does not run on DirectML"):
        load_engine(settings_of(tmp_path / "home", TARGET_MODEL=folder))


@LATENTS
def test_helix_models_says_so(tmp_path: Path) -> None:
    latents, plain = (save_checkpoint(tmp_path / name, tiny_model(name)) for name in ("youtu", "llama"))
    settings = settings_of(tmp_path / "home", DRAFT_MODEL="none")
    refused, served = report_models([str(latents), str(plain)], settings, Place(CPU, "CPU", 10**9))
    assert refused.reason == f"KV cache dtype int8 does not hold the latents of model {latents}"
    assert refused.remedy == "use --kv-cache-dtype auto"
    assert served.is_well
    with pytest.raises(ConfigurationError, match="does not run on DirectML"):
        report_models([str(plain)], settings, Place(DIRECTML, "DirectML", None))


@pytest.mark.thorough
def test_a_worker_s_engine_rounds_keys_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths adapt, so costs are measured: with another cache they are others."""
    model = roughen(tiny_model(seed=3))
    folder = save_checkpoint(tmp_path / "m", model)
    measured = []
    for dtype in ("auto", "int8", "int8"):
        told: list[str] = []
        settings = settings_of(tmp_path / "home", TARGET_MODEL=folder, KV_CACHE_DTYPE=dtype, KV_CACHE_MB=1)
        with closing(load_engine(settings, told.append)) as engine:
            info = engine.info
            (result,) = engine.generate([request("r", range(2, 30), max_tokens=40, ignore_eos=True)])
        assert (info.kv_cache_dtype, info.dtypes) == (dtype, "float32" if dtype == "auto" else "float32, KV int8")
        measured.append(any("measuring" in line for line in told))
    assert measured == [True, True, False]
    assert result.output_token_ids == rounded_beside(model, range(2, 30), result.output_token_ids)
