"""How long people wait, and how fair the queue is: `python -m benchmarks.queue`.

A simulation in virtual time of the scheduler's own policy, `core.studio.scheduler.turns`, beside plain first come,
first served. When a slot is free, the policy says which of the waiting jobs starts; a job then takes as long as
`benchmarks.capacity` computes for its level, more or less. Arrivals have the shape of real ones: few at night and many
in the evening, in bursts (an album, a table of pictures), from owners of whom few ask for much and many for little.
"""

import argparse
import bisect
import heapq
import itertools
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import capacity
from core.config import Settings
from core.studio.jobs import Job
from core.studio.scheduler import turns

RESULTS = Path(__file__).parent / "results"

HOUR = 3600.0
DAY = 24 * HOUR
BUSIEST = 19 * HOUR
"""When most people are at it."""
BEGIN, END = 16 * HOUR, 22 * HOUR
"""The evening that is played."""
GPU = capacity.GPUS[0]
"""Of every slot; on a faster one everything takes less time, in proportion."""
NIGHT = 0.15
"""Arrivals in the quietest hour, as a share of those in the busiest."""
BURST = 2.0
"""Pictures that are asked for at once, on average; geometrically distributed."""
TAIL = 1.2
"""Exponent of the owners' activity (Pareto): the busiest tenth asks for about two thirds of all pictures."""
SPREAD = 0.25
"""Standard deviation of the logarithm of a job's time around that of its level."""
LOAD = 0.9
"""Share of the slots that the busiest hour would keep busy."""
HEAVY, HEAVY_JOBS, HEAVY_LEVEL = "heavy", 100, 2
"""One user hands in so many jobs at once, in the busiest hour."""

FEW = 3
"""Pictures in an evening."""

Policy = Callable[[Sequence[Job], Mapping[str, float]], Job]
"""Which of the waiting jobs starts next, given when each owner was served last."""


def fair(waiting: Sequence[Job], served: Mapping[str, float]) -> Job:
    """The scheduler's policy."""
    return turns(waiting, served)[0]


def first_come(waiting: Sequence[Job], served: Mapping[str, float]) -> Job:
    """The job that came first."""
    return min(waiting, key=lambda job: job.rank)


POLICIES: Mapping[str, Policy] = {"in turn": fair, "first come": first_come}


# ── Time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Request:
    """A job that somebody asks for: when, and how long it will take; seconds."""

    time: float
    owner: str
    seconds: float


@dataclass(frozen=True)
class Served:
    """What became of a request."""

    request: Request
    began: float

    @property
    def wait(self) -> float:
        """Seconds in the queue."""
        return self.began - self.request.time

    @property
    def end(self) -> float:
        """When it was done."""
        return self.began + self.request.seconds


def simulate(requests: Iterable[Request], slots: int, policy: Policy) -> list[Served]:
    """Plays requests through a queue before `slots` slots; in the order in which they began."""
    coming = sorted(requests, key=lambda request: request.time)
    jobs = [_job(rank, request) for rank, request in enumerate(coming)]
    free = [0.0] * slots  # when each slot is free
    waiting: dict[str, Job] = {}
    last_turn: dict[str, float] = {}
    done: list[Served] = []
    arrived, now = 0, 0.0
    while arrived < len(jobs) or waiting:
        now = max(now, heapq.heappop(free), 0.0 if waiting else coming[arrived].time)
        while arrived < len(jobs) and coming[arrived].time <= now:
            waiting[jobs[arrived].id] = jobs[arrived]
            arrived += 1
        chosen = waiting.pop(policy(list(waiting.values()), last_turn).id)
        last_turn[chosen.owner] = now
        served = Served(coming[chosen.rank], now)
        done.append(served)
        heapq.heappush(free, served.end)
    return done


def _job(rank: int, request: Request) -> Job:
    return Job(
        id=str(rank),
        owner=request.owner,
        content="",
        styles=("",),
        settings=_SETTINGS,
        width=1,
        height=1,
        created=request.time,
        rank=rank,
    )


_SETTINGS = Settings()


# ── Arrivals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def curve(time: float) -> float:
    """How much is asked for at a time of the day, from `NIGHT` to 1."""
    return NIGHT + (1 - NIGHT) * (1 + math.cos(2 * math.pi * (time - BUSIEST) / DAY)) ** 2 / 4


