"""The simulation of the queue on cases with known answers."""

import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import capacity, queue
from benchmarks.queue import BUSIEST, HOUR, POLICIES, Request, Served, fair, first_come, jain, max_min, simulate


def poisson(rate: float, count: int, *, seed: int, owners: int = 5) -> list[tuple[float, str]]:
    chance = random.Random(seed)
    times = accumulate(chance.expovariate(rate) for _ in range(count))
    return [(time, f"owner {chance.randrange(owners)}") for time in times]


def mean_wait(served: Sequence[Served]) -> float:
    return statistics.mean(one.wait for one in served)


# ── Queueing theory: the mean wait doesn't depend on whose turn it is, as long as nobody knows how long jobs take ────


@pytest.mark.parametrize("policy", POLICIES)
def test_one_slot_and_equal_jobs_wait_as_theory_says(policy: str) -> None:
    """M/D/1 (Pollaczek–Khinchine): a mean wait of ρ / (2 (1 − ρ)) jobs' time."""
    load, seconds = 0.7, 10.0
    requests = [Request(time, owner, seconds) for time, owner in poisson(load / seconds, 20_000, seed=1)]
    expected = load / (2 * (1 - load)) * seconds
    assert mean_wait(simulate(requests, 1, POLICIES[policy])) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("policy", POLICIES)
def test_several_slots_and_exponential_jobs_wait_as_theory_says(policy: str) -> None:
    """M/M/c (Erlang C)."""
    slots, load, seconds = 4, 0.7, 10.0
    chance = random.Random(2)
    arrivals = poisson(slots * load / seconds, 30_000, seed=3)
    requests = [Request(time, owner, chance.expovariate(1 / seconds)) for time, owner in arrivals]
    offered = slots * load
    full = offered**slots / math.factorial(slots) / (1 - load)
    waits = full / (sum(offered**k / math.factorial(k) for k in range(slots)) + full)
    expected = waits * seconds / (slots * (1 - load))
    assert mean_wait(simulate(requests, slots, POLICIES[policy])) == pytest.approx(expected, rel=0.1)


# ── Order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_asks_for_one_picture_does_not_wait_for_a_hundred() -> None:
    requests = [*(Request(0, "many", 10) for _ in range(100)), Request(1, "one", 10)]
    waits = {
        name: {one.request.owner: one.wait for one in simulate(requests, 1, how)} for name, how in POLICIES.items()
    }
    assert waits["in turn"]["one"] == 9
    assert waits["first come"]["one"] == 999


REQUESTS = st.lists(
    st.builds(Request, time=st.integers(0, 50), owner=st.sampled_from("abc"), seconds=st.integers(1, 20)), max_size=40
)


@given(requests=REQUESTS, slots=st.integers(1, 5), policy=st.sampled_from([fair, first_come]))
def test_every_job_is_done_once_on_a_slot_of_its_own_and_none_idles(
    requests: list[Request], slots: int, policy: queue.Policy
) -> None:
    served = simulate(requests, slots, policy)
    assert sorted(map(repr, (one.request for one in served))) == sorted(map(repr, requests))
    assert all(one.wait >= 0 for one in served)
    for now in {one.began for one in served} | {one.end for one in served}:
        busy = sum(one.began <= now < one.end for one in served)
        waiting = sum(one.request.time <= now < one.began for one in served)
        assert busy <= slots
        assert busy == slots or not waiting


# ── Fairness ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "index"), [([3, 3, 3, 3], 1), ([1, 0, 0, 0], 1 / 4), ([1, 2, 3], 36 / 42), ([0.5], 1), ([0, 0], 1)]
)
def test_jains_index_of_known_vectors(values: list[float], index: float) -> None:
    assert jain(values) == pytest.approx(index)


@pytest.mark.parametrize(
    ("demands", "supply", "shares"),
    [
        ({"a": 2, "b": 8, "c": 8}, 10, {"a": 2, "b": 4, "c": 4}),
        ({"a": 1, "b": 2}, 10, {"a": 1, "b": 2}),
        ({"a": 5, "b": 5, "c": 5}, 6, {"a": 2, "b": 2, "c": 2}),
        # Bertsekas & Gallager, Data Networks, the textbook's example of filling.
        ({"a": 2, "b": 2.6, "c": 4, "d": 5}, 10, {"a": 2, "b": 2.6, "c": 2.7, "d": 2.7}),
    ],
)
def test_max_min_shares(demands: Mapping[str, float], supply: float, shares: Mapping[str, float]) -> None:
    assert max_min(demands, supply) == pytest.approx(shares)


def test_fairness_sees_who_got_all_of_an_hour() -> None:
    requests = [Request(BUSIEST, owner, 60) for owner in "aaaabbbb" for _ in range(30)]
    taken, shared = (simulate(requests, 2, policy) for policy in (first_come, fair))
    assert queue.fairness(taken, 2, BUSIEST, BUSIEST + HOUR) == pytest.approx(1 / 2)
    assert queue.fairness(shared, 2, BUSIEST, BUSIEST + HOUR) == pytest.approx(1)


# ── Arrivals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_evening_is_as_busy_as_it_says_and_its_owners_are_of_two_kinds() -> None:
    times = {0: 1.0, 1: 2.0, 2: 6.0, 3: 20.0, 4: 80.0}
    slots = 32
    found = queue.evening(slots, times, seed=4)
    hour = [one for one in found if abs(one.time - BUSIEST) < HOUR / 2]
    assert sum(one.seconds for one in hour) / (slots * HOUR) == pytest.approx(queue.LOAD, rel=0.1)
    counts = sorted(Counter(one.owner for one in found).values(), reverse=True)
    assert sum(counts[: len(counts) // 10]) > 0.35 * sum(counts)
    assert found == queue.evening(slots, times, seed=4) != queue.evening(slots, times, seed=5)


def test_the_curve_of_a_day() -> None:
    assert queue.curve(BUSIEST) == pytest.approx(1)
    assert min(queue.curve(hour * HOUR) for hour in range(24)) == pytest.approx(queue.NIGHT)
    share = 1 / sum(queue.curve(hour * HOUR) for hour in range(24))
    assert share == pytest.approx(capacity.BUSIEST_HOUR, rel=0.05)


def test_the_command_writes_figures_of_both_policies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs pip install -e '.[bench]'")
    queue.main(["--slots", "2", "--evenings", "2", "--output", str(tmp_path / "queue.json")])
    (cluster,) = json.loads((tmp_path / "queue.json").read_text())["clusters"]
    turn, first = cluster["in turn"], cluster["first come"]
    assert turn["evening"]["jobs"] == first["evening"]["jobs"] == cluster["requests"]
    assert turn["others_beside_heavy"]["few_p95"] < first["others_beside_heavy"]["few_p95"]
    assert turn["fairness_beside_heavy"] > first["fairness_beside_heavy"]
    assert (tmp_path / "queue.png").read_bytes().startswith(b"\x89PNG")
