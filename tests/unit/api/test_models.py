"""The list of models is answered again only where it was answered once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.api.models import list_models
from helix_jobs.errors import DatabaseUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable


def request(alive: Callable[[], Any]) -> Any:
    settings = SimpleNamespace(target_model="demo", adapters=())
    context = SimpleNamespace(workers=SimpleNamespace(alive=alive), settings=settings)
    return SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(context=context)), scope={"state": {}})


def test_a_list_is_answered_again() -> None:
    asked = request(lambda: ())
    assert [model["id"] for model in list_models(asked)["data"]] == ["demo"]
    assert asked.scope["state"]


def test_a_list_that_cannot_be_read_is_no_answer_for_later() -> None:
    def fail() -> None:
        raise DatabaseUnreachableError("it does not answer")

    asked = request(fail)
    with pytest.raises(DatabaseUnreachableError):
        list_models(asked)
    assert not asked.scope["state"]
