"""Benchmarks whose cases are processes of their own: what those answer, and what becomes of it."""

import pytest

from benchmarks import child, duration, memory
from tests.benchmark_double import Case

MODULE = "tests.benchmark_double"


def test_a_case_answers() -> None:
    assert child.run(MODULE, Case(1), ["--other"]) == {"held": 1, "others": ["--other"]}


def test_a_case_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        child.run(MODULE, Case(1, fails=True))


def test_errors_are_shares_of_what_was_taken() -> None:
    case = duration.Case("compact", 1, "rocket", "swirls")
    assert duration.Taken(case, foretold=None, seconds=10, before=1, iterations=90).error is None
    assert duration.Taken(case, foretold=12, seconds=10, before=1, iterations=90).error == pytest.approx(0.2)
    measured = memory.Measured(memory.Case("compact", 1, None, 9), 96, 64, "kkk kkk", 10, 95, 100, 1.0)
    assert measured.error == pytest.approx(-0.05)
    assert measured.nanoseconds_per_pixel == pytest.approx(1e9 / (96 * 64 * 1.25))
