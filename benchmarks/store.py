"""What one head carries: `python -m benchmarks.store`.

The real store, on the disk of `--folder`, and the real scheduler before it. Jobs are computed by an executor that only
tells progress, as often as the real ones do with so many jobs, so that what is measured is all but the computing:

- transactions a second of the store, by kind, one after the other as the scheduler asks for them;
- events a second, to so many open pages;
- with so many jobs running at once: how late the event loop is, how long a small job waits for a free slot;
- Ray's object store: pictures, checkpoints and previews that go through it.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from core.config import Settings
from core.studio.jobs import (
    Estimate,
    Job,
    JobState,
    LevelLoss,
    LossPoint,
    Progress,
    RaySettings,
    Result,
    Run,
    Slot,
    StudioSettings,
    Update,
    Wish,
    new_id,
)
from core.studio.scheduler import Events, Scheduler
from core.studio.store import Store

RESULTS = Path(__file__).parent / "results"
RUNNING = (10, 100, 1000)
PAGES = (1, 16, 256)
ITERATIONS = 200
PREVIEW_BYTES, LARGE_BYTES = 60_000, 64_000_000


def progress(iteration: int) -> Progress:
    """Of a job of four levels."""
    return Progress(
        stage=3,
        stages=4,
        iteration=iteration,
        iterations=ITERATIONS,
        evaluations=iteration,
        loss=1 / (1 + iteration),
        levels=tuple(LevelLoss(level=level, content=1.0, style=0.1, tv=0.0) for level in range(4)),
        seconds=float(iteration),
        width=3072,
        height=2048,
    )


def job(content: str, owner: str = "someone") -> Job:
    """As one is submitted."""
    return Job(
        id=new_id(),
        owner=owner,
        content=content,
        styles=(content,),
        settings=Settings(levels=3),
        width=3072,
        height=2048,
        created=time.time(),
    )


def per_second(work: Callable[[int], object], count: int) -> float:
    """How often something is done in a second."""
    began = time.perf_counter()
    for number in range(count):
        work(number)
    return count / (time.perf_counter() - began)


# ── The store ────────────────────────────────────────────────────────────────────────────────────────────────────────


def transactions(folder: Path, count: int) -> dict[str, float]:
    """Transactions a second: what a job's life takes, each on the disk before the next."""
    store = Store(folder)
    content = store.add_input("someone", b"picture")
    jobs = [job(content, f"owner {number % 50}") for number in range(count)]
    caps = {"per_owner": count, "in_all": count + 1}
    point = LossPoint(iteration=1, seconds=1.0, loss=1.0, levels=progress(1).levels)
    result = Result(file="0" * 24 + ".png", format="png", width=3072, height=2048, bytes=1, seconds=1.0)

    def tell(number: int) -> None:
        store.record_progress(jobs[number].id, 1, progress(1), 1, [point])

    def tell_and_look(number: int) -> None:
        tell(number)
        store.changes()

    found = {
        "submit": per_second(lambda n: store.submit(jobs[n], **caps), count),
        "claim": per_second(lambda n: store.claim(jobs[n].id, "GPU"), count),
        "progress": per_second(tell, count),
        "progress, and what changed": per_second(tell_and_look, count),
        "finish": per_second(lambda n: store.finish(jobs[n].id, 1, result, progress(ITERATIONS), [], None), count),
    }
    store.close()
    return found


async def fan_out(pages: int, count: int) -> float:
    """Events a second that a source of so many subscriptions tells, which all want them; one in ten takes them out."""
    events = Events()
    told = job("picture")
    with contextlib.ExitStack() as stack:
        subscriptions = [stack.enter_context(events.subscribe()) for _ in range(pages)]
        began = time.perf_counter()
        for number in range(count):
            events.tell("job", f"job {number % 100}", told)
            if number % 10 == 0:
                for subscription in subscriptions:
                    await subscription.next()
        return count / (time.perf_counter() - began)


# ── The scheduler ────────────────────────────────────────────────────────────────────────────────────────────────────


class Telling:
    """An executor whose jobs tell progress until they are cancelled, and compute nothing.

    Args:
        slots: How many.
        seconds: Between two words of one job.
    """

    def __init__(self, slots: int, seconds: float) -> None:
        self._slots = tuple(Slot(f"gpu {number}", f"gpu {number}", "GPU") for number in range(slots))
        self._seconds = seconds
        self._unwanted: dict[str, asyncio.Event] = {}

    def slots(self) -> Sequence[Slot]:
        """Always the same."""
        return self._slots

    def expect(self, queued: int, running: int) -> None:
        """Nothing is started for them."""

    def reserve(self, slot: Slot) -> bool:
        """There is nobody else."""
        return True

    def release(self, slot: Slot) -> None:
        """See `reserve`."""

    async def estimate(self, run: Run, slot: Slot | None) -> Estimate:
        """Everything fits."""
        return Estimate(3072, 2048, 1, 2, 2, 6)

    async def start(self, run: Run, slot: Slot) -> AsyncGenerator[Update, None]:
        """Tells progress."""
        unwanted = self._unwanted.setdefault(run.job_id, asyncio.Event())
        for iteration in itertools.count(1):
            yield progress(min(iteration, ITERATIONS))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await unwanted.wait()
            if unwanted.is_set():
                return

    def cancel(self, job_id: str, attempt: int, *, keep: bool) -> None:
        """Ends it at once."""
        self._unwanted.setdefault(job_id, asyncio.Event()).set()

    def steer(self, job_id: str, attempt: int, wish: Wish) -> None:
        """Nobody does."""

    async def close(self) -> None:
        """Nothing is open."""