def evening(slots: int, times: Mapping[int, float], seed: int) -> list[Request]:
    """Requests, as many as make the busiest hour as busy as `LOAD` says.

    Args:
        slots: Of the cluster.
        times: Seconds of a job of each level.
        seed: Of the chance in it.
    """
    chance = random.Random(seed)
    busiest = LOAD * slots / sum(share * times[level] for level, share in capacity.MIX.items())  # jobs a second
    owners = _owners(round(busiest * HOUR / capacity.BUSIEST_HOUR / capacity.PICTURES_PER_USER), chance)
    found: list[Request] = []
    time = BEGIN
    while (time := time + chance.expovariate(busiest / BURST)) < END:
        if chance.random() < curve(time):
            owner = next(owners)
            found += [_request(time, owner, times, chance) for _ in range(_burst(chance))]
    return found


def _owners(count: int, chance: random.Random) -> Iterator[str]:
    """Endlessly, whose turn it is to want something; some want more often than others."""
    totals = list(itertools.accumulate(chance.paretovariate(TAIL) for _ in range(max(1, count))))
    while True:
        yield f"user {bisect.bisect(totals, chance.random() * totals[-1])}"


def _burst(chance: random.Random) -> int:
    return 1 + int(math.log(1 - chance.random()) / math.log(1 - 1 / BURST))


def _request(time: float, owner: str, times: Mapping[int, float], chance: random.Random) -> Request:
    (level,) = chance.choices(list(capacity.MIX), list(capacity.MIX.values()))
    return Request(time, owner, times[level] * chance.lognormvariate(-(SPREAD**2) / 2, SPREAD))


def heavy(times: Mapping[int, float]) -> list[Request]:
    """What one user hands in at once."""
    return [Request(BUSIEST, HEAVY, times[HEAVY_LEVEL])] * HEAVY_JOBS


# ── Fairness ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def jain(values: Sequence[float]) -> float:
    """Jain's index (Σx)² / (n Σx²): 1 where all have the same, 1/n where one has everything (Jain et al. 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def max_min(demands: Mapping[str, float], supply: float) -> dict[str, float]:
    """The max-min fair shares: nobody gets more than they ask for, and what they leave is shared by the others."""
    shares: dict[str, float] = {}
    for left, (owner, demand) in enumerate(sorted(demands.items(), key=lambda item: item[1])):
        shares[owner] = min(demand, supply / (len(demands) - left))
        supply -= shares[owner]
    return shares


def fairness(served: Sequence[Served], slots: int, begin: float, end: float) -> float:
    """Jain's index, over owners, of the computing that each got in a time, relative to the max-min fair share of it.

    Who asked for computing: owners with a job that came before `end` and wasn't over at `begin`. What each asked for:
    the seconds of those jobs that were left to compute at `begin`.
    """
    wanted: dict[str, float] = defaultdict(float)
    got: dict[str, float] = defaultdict(float)
    for one in served:
        if one.request.time < end and one.end > begin:
            wanted[one.request.owner] += one.end - max(begin, one.began)
            got[one.request.owner] += max(0.0, min(end, one.end) - max(begin, one.began))
    shares = max_min(wanted, slots * (end - begin))
    return jain([got[owner] / share for owner, share in shares.items()])


# ── Report ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Waits:
    """Seconds in the queue: of all jobs, of each owner's median job over the owners, and of the jobs of owners who ask
    for `FEW` pictures in an evening at most.
    """

    jobs: int
    owners: int
    median: float
    p95: float
    owners_median: float
    owners_p95: float
    few_median: float
    few_p95: float


def waits(evenings: Sequence[Sequence[Served]]) -> Waits:
    """What owners saw in some evenings."""
    by_owner: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number, served in enumerate(evenings):
        for one in served:
            by_owner[number, one.request.owner].append(one.wait)
    every = list(itertools.chain.from_iterable(by_owner.values()))
    medians = [statistics.median(found) for found in by_owner.values()]
    few = list(itertools.chain.from_iterable(found for found in by_owner.values() if len(found) <= FEW))
    return Waits(
        jobs=len(every),
        owners=len(medians),
        median=_quantile(every, 50),
        p95=_quantile(every, 95),
        owners_median=_quantile(medians, 50),
        owners_p95=_quantile(medians, 95),
        few_median=_quantile(few, 50),
        few_p95=_quantile(few, 95),
    )


def _quantile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else sum(values)


def compare(slots: int, times: Mapping[int, float], seeds: Sequence[int]) -> dict[str, Any]:
    """Evenings under both policies, without and with the heavy user.

    Args:
        slots: Of the cluster.
        times: Seconds of a job of each level.
        seeds: One for each evening; what is found is taken over all of them.
    """
    usual = [evening(slots, times, seed) for seed in seeds]
    span = max(HOUR / 2, HEAVY_JOBS * times[HEAVY_LEVEL] / slots)
    found: dict[str, Any] = {"slots": slots, "evenings": len(seeds), "requests": sum(map(len, usual))}
    for name, policy in POLICIES.items():
        plain = [simulate(requests, slots, policy) for requests in usual]
        crowded = [simulate([*requests, *heavy(times)], slots, policy) for requests in usual]
        found[name] = {
            "evening": asdict(waits(plain)),
            "fairness": statistics.mean(fairness(one, slots, BUSIEST, BUSIEST + HOUR) for one in plain),
            "others_without_heavy": asdict(waits([_others(one, span) for one in plain])),
            "others_beside_heavy": asdict(waits([_others(one, span) for one in crowded])),
            "fairness_beside_heavy": statistics.mean(fairness(one, slots, BUSIEST, BUSIEST + span) for one in crowded),
            "heavy_done_after": statistics.mean(max(map(_end, filter(_is_heavy, one))) - BUSIEST for one in crowded),
        }
    return found


def _others(served: Sequence[Served], span: float) -> list[Served]:
    """Jobs of others that came while the heavy user's jobs alone would keep all slots busy, half an hour at least."""
    return [one for one in served if BUSIEST <= one.request.time < BUSIEST + span and not _is_heavy(one)]


