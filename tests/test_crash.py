"""Processes that are killed: nothing that was accepted is lost, nothing is done twice."""

import asyncio
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

ROOT = Path(__file__).resolve().parent.parent
JOBS = 12
KILLS = 20
STEPS = 30
PATIENT = QUICK.model_copy(update={"crashes_in_a_row": 1_000_000})
"""Kills from outside are no job's fault; here they may hit one twice before it gets anywhere."""


# ── The child ────────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(data: str) -> None:
    """A process that submits the jobs (again and again, under the same keys) and works until all are done."""
    asyncio.run(_work(Path(data), Rehearsal(STEPS, step_seconds=0.005), PATIENT))


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


def spawn(function: str, data: Path) -> subprocess.Popen[str]:
    command = f"from tests.test_crash import {function}; {function}({str(data)!r})"
    return subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def life(data: Path, seconds: float) -> tuple[list[str], int]:
    """Lets a child live for some time after it has begun; the ids of the jobs that it was told are accepted."""
    child = spawn("serve", data)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    time.sleep(seconds)  # this moment is what the test is about
    child.send_signal(signal.SIGKILL)
    told = child.stdout.read().split()
    return told, child.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a matter of POSIX")
@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    dice = random.Random()
    seed = dice.randrange(2**32)
    dice.seed(seed)
    told, killed = set[str](), 0
    for _ in range(KILLS):
        ids, status = life(tmp_path, dice.uniform(0, 0.5))
        told.update(ids)
        killed += status == -signal.SIGKILL
    last = spawn("serve", tmp_path)
    output, _ = last.communicate(timeout=60)
    told.update(output.split()[1:])
    assert last.returncode == 0
    assert killed >= KILLS // 2, "most children were still at work"

    store = Store(tmp_path)
    jobs = store.jobs()
    assert told == {job.id for job in jobs}, f"accepted and there (seed {seed})"
    assert sorted(int(job.tags["number"]) for job in jobs) == list(range(JOBS))
    for job in jobs:
        assert job.result is not None, job
        picture = store.files.read("results", job.result.file)
        assert picture == rehearsed(b"content %s" % job.tags["number"].encode(), b"style", STEPS)
        ends = Counter(line.after for line in store.transitions(job.id))
        assert ends[JobState.DONE] == 1
        assert not ends[JobState.FAILED]
    for path in tmp_path.glob("*s/*"):  # a day later, what kills left half done is gone
        os.utime(path, (1, 1))
    store.tidy(keep_seconds=None, keep_unused_seconds=24 * 3600.0)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {job.result.file for job in jobs if job.result}
    assert not list((tmp_path / "checkpoints").iterdir())
    store.close()
    with sqlite3.connect(tmp_path / "studio.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_job_that_takes_the_service_down_does_so_twice(tmp_path: Path) -> None:
    statuses: list[int] = []
    while not statuses or statuses[-1] != 0:
        child = spawn("serve_with_a_deadly_job", tmp_path)
        child.communicate(timeout=60)
        statuses.append(child.returncode)
        assert len(statuses) < 5
    assert statuses == [1, 1, 0]
    store = Store(tmp_path)
    by_state = Counter(job.state for job in store.jobs())
    (deadly,) = store.jobs(states={JobState.FAILED})
    store.close()
    assert by_state == {JobState.DONE: JOBS - 1, JobState.FAILED: 1}
    assert deadly.tags["number"] == "3"
    assert "ended 2 times in a row while it ran this job" in str(deadly.error)
