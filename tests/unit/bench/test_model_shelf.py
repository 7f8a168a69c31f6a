"""A bench opens its models as a worker does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helix_jobs.bench.model_shelf import ModelShelf
from helix_jobs.bench.modes import Mode
from helix_jobs.bench.plan import BenchPlan
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.packed_int8_linear import CompiledPackedInt8Linear
from helix_jobs.engine.kernels.cpu.packed_linear import CompiledPackedLinear
from helix_jobs.engine.loading import byte_trial
from helix_jobs.engine.loading import load_engine as loading
from tests.unit.engine.model_files import write_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.loaded_models import LoadedModels

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 16,
}


@pytest.fixture
def path(tmp_path: Path, kernels_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loading, "load_kernels", lambda _, *rest: load_kernels(kernels_folder, *rest))
    made = tmp_path / "m.gguf"
    write_gguf(made, blocks=lambda _: "Q4_K", **SIZES)
    return made


def opened(path: Path, dtype: str, *modes: Mode) -> LoadedModels:
    plan = BenchPlan(
        command="", workload="decode", modes=modes, batch_sizes=(1,), repeat=1, target=str(path), dtype=dtype,
        device="cpu", home=path.parent, compile="on",
    )  # fmt: skip
    return ModelShelf(plan, lambda _: None).models


@pytest.mark.thorough
def test_an_int8_target_keeps_its_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the bench would measure int8 rows, which take more than twice the memory."""
    monkeypatch.setattr(byte_trial, "is_exact_faster", lambda *_: False)
    models = opened(path, "int8", Mode("off"))
    assert all(isinstance(linear, CompiledPackedInt8Linear) for linear in models.target.decoder.linears())


@pytest.mark.thorough
def test_an_int8_target_is_exact_where_that_is_faster_for_the_largest_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_trial, "is_exact_faster", lambda _, batch, __: batch == 1)
    models = opened(path, "int8", Mode("off"))
    assert all(isinstance(linear, CompiledPackedLinear) for linear in models.target.decoder.linears())
    assert models.target.dtype_name == "q4_k"


@pytest.mark.parametrize(("draft", "is_made"), [("lookup+int8", False), ("int8", True)])
def test_a_target_in_blocks_is_copied_only_on_demand(path: Path, draft: str, *, is_made: bool) -> None:
    models = opened(path, "packed", Mode("off"), Mode("auto", draft))
    assert all(isinstance(linear, CompiledPackedLinear) for linear in models.target.decoder.linears())
    assert (models.draft is not None) == is_made
    if models.draft is not None:
        assert all(isinstance(linear, CompiledPackedInt8Linear) for linear in models.draft.decoder.linears())