def _is_heavy(served: Served) -> bool:
    return served.request.owner == HEAVY


def _end(served: Served) -> float:
    return served.end


def report(slots: Sequence[int], evenings: int) -> dict[str, Any]:
    """Everything, as it is written into `benchmarks/results`."""
    times = {level: found.seconds for level in capacity.MIX if (found := capacity.job(GPU, level))}
    return {
        "computed": f"a simulation; jobs take what benchmarks.capacity computes for an {GPU.name}",
        "seconds_of_a_job": times,
        "mix": capacity.MIX,
        "load_in_the_busiest_hour": LOAD,
        "heavy_user": {"jobs": HEAVY_JOBS, "level": HEAVY_LEVEL},
        "clusters": [compare(count, times, range(max(1, evenings // count))) for count in slots],
    }


def _tables(found: Mapping[str, Any]) -> Iterable[Table]:
    keys = ("median", "p95", "owners_median", "owners_p95", "few_median", "few_p95")
    heads = ("jobs", "95 %", "owners", "95 %", f"≤ {FEW} jobs", "95 %")
    everyone = Table("slots", "policy", *heads, "fairness", title="an evening: seconds waited, medians and 95 %")
    title = f"others, beside {HEAVY_JOBS} jobs of one user"
    beside = Table("slots", "policy", *heads, "fairness", "without: 95 %", "heavy user done", title=title)
    for cluster, policy in itertools.product(found["clusters"], POLICIES):
        one, slots = cluster[policy], str(cluster["slots"])
        usual, crowded = ([f"{one[what][key]:.1f}" for key in keys] for what in ("evening", "others_beside_heavy"))
        everyone.add_row(slots, policy, *usual, f"{one['fairness']:.3f}")
        without = f"{one['others_without_heavy']['few_p95']:.1f}"
        done = f"{one['heavy_done_after']:.0f} s"
        beside.add_row(slots, policy, *crowded, f"{one['fairness_beside_heavy']:.3f}", without, done)
    return everyone, beside


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A figure: what others wait beside the heavy user, and how fair it is, by slots."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    slots = [cluster["slots"] for cluster in found["clusters"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for policy, colour in zip(POLICIES, ("tab:blue", "tab:red"), strict=True):
        clusters = [cluster[policy] for cluster in found["clusters"]]
        waiting = [one["others_beside_heavy"]["few_p95"] for one in clusters]
        usual = [one["others_without_heavy"]["few_p95"] for one in clusters]
        left.plot(slots, waiting, "o-", color=colour, label=f"{policy}, beside {HEAVY_JOBS} jobs of one user")
        left.plot(slots, usual, "o:", color=colour, alpha=0.6, label=f"{policy}, without them")
        right.plot(slots, [one["fairness_beside_heavy"] for one in clusters], "o-", color=colour, label=policy)
    left.set(xscale="log", yscale="log", xlabel="slots", ylabel="seconds waited by others with few jobs (95 %)")
    right.set(xscale="log", xlabel="slots", ylabel="Jain's index of shares", ylim=(0, 1.02))
    for axes in (left, right):
        axes.set_xticks(slots, [str(count) for count in slots])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulates, prints, and writes JSON and a figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description="Simulate the queue.")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 64], help="sizes of the cluster")
    parser.add_argument(
        "--evenings", type=int, default=16, help="of one slot; larger clusters have fewer (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "queue.json")
    options = parser.parse_args(arguments)
    found = report(options.slots, options.evenings)
    for table in _tables(found):
        Console(width=120).print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
