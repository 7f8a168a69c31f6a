"""The decoder's test cases: each family, with every setting that changes what it computes."""

from __future__ import annotations

from helix_jobs.engine.model.families.sparse_registry import SPARSE_FAMILIES
from tests.unit.engine.model.dense_cases import DENSE_CASES
from tests.unit.engine.model.family_case import Case
from tests.unit.engine.model.other_settings import EVERYTHING_ELSE
from tests.unit.engine.model.sparse_cases import DENSE_DEEPSEEK_V2, SPARSE_CASES
from tests.unit.engine.tiny_models import ARCHITECTURES

CASES = [
    *(Case(family, settings) for family, settings in EVERYTHING_ELSE.items()),
    *DENSE_CASES,
    *SPARSE_CASES,
]
# Each family once, for tests of what does not depend on its settings.
PLAIN_CASES = [case for case in CASES if not case.settings]
_SPARSE = {family.model_type for family in SPARSE_FAMILIES}
# Of families that are described by their differences from these, each once. Rounding can change the choice of experts,
# so models with experts are compared position by position.
ROUNDED_CASES = [
    case
    for case in CASES
    if case.architecture in ARCHITECTURES
    or case is DENSE_DEEPSEEK_V2
    or not (case.settings or case.architecture in _SPARSE)
]
