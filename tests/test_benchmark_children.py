"""Benchmarks whose cases are processes of their own: what those answer, and what becomes of it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from benchmarks import child, duration, memory

MODULE = "tests.test_benchmark_children"


@dataclass(frozen=True)
class Case:
    """What this module is asked to do when it is run as a process: hold some memory, or fail."""

    held: int
    fails: bool = False


def main(arguments: Sequence[str]) -> None:
    case = Case(**json.loads(arguments[arguments.index("--one") + 1]))
    ballast = b"x" * case.held
    if case.fails:
        sys.exit(3)
    print(json.dumps({"held": len(ballast), "others": [word for word in arguments if word.startswith("--other")]}))


def test_a_case_answers_and_its_peak_is_its_own() -> None:
    much = 400 * 2**20
    (small, least), (large, most) = (child.run(MODULE, Case(held), ["--other"]) for held in (1, much))
    assert small == {"held": 1, "others": ["--other"]}
    assert large["held"] == much
    # What was given back after the imports hides a part of it.
    assert 0.5 * much < most - least < 1.05 * much


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


if __name__ == "__main__":
    main(sys.argv)
