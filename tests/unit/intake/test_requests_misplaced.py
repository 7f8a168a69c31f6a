"""A value of any type in any place of a line is taken or refused by the field's name: it ends no submission."""

from __future__ import annotations

import json

import pytest

from helix_jobs.new_job import NewJob
from tests.unit.intake.misplaced_values import GOOD_LINES, with_strangers
from tests.unit.intake.reader_invariants import check_invariants
from tests.unit.intake.request_lines import read_one


@pytest.mark.thorough(fast=10)
@pytest.mark.parametrize("line", GOOD_LINES, ids=[" ".join(line)[:40] for line in GOOD_LINES])
def test_no_value_in_a_wrong_place_crashes_the_reader(line):
    assert isinstance(read_one(line), NewJob)
    for changed in with_strangers(line):
        check_invariants(json.dumps(changed).encode())
