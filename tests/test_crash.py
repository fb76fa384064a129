"""Processes that are killed: nothing that was accepted is lost, nothing is done twice."""

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from core.studio import Job, Studio, StudioSettings
from core.studio.executors.local import LocalExecutor
from core.studio.jobs import JobState, Run
from core.studio.store import Store
from tests.studio_doubles import QUICK, SMALL, Rehearsal, rehearsed

posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a matter of POSIX")
ROOT = Path(__file__).resolve().parent.parent
JOBS = 12
KILLS = 20
STEPS = 30
STEP_SECONDS = 0.025
MOMENT = 0.5
"""Seconds within which a child is killed: the jobs' 9 s of steps outlast more than half of the kills at any pace."""
PATIENT = QUICK.model_copy(update={"crashes_in_a_row": 1_000_000})
"""Kills from outside are no job's fault; here they may hit one twice before it gets anywhere."""


# ── The child ────────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(data: str) -> None:
    """A process that submits the jobs (again and again, under the same keys) and works until all are done."""
    asyncio.run(_work(Path(data), Rehearsal(STEPS, step_seconds=STEP_SECONDS), PATIENT))


def serve_with_a_deadly_job(data: str) -> None:
    """The same, with one job that always takes the process down with it."""

    def deadly(run: Run, iteration: int) -> None:
        if run.content.read_bytes() == b"content 3" and iteration == 20:
            os._exit(1)

    asyncio.run(_work(Path(data), Rehearsal(STEPS, hook=deadly), QUICK))


async def _work(data: Path, backend: Rehearsal, settings: StudioSettings) -> None:
    print("begun", flush=True)
    (data / "locks").mkdir(parents=True, exist_ok=True)
    async with Studio.open(data, settings, LocalExecutor(data / "locks", settings, backend)) as studio:
        jobs = [await _submit(studio, number) for number in range(JOBS)]
        await asyncio.gather(*(studio.wait(job.id) for job in jobs))


async def _submit(studio: Studio, number: int) -> Job:
    owner = f"owner {number % 3}"
    content = await studio.add_input(owner, b"content %d" % number)
    style = await studio.add_input(owner, b"style")
    job = await studio.submit(owner, content, [style], SMALL, key=f"job {number}", tags={"number": str(number)})
    print(job.id, flush=True)
    return job


# ── The parent ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Child:
    """A process that serves, and what it told before it ended."""

    def __init__(self, function: str, data: Path) -> None:
        command = f"from tests.test_crash import {function}; {function}({str(data)!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begun\n"

    def kill(self) -> tuple[set[str], bool]:
        """Ids of the jobs that it said were accepted, and whether it was still at work."""
        self._process.send_signal(signal.SIGKILL)
        told, _ = self._process.communicate()
        return set(told.split()), self._process.returncode == -signal.SIGKILL

    def finish(self) -> tuple[set[str], int]:
        """The same ids, and its exit status, when it ends by itself."""
        told, _ = self._process.communicate(timeout=90)
        return set(told.split()), self._process.returncode


def check(data: Path, told: set[str]) -> None:
    """Everything that was accepted is there, done once, and right; nothing else is there."""
    store = Store(data)
    jobs = store.jobs()
    assert told == {job.id for job in jobs}
    assert sorted(int(job.tags["number"]) for job in jobs) == list(range(JOBS))
    for job in jobs:
        assert job.result is not None, job
        picture = store.files.read("results", job.result.file)
        assert picture == rehearsed(b"content %s" % job.tags["number"].encode(), b"style", STEPS)
        ends = Counter(line.after for line in store.transitions(job.id))
        assert ends[JobState.DONE] == 1
        assert not ends[JobState.FAILED]
    for path in data.glob("*s/*"):  # a day later, what kills left half done is gone
        os.utime(path, (1, 1))
    store.tidy(keep_seconds=None, keep_unused_seconds=24 * 3600.0)
    assert {path.name for path in (data / "results").iterdir()} == {job.result.file for job in jobs if job.result}
    assert not list((data / "checkpoints").iterdir())
    assert [path.name for path in (data / "locks").glob("process-*")] == [f"process-{store.process}.lock"]
    store.close()
    with contextlib.closing(sqlite3.connect(data / "studio.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def dice() -> random.Random:
    """Random moments, other ones every time; a failure shows the seed."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@posix
@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_do_nothing_twice(tmp_path: Path, dice: random.Random) -> None:
    told, at_work = set[str](), 0
    for _ in range(KILLS):
        child = Child("serve", tmp_path)
        time.sleep(dice.uniform(0, MOMENT))  # the moment is what this is about
        ids, killed = child.kill()
        told |= ids
        at_work += killed
    ids, status = Child("serve", tmp_path).finish()
    assert status == 0
    assert at_work >= KILLS // 2, "most children had not finished yet"
    check(tmp_path, told | ids)


@posix
@pytest.mark.slow
def test_of_two_processes_on_one_queue_either_may_be_killed(tmp_path: Path, dice: random.Random) -> None:
    told = set[str]()
    children = [Child("serve", tmp_path), Child("serve", tmp_path)]
    for _ in range(KILLS // 2):
        time.sleep(dice.uniform(0, 0.3))
        victim = dice.randrange(2)
        told |= children[victim].kill()[0]
        children[victim] = Child("serve", tmp_path)
    for child in children:
        ids, status = child.finish()
        assert status == 0
        told |= ids
    check(tmp_path, told)


@posix
def test_a_job_that_takes_the_service_down_does_so_twice(tmp_path: Path) -> None:
    statuses = list[int]()
    while 0 not in statuses and len(statuses) < 5:
        statuses.append(Child("serve_with_a_deadly_job", tmp_path).finish()[1])
    assert statuses == [1, 1, 0]
    store = Store(tmp_path)
    by_state = Counter(job.state for job in store.jobs())
    (deadly,) = store.jobs(states={JobState.FAILED})
    store.close()
    assert by_state == {JobState.DONE: JOBS - 1, JobState.FAILED: 1}
    assert deadly.tags["number"] == "3"
    assert "the process that ran it has ended, 2 times in a row" in str(deadly.error)
