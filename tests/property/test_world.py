"""The core in a world where anything may happen, in any order. `ORPHEUS_PROPERTY=full` runs it at length."""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.machine import Life

CHECKS = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
#: The same stories each time, so that a red test is about the change and not about luck.
QUICK = settings(max_examples=250, stateful_step_count=50, deadline=None, derandomize=True, database=None,
                 suppress_health_check=CHECKS)
FULL = settings(max_examples=2000, stateful_step_count=60, deadline=None, suppress_health_check=CHECKS,
                print_blob=True)


@pytest.mark.deadline(3600)
def test_every_promise_holds_whatever_happens() -> None:
    profile = FULL if os.environ.get("ORPHEUS_PROPERTY") == "full" else QUICK
    run_state_machine_as_test(Life, settings=profile)
