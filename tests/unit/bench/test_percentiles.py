from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.bench.percentiles import Percentiles, percentile

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(VALUES, st.floats(0, 1))
def test_percentiles_are_numpys(values, share):
    expected = float(np.percentile(values, share * 100))
    assert math.isclose(percentile(sorted(values), share), expected, rel_tol=1e-9, abs_tol=1e-6)


@given(VALUES)
def test_percentiles_ascend_and_stay_inside(values):
    found = Percentiles.of(values)
    assert min(values) <= found.p50 <= found.p90 <= found.p99 <= max(values)


def test_of_nothing_there_are_none():
    assert Percentiles.of([]) is None
