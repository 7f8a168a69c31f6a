"""What people call devices, and what torch calls them."""

from __future__ import annotations

import pytest

from helix_jobs.device_names import read_device_name, torch_device_name
from helix_jobs.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "read", "torch_name"),
    [
        ("cuda", ("cuda", None), "cuda"),
        ("CUDA:0", ("cuda", 0), "cuda:0"),
        ("rocm:1", ("cuda", 1), "cuda:1"),
        ("hip", ("cuda", None), "cuda"),
        ("xpu:02", ("xpu", 2), "xpu:2"),
        ("dml", ("directml", None), "privateuseone"),
        ("DirectML:1", ("directml", 1), "privateuseone:1"),
        ("privateuseone:0", ("directml", 0), "privateuseone:0"),
        ("mps", ("mps", None), "mps"),
        ("mps:0", ("mps", 0), "mps"),
        ("cpu:0", ("cpu", 0), "cpu"),
    ],
)
def test_a_name_is_read_in_every_form_and_written_as_torch_does(
    name: str, read: tuple[str, int | None], torch_name: str
) -> None:
    assert read_device_name(name) == read
    assert torch_device_name(name) == torch_name


@pytest.mark.parametrize("name", ["tpu", "cud", "cuda:x", "cuda:-1", "cuda:1:1", "cuda1", "", ":", "auto", "²"])
def test_a_name_that_no_device_has_lists_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is unknown; use directml, cuda, xpu, mps, cpu \(or cuda:1\)"):
        torch_device_name(name)


@pytest.mark.parametrize("name", ["cpu:1", "mps:3"])
def test_there_is_no_second_one_of_some_kinds(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}' does not exist, as there is one"):
        torch_device_name(name)