@contextlib.asynccontextmanager
async def busy(folder: Path, running: int) -> AsyncIterator[tuple[Store, Scheduler]]:
    """A scheduler with so many running jobs and one slot free."""
    told = max(StudioSettings().progress_seconds, running / RaySettings().progress_per_second)
    settings = StudioSettings(pending_per_owner=10 * running, pending_in_all=10 * running, shutdown_seconds=3 * told)
    store = Store(folder)
    scheduler = Scheduler(store, Telling(running + 1, told), settings)
    content = store.add_input("someone", b"picture")
    caps = {"per_owner": 2 * running, "in_all": 2 * running}
    for number in range(running):
        store.submit(job(content, f"owner {number % 50}"), **caps)
    await scheduler.open()
    with scheduler.subscribe() as events:
        while len(scheduler.busy) < running:
            await events.next(within=0.1)
    try:
        yield store, scheduler
    finally:
        await scheduler.close()
        store.close()


async def service(folder: Path, running: int, seconds: float) -> dict[str, float]:
    """How late the event loop is, and how long a job waits for the slot that is free, while so many jobs run."""
    async with busy(folder, running) as (store, scheduler):
        late: list[float] = []
        waits: list[float] = []
        watch = asyncio.create_task(_watch(late))
        events, cpu, began = _number(scheduler.last_event_id), time.process_time(), time.perf_counter()
        while time.perf_counter() - began < seconds or not waits:
            waits.append(await _start_one(store, scheduler, running))
            await asyncio.sleep(0.5)
        elapsed = time.perf_counter() - began
        watch.cancel()
        return {
            "running": running,
            "start_seconds": statistics.median(waits),
            "late_seconds_median": statistics.median(late),
            "late_seconds_95": statistics.quantiles(late, n=20)[-1],
            "events_per_second": (_number(scheduler.last_event_id) - events) / elapsed,
            "cpu_share": (time.process_time() - cpu) / elapsed,
        }


def _number(event_id: str) -> int:
    return int(event_id.partition("-")[2])


async def _watch(late: list[float]) -> None:
    """Notes by how much the loop comes too late."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.01)
        late.append(time.perf_counter() - began - 0.01)


async def _start_one(store: Store, scheduler: Scheduler, running: int) -> float:
    """Seconds from submitting a job until it runs; afterwards its slot is free again."""
    content = await scheduler.commit(store.add_input, "someone", b"picture")
    began = time.perf_counter()
    submitted = await scheduler.commit(store.submit, job(content, "new"), per_owner=9, in_all=10 * running)
    with scheduler.subscribe(job_id=submitted.id) as events:
        while (await scheduler.commit(store.get, submitted.id)).state is JobState.QUEUED:
            await events.next(within=1)
        took = time.perf_counter() - began
        await scheduler.commit(store.cancel, submitted.id, 1)
        while submitted.id in scheduler.busy.values():
            await events.next(within=0.1)
    return took


# ── Ray's object store ───────────────────────────────────────────────────────────────────────────────────────────────


def object_store(count: int) -> dict[str, float]:
    """Previews a second, and bytes a second of large objects, from one process of this machine to another."""
    import ray  # noqa: PLC0415 - its import changes the environment

    class Maker:
        def make(self, size: int) -> Any:
            return np.zeros(size, np.uint8)

    ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        maker: Any = ray.remote(num_cpus=1)(Maker).remote()
        ray.get(maker.make.remote(1))
        previews = per_second(lambda _: ray.get(maker.make.remote(PREVIEW_BYTES)), 10 * count)
        large = per_second(lambda _: ray.get(maker.make.remote(LARGE_BYTES)).copy(), count)
        return {"previews_per_second": previews, "bytes_per_second": large * LARGE_BYTES}
    finally:
        ray.shutdown()


# ── Report ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def report(folder: Path, count: int, seconds: float, running: Sequence[int]) -> dict[str, Any]:
    """Everything, as it is written into `benchmarks/results`."""
    return {
        "transactions_per_second": transactions(folder / "transactions", count),
        "events_per_second": {str(pages): asyncio.run(fan_out(pages, 10 * count)) for pages in PAGES},
        "service": [asyncio.run(service(folder / f"running-{number}", number, seconds)) for number in running],
        "object_store": object_store(max(3, count // 20)),
        "machine": machine.describe(),
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Tables for people."""
    rates = Table("transactions", "a second")
    for what, rate in found["transactions_per_second"].items():
        rates.add_row(what, f"{rate:,.0f}")
    pages = Table("open pages", "events a second")
    for number, rate in found["events_per_second"].items():
        pages.add_row(number, f"{rate:,.0f}")
    service = Table("running", "a job starts after", "the loop is late by", "95 %", "events a second", "processor")
    for row in found["service"]:
        times = [f"{1000 * row[key]:.0f} ms" for key in ("start_seconds", "late_seconds_median", "late_seconds_95")]
        service.add_row(str(row["running"]), *times, f"{row['events_per_second']:.0f}", f"{row['cpu_share']:.0%}")
    for table in (rates, pages, service):
        console.print(table)
    store = found["object_store"]
    console.print(
        f"Ray: {store['previews_per_second']:,.0f} previews a second, {store['bytes_per_second'] / 1e9:.2f} GB/s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description="Measure what one head carries.")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured (default: a temporary folder)")
    parser.add_argument("--count", type=int, default=300, help="of transactions of a kind (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number of jobs (default: %(default)s)")
    parser.add_argument("--running", type=int, nargs="+", default=RUNNING, help="jobs at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "store.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = report(Path(folder), options.count, options.seconds, options.running)
    show(found, Console())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
