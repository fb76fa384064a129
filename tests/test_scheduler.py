"""Whose turn it is, what runs where, and who is told."""

import asyncio
import contextlib
import errno
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import OptimizerSettings, Settings
from core.errors import ImageError, MemoryLimitError, SettingsError
from core.studio import Studio
from core.studio.files import Files, checkpoint_name
from core.studio.jobs import (
    Checkpoint,
    Estimate,
    Job,
    JobState,
    JobStateError,
    Losses,
    LossPoint,
    LostRunError,
    NoSuchJobError,
    Output,
    PoisonedDeviceError,
    Preview,
    QueueFullError,
    Remark,
    Run,
    Slot,
    Steered,
    StorageError,
    new_id,
)
from core.studio.scheduler import Event, Events, Paces, Subscription, forecast, turns
from core.studio.store import Store, Timing
from tests import ray_doubles, studio_doubles
from tests.studio_doubles import GIB, QUICK, SMALL, ScriptedExecutor, progress, small_estimate, submit

PATIENCE = 10
"""Seconds after which something that should have happened counts as never."""
OpenStudio = Callable[..., AbstractAsyncContextManager[Studio]]


@pytest.fixture(params=["plain", "threads", pytest.param("ray", marks=[pytest.mark.ray_full, ray_doubles.installed])])
def open_studio(request: pytest.FixtureRequest) -> OpenStudio:
    """Opens a studio whose runs do what a test says: one policy, whatever computes."""
    if request.param == "ray":
        request.getfixturevalue("ray_here")
        return ray_doubles.open_studio
    return studio_doubles.open_studio if request.param == "plain" else studio_doubles.open_local_studio


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with ray_doubles.ray_here(cpus=8):
        yield


@pytest.fixture
def executor() -> ScriptedExecutor:
    return ScriptedExecutor()


@pytest.fixture
async def studio(tmp_path: Path, executor: ScriptedExecutor, open_studio: OpenStudio) -> AsyncIterator[Studio]:
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as opened:
        yield opened


async def until(studio: Studio, job: Job, state: JobState) -> Job:
    """Waits until a job is in a state."""
    async with asyncio.timeout(PATIENCE):
        with studio.subscribe(job_id=job.id) as events:
            while (now := await studio.job(job.id)).state is not state:
                await events.next()
    return now


async def finished(studio: Studio, job: Job) -> Job:
    async with asyncio.timeout(PATIENCE):
        return await studio.wait(job.id)


async def settled(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds of which no event tells."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# ── Order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def queued(owner: str, rank: int, **changes: object) -> Job:
    values = {"id": f"{owner}{rank}", "owner": owner, "content": "c", "styles": ("s",), "created": 1.0, "rank": rank}
    return Job.model_validate(values | {"settings": SMALL, "width": 256, "height": 256} | changes)


def names(order: list[Job]) -> list[str]:
    return [job.id for job in order]


def test_one_owner_is_served_first_come_first() -> None:
    assert names(turns([queued("a", 3), queued("a", 1), queued("a", 2)], {})) == ["a1", "a2", "a3"]


def test_owners_take_turns() -> None:
    jobs = [*(queued("a", rank) for rank in (1, 2, 3, 4)), queued("b", 5), queued("c", 6), queued("c", 7)]
    assert names(turns(jobs, {})) == ["a1", "b5", "c6", "a2", "c7", "a3", "a4"]


def test_who_had_a_turn_longest_ago_is_next() -> None:
    jobs = [queued("a", 1), queued("b", 2), queued("c", 3), queued("a", 4)]
    assert names(turns(jobs, {"a": 30.0, "b": 20.0})) == ["c3", "b2", "a1", "a4"]


def test_interrupted_jobs_go_first_in_the_order_in_which_they_had_begun() -> None:
    jobs = [
        queued("a", 1),
        queued("b", 2, interrupted=True, started=9.0),
        queued("a", 3, interrupted=True, started=5.0),
    ]
    assert names(turns(jobs, {"a": 5.0, "b": 9.0})) == ["a3", "b2", "a1"]


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.dictionaries(st.sampled_from("abcd"), st.floats(0, 100)))
def test_order_is_fair_whatever_comes(owners: list[str], served: dict[str, float]) -> None:
    jobs = [queued(owner, rank) for rank, owner in enumerate(owners)]
    order = turns(random.Random(0).sample(jobs, len(jobs)), served)
    assert sorted(names(order)) == sorted(names(jobs)), "everyone is served once"
    for owner in "abcd":
        ranks = [job.rank for job in order if job.owner == owner]
        assert ranks == sorted(ranks), "first come, first served"
    given_turns: Counter[str] = Counter()
    waiting = Counter(owners)
    for job in order:
        least = min(given_turns[owner] for owner in waiting if waiting[owner])
        assert given_turns[job.owner] == least, "nobody who waits has had fewer turns"
        given_turns[job.owner] += 1
        waiting[job.owner] -= 1


def test_forecast_fills_the_slots_one_after_the_other() -> None:
    assert forecast([], [10, 20, 30], slots=1) == [10, 30, 60]
    assert forecast([5.0], [10, 20, 30], slots=2) == [10, 25, 40]
    assert forecast([5.0, 7.0], [], slots=2) == []


def test_forecast_knows_what_it_does_not_know() -> None:
    assert forecast([None], [10, 20], slots=1) == [None, None]
    assert forecast([None, 5.0], [10, None, 20], slots=2) == [15, None, None]
    assert forecast([], [10], slots=0) == [None]


def test_pace_is_learnt_from_the_nearest_in_size_of_the_same_kind() -> None:
    def timing(pixels: float, pace: float, kind: str = "gpu", network: str = "vgg19") -> Timing:
        return Timing(kind, "lbfgs", network, pixels, work=pixels * 60, seconds=pace * pixels * 60)

    small, large = [timing(1e5, pace) for pace in (3e-8, 1e-8, 2e-8, 9e-8, 2e-8)], [timing(1e7, 5e-9)] * 5
    paces = Paces([*small, *large, timing(1e5, 1.0, kind="cpu"), timing(1e5, 1.0, network="compact")])
    assert paces.pace("gpu", Settings(), "vgg19", 2e5) == pytest.approx(2e-8)
    assert paces.pace("gpu", Settings(), "vgg19", 5e6) == pytest.approx(5e-9)
    assert paces.pace("tpu", Settings(), "vgg19", 1e5) is None
    assert paces.pace("gpu", Settings(optimizer=OptimizerSettings(name="adam")), "vgg19", 1e5) is None
    for _ in range(5):
        paces.learn(timing(1e5, 7e-8))
    assert paces.pace("gpu", Settings(), "vgg19", 1e5) == pytest.approx(7e-8), "of equals, the latest count"


# ── Events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def drained(events: Events, after: str | None = None) -> list[Event]:
    with events.subscribe(after) as subscription:
        return [event async for event in _without_waiting(subscription)]


async def _without_waiting(subscription: object) -> AsyncIterator[Event]:
    while event := await subscription.next(within=0):  # type: ignore[attr-defined]
        yield event


async def test_only_the_latest_of_each_job_waits_for_a_subscriber() -> None:
    events = Events()
    with events.subscribe() as subscription:
        for number in range(1000):
            events.tell("job", f"job {number % 3}", queued("a", number))
        waiting = [event async for event in _without_waiting(subscription)]
    assert [event.job.rank for event in waiting if event.job] == [997, 998, 999]
    numbers = [int(event.id.rpartition("-")[2]) for event in waiting]
    assert numbers == sorted(numbers), "ids only grow"


async def test_who_comes_back_gets_what_was_missed() -> None:
    events = Events()
    events.tell("job", "x", queued("a", 1))
    seen = events.last_id
    assert await drained(events, seen) == []
    events.tell("job", "x", queued("a", 2))
    events.tell("job", "x", queued("a", 3))
    events.tell("removed", "y")
    missed = await drained(events, seen)
    assert [(event.kind, event.job_id, event.job and event.job.rank) for event in missed] == [
        ("job", "x", 3),
        ("removed", "y", None),
    ]


@pytest.mark.parametrize("after", ["", "nonsense", "0123abcd-5", "-", "x-y-z"])
async def test_an_id_that_is_not_known_asks_for_a_fresh_snapshot(after: str) -> None:
    events = Events()
    events.tell("job", "x", queued("a", 1))
    assert [event.kind for event in await drained(events, after)] == ["gap"]


async def test_what_is_forgotten_asks_for_a_fresh_snapshot() -> None:
    events = Events(remembered=3)
    events.tell("job", "first", queued("a", 0))
    early = events.last_id
    for number in range(3):
        events.tell("job", f"job {number}", queued("a", number))
    assert [event.job_id for event in await drained(events, early)] == ["job 0", "job 1", "job 2"]
    events.tell("job", "one more", queued("a", 9))
    assert [event.kind for event in await drained(events, early)] == ["gap"]


async def test_a_subscriber_that_never_reads_takes_bounded_room() -> None:
    events = Events(remembered=100)
    with events.subscribe() as subscription:
        for number in range(10_000):
            events.tell("job", f"job {number}", queued("a", number))
        assert len(subscription._waiting) <= 100
        first = await subscription.next()
        assert first is not None
        assert first.kind == "gap"


async def test_subscribers_hear_only_what_concerns_them() -> None:
    events = Events()
    with events.subscribe(owner="a") as of_a, events.subscribe(job_id="b2") as of_b2:
        events.tell("job", "a1", queued("a", 1))
        events.tell("job", "b2", queued("b", 2))
        events.tell("queue", paused=True)
        assert [event.job_id async for event in _without_waiting(of_a)] == ["a1", ""]
        assert [event.job_id async for event in _without_waiting(of_b2)] == ["b2", ""]


async def test_waiting_for_an_event_ends_in_time_and_when_closed() -> None:
    events = Events()
    with events.subscribe() as subscription:
        assert await subscription.next(within=0.01) is None
        assert not subscription.ended
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        events.close()
        assert await waiting is None
        assert subscription.ended


# ── Life of a job ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_job_is_run_and_its_picture_is_there(studio: Studio, executor: ScriptedExecutor) -> None:
    job = await submit(studio, tags={"cell": "1"})
    assert (job.state, job.position, job.width, job.network) == (JobState.QUEUED, 1, 256, "compact")
    run = await executor.run(job)
    assert [path.read_bytes() for path in (run.run.content, *run.run.styles)] == [b"content", b"style"]
    assert run.run.settings == SMALL
    with studio.subscribe(job_id=job.id) as events:
        run.send(progress(30), Preview(b"small picture"))
        while not ((now := await studio.job(job.id)).progress and now.preview):
            await events.next(within=PATIENCE)
    assert now.progress is not None
    assert (now.state, now.progress.iteration, now.progress.fraction) == (JobState.RUNNING, 30, 0.5)
    assert await studio.preview_bytes(job.id) == b"small picture"
    points = tuple(LossPoint(iteration=i, seconds=i / 10, loss=1 / i, levels=()) for i in (1, 2))
    run.send(Losses(points), Remark("The picture was turned upright."))
    run.finish(b"large picture")
    done = await finished(studio, job)
    assert done.state is JobState.DONE
    assert done.result is not None
    assert (done.result.format, done.result.bytes) == ("png", len(b"large picture"))
    assert [notice.text for notice in done.notices] == ["The picture was turned upright."]
    assert await studio.result_bytes(job.id) == b"large picture"
    assert tuple(await studio.losses(job.id)) == points
    assert [line.after for line in await studio.transitions(job.id)] == ["queued", "running", "done"]
    assert not list((studio._store.root / "checkpoints").iterdir())


async def test_everything_is_committed_before_anyone_is_told(studio: Studio, executor: ScriptedExecutor) -> None:
    reader = sqlite3.connect(studio._store.root / "studio.sqlite3")
    told: list[JobState] = []
    with studio.subscribe() as events:
        job = await submit(studio)
        (await executor.run(job)).finish()
        while not told or told[-1] is not JobState.DONE:
            event = await events.next(within=PATIENCE)
            assert event is not None
            assert event.job is not None
            query = "SELECT version, state FROM jobs WHERE id = ?"
            version, state = reader.execute(query, (event.job_id,)).fetchone()
            assert version >= event.job.version
            told.append(event.job.state)
    assert state == "done"
    reader.close()


async def test_a_subscriber_that_fails_or_sleeps_touches_no_job(studio: Studio, executor: ScriptedExecutor) -> None:
    async def failing() -> None:
        with studio.subscribe() as events:
            async for _ in events:
                raise RuntimeError("a page that went away")

    sleeping = studio.subscribe()
    failed = asyncio.create_task(failing())
    job = await submit(studio)
    run = await executor.run(job)
    for iteration in range(1, 61):
        run.send(progress(iteration))
    run.finish()
    assert (await finished(studio, job)).state is JobState.DONE
    with pytest.raises(RuntimeError):
        await failed
    last = await sleeping.next()
    assert last is not None
    assert last.job is not None
    assert last.job.state is JobState.DONE, "of all that it slept through, the latest"


async def test_a_mistake_of_the_user_fails_the_job_with_cause_and_remedy(
    studio: Studio, executor: ScriptedExecutor
) -> None:
    job, after = await submit(studio), await submit(studio)
    (await executor.run(job)).fail(ImageError("the picture is torn", "Glue it"))
    failed = await finished(studio, job)
    assert failed.state is JobState.FAILED
    assert str(failed.error) == "the picture is torn. Glue it."
    (await executor.run(after)).finish()
    assert (await finished(studio, after)).state is JobState.DONE


async def test_a_bug_fails_its_job_alone_and_tells_no_secrets(
    studio: Studio, executor: ScriptedExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    job, after = await submit(studio), await submit(studio)
    (await executor.run(job)).fail(ZeroDivisionError("in /home/someone/secret.py"))
    failed = await finished(studio, job)
    assert "secret" not in str(failed.error)
    assert job.id[:6] in str(failed.error)
    assert "secret.py" in caplog.text, "the operator's log has it"
    (await executor.run(after)).finish()
    assert (await finished(studio, after)).state is JobState.DONE


async def test_what_is_committed_is_told_though_its_caller_went_away(
    studio: Studio, executor: ScriptedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a page is closed while its job is being written down."""
    submit_to_store, begun, may_go_on = Store.submit, threading.Event(), threading.Event()

    def slow(self: Store, job: Job, **room: int) -> Job:
        begun.set()
        assert may_go_on.wait(PATIENCE)
        return submit_to_store(self, job, **room)

    monkeypatch.setattr(Store, "submit", slow)
    with studio.subscribe() as events:
        asking = asyncio.create_task(submit(studio, key="once"))
        await asyncio.to_thread(begun.wait, PATIENCE)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        may_go_on.set()
        event = await events.next(within=PATIENCE)
    assert event is not None
    assert event.job is not None
    (await executor.run(event.job)).finish()
    assert (await finished(studio, event.job)).state is JobState.DONE
    assert (await submit(studio, key="once")).id == event.job_id


# ── Order and bounds ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_owners_take_turns_on_one_slot(studio: Studio, executor: ScriptedExecutor) -> None:
    await studio.pause_queue()
    jobs = [await submit(studio, owner) for owner in "aaabc"]
    assert [job.id for job in studio.queue()] == [jobs[i].id for i in (0, 3, 4, 1, 2)]
    assert [job.position for job in studio.queue()] == [1, 2, 3, 4, 5]
    await studio.resume_queue()
    for _ in jobs:
        run = await executor.run()
        run.finish()
        await settled(partial(executor.has_ended, run))
    assert executor.order == [jobs[i].id for i in (0, 3, 4, 1, 2)]


async def test_never_more_runs_than_slots_and_all_slots_are_used(tmp_path: Path, open_studio: OpenStudio) -> None:
    executor = ScriptedExecutor(*(Slot(f"gpu:{number}", f"gpu:{number}", "test") for number in range(3)))
    dice = random.Random(7)
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        content, style = await studio.add_input("lab", b"content"), await studio.add_input("lab", b"style")
        jobs = []
        for number in range(40):
            jobs.append(await studio.submit(f"owner {number % 5}", content, [style], SMALL))
            for job_id in list(executor.run_ids):
                choice = dice.random()
                if choice < 0.3:
                    executor._runs[job_id].finish()
                elif choice < 0.4:
                    executor._runs[job_id].fail(RuntimeError("bad luck"))
                elif choice < 0.5:
                    with contextlib.suppress(JobStateError):
                        await studio.cancel(job_id, 1)
            assert sum(executor.running.values()) <= 3
        while await studio.jobs(states={JobState.QUEUED, JobState.RUNNING}):
            for job_id in list(executor.run_ids):
                executor._runs[job_id].finish()
            await asyncio.sleep(0)
        assert executor.most_running == {"gpu:0": 1, "gpu:1": 1, "gpu:2": 1}
        assert not any(executor.running.values())
        await settled(partial(_all_free, studio))
        assert len(jobs) == sum((await studio.counts()).values())


async def test_caps_refuse_clearly(tmp_path: Path, executor: ScriptedExecutor, open_studio: OpenStudio) -> None:
    capped = QUICK.model_copy(update={"pending_per_owner": 2, "pending_in_all": 3})
    async with asyncio.timeout(60), open_studio(tmp_path, executor, capped) as studio:
        await submit(studio, "a")
        await submit(studio, "a")
        with pytest.raises(QueueFullError, match="you have 2 jobs"):
            await submit(studio, "a")
        await submit(studio, "a", pending=3)
        with pytest.raises(QueueFullError, match="queue is full"):
            await submit(studio, "b")


async def test_reorder_changes_who_is_next(studio: Studio, executor: ScriptedExecutor) -> None:
    await studio.pause_queue()
    first, second, third = [await submit(studio) for _ in range(3)]
    assert (await studio.reorder(third.id, 1)).position == 1
    assert [job.id for job in studio.queue()] == [third.id, first.id, second.id]
    await studio.resume_queue()
    assert (await executor.run()).run.job_id == third.id


async def test_a_paused_queue_starts_nothing_and_goes_on_with_what_runs(
    studio: Studio, executor: ScriptedExecutor
) -> None:
    running, waiting = await submit(studio), await submit(studio)
    run = await executor.run(running)
    with studio.subscribe() as events:
        await studio.pause_queue()
        kinds = {event.kind: event async for event in _without_waiting(events)}
    assert kinds["queue"].paused
    assert studio.queue_paused
    run.finish()
    assert (await finished(studio, running)).state is JobState.DONE
    assert (await studio.job(waiting.id)).state is JobState.QUEUED
    await studio.resume_queue()
    await executor.run(waiting)


async def test_a_queue_stays_paused_over_a_restart(tmp_path: Path, open_studio: OpenStudio) -> None:
    async with open_studio(tmp_path, ScriptedExecutor()) as studio:
        await studio.pause_queue()
        await submit(studio)
    executor = ScriptedExecutor()
    async with open_studio(tmp_path, executor) as studio:
        assert studio.queue_paused
        await studio.resume_queue()
        await executor.run()


# ── Cancel, pause, retry ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_cancel_hits_the_named_run_alone(tmp_path: Path, open_studio: OpenStudio) -> None:
    executor = ScriptedExecutor(Slot("gpu:0", "gpu:0", "test"), Slot("gpu:1", "gpu:1", "test"))
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        doomed, other = await submit(studio), await submit(studio)
        await executor.run(doomed)
        run = await executor.run(other)
        cancelled = await studio.cancel(doomed.id, 1)
        assert cancelled.state is JobState.CANCELLED
        await settled(lambda: doomed.id not in executor.run_ids)
        assert executor.cancels[0] == (doomed.id, 1, False)
        run.finish()
        assert (await finished(studio, other)).state is JobState.DONE
        assert {job_id for job_id, *_ in executor.cancels} == {doomed.id}


async def test_a_late_cancel_of_an_earlier_attempt_is_refused(studio: Studio, executor: ScriptedExecutor) -> None:
    job = await submit(studio)
    await executor.run(job)
    await studio.cancel(job.id, 1)
    again = await studio.retry(job.id)
    assert again.attempt == 2
    await settled(lambda: executor.order == [job.id, job.id])
    with pytest.raises(JobStateError):
        await studio.cancel(job.id, 1)
    (await executor.run(job)).finish()
    assert (await finished(studio, job)).state is JobState.DONE
    assert {attempt for _, attempt, _ in executor.cancels} == {1}


async def test_the_next_attempt_begins_when_the_last_run_has_ended(studio: Studio, executor: ScriptedExecutor) -> None:
    executor.obedient = False
    job = await submit(studio)
    late = await executor.run(job)
    await studio.cancel(job.id, 1)
    await studio.retry(job.id)
    late.send(Checkpoint(b"too late", 9))
    late.finish(b"too late")
    await settled(lambda: executor.order == [job.id, job.id])
    run = await executor.run(job)
    assert (run.run.attempt, run.saved) == (2, None)
    run.finish(b"the second")
    await finished(studio, job)
    assert await studio.result_bytes(job.id) == b"the second"
    assert len(list((studio._store.root / "results").iterdir())) == 1


async def test_cancel_while_queued(studio: Studio, executor: ScriptedExecutor) -> None:
    running, waiting = await submit(studio), await submit(studio)
    run = await executor.run(running)
    await studio.cancel(waiting.id, 1)
    run.finish()
    await finished(studio, running)
    await settled(lambda: not executor.run_ids)
    assert executor.order == [running.id]


async def test_cancel_at_any_moment_of_starting_ends_the_run(tmp_path: Path, open_studio: OpenStudio) -> None:
    for pauses in range(0, 60, 3):
        executor = ScriptedExecutor()
        async with asyncio.timeout(60), open_studio(tmp_path / str(pauses), executor) as studio:
            job = await submit(studio)
            for _ in range(pauses):
                await asyncio.sleep(0)
            await studio.cancel(job.id, 1)
            await settled(partial(_all_free, studio))
            assert not executor.run_ids
            assert (await studio.job(job.id)).state is JobState.CANCELLED


def _all_free(studio: Studio) -> bool:
    return set(studio.slots.values()) == {None}


async def test_a_cancel_between_claim_and_start_prevents_the_start(
    studio: Studio, executor: ScriptedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, other = Store.claim, await asyncio.to_thread(Store, studio._store.root)

    def hit(self: Store, job_id: str, kind: str) -> Job | None:
        claimed = claim(self, job_id, kind)
        other.cancel(job_id, 1)
        return claimed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "claim", hit)
        job = await submit(studio)
        await until(studio, job, JobState.CANCELLED)
        await settled(partial(_all_free, studio))
    other.close()
    after = await submit(studio)
    await executor.run(after)
    assert executor.order == [after.id]


async def test_a_pause_saves_and_a_resume_goes_on_from_there(studio: Studio, executor: ScriptedExecutor) -> None:
    job, other = await submit(studio, "a"), await submit(studio, "a")
    run = await executor.run(job)
    points = tuple(LossPoint(iteration=i, seconds=i / 10, loss=1 / i, levels=()) for i in (1, 2))
    run.send(progress(20), Losses(points))
    paused = await studio.pause(job.id)
    assert paused.state is JobState.PAUSED
    (await executor.run(other)).finish()
    await finished(studio, other)
    assert executor.cancels[0] == (job.id, 1, True)
    assert tuple(await studio.losses(job.id)) == points, "what came last is kept"
    await studio.resume(job.id)
    run = await executor.run(job)
    assert (run.saved, run.run.attempt) == (b"saved at the end", 1)
    run.finish()
    assert (await finished(studio, job)).state is JobState.DONE


async def test_deleting_a_running_job_stops_it_and_leaves_no_file(studio: Studio, executor: ScriptedExecutor) -> None:
    executor.obedient = False
    job = await submit(studio)
    run = await executor.run(job)
    with studio.subscribe(job_id=job.id) as events:
        await studio.delete(job.id)
        event = await events.next()
    assert event is not None
    assert event.kind == "removed"
    run.send(Checkpoint(b"late", 9), Preview(b"late"))
    run.finish()
    await settled(partial(_all_free, studio))
    for kind in ("checkpoints", "previews", "results"):
        assert not list((studio._store.root / kind).iterdir())
    with pytest.raises(NoSuchJobError):
        await studio.job(job.id)
    with pytest.raises(NoSuchJobError):
        await studio.wait(job.id)


# ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_fits_on_no_device_is_refused_with_the_largest_level(
    tmp_path: Path, open_studio: OpenStudio
) -> None:
    estimate = replace(small_estimate(memory_bytes=99 * GIB), largest_level=2)
    executor = ScriptedExecutor(estimate=lambda run, slot: estimate)
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        with pytest.raises(MemoryLimitError, match=r"needs 99.0 GiB.*level 2, the largest that fits"):
            await submit(studio, settings=Settings(levels=4))
        assert not await studio.jobs()


async def test_a_job_waits_for_memory_and_is_not_overtaken(tmp_path: Path, open_studio: OpenStudio) -> None:
    free = {"bytes": 1 * GIB}

    def estimate(run: Run, slot: Slot | None) -> Estimate:
        return small_estimate(memory_bytes=(1 + 4 * run.settings.levels) * GIB, free_bytes=free["bytes"])

    executor = ScriptedExecutor(estimate=estimate)
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        large, small = await submit(studio, settings=Settings(levels=1)), await submit(studio)
        with studio.subscribe(job_id=large.id) as events:
            while not (await studio.job(large.id)).waiting:
                await events.next(within=PATIENCE)
        assert (await studio.job(large.id)).waiting == "waits for memory: needs 5.0 GiB, 1.0 GiB free"
        assert not executor.order
        free["bytes"] = 6 * GIB
        (await executor.run(large)).finish()
        (await executor.run(small)).finish()
        await finished(studio, small)
        assert executor.order == [large.id, small.id]
        assert not (await studio.job(large.id)).waiting


async def test_a_job_that_waited_long_enough_is_computed_in_smaller_pieces(
    tmp_path: Path, open_studio: OpenStudio
) -> None:
    def estimate(run: Run, slot: Slot | None) -> Estimate:
        needs = min(5.0, run.settings.max_memory or 99.0)
        return small_estimate(memory_bytes=int(needs * GIB), free_bytes=2 * GIB)

    executor = ScriptedExecutor(estimate=estimate)
    hasty = QUICK.model_copy(update={"memory_patience_seconds": 0.1})
    async with asyncio.timeout(60), open_studio(tmp_path, executor, hasty) as studio:
        job = await submit(studio)
        run = await executor.run(job)
        assert run.run.settings == SMALL.changed({"max_memory": 2.0})
        run.finish()
        done = await finished(studio, job)
        assert [notice.text for notice in done.notices] == [
            "Only 2.0 GiB of memory were free, so it is computed in smaller pieces."
        ]


async def test_a_job_that_fits_in_no_smaller_pieces_is_refused_and_the_next_one_runs(
    tmp_path: Path, open_studio: OpenStudio
) -> None:
    def estimate(run: Run, slot: Slot | None) -> Estimate:
        largest = 6 if run.settings.max_memory is None else 0
        memory = (1 + 4 * run.settings.levels) * GIB
        return replace(small_estimate(memory_bytes=memory, free_bytes=2 * GIB), largest_level=largest)

    executor = ScriptedExecutor(estimate=estimate)
    hasty = QUICK.model_copy(update={"memory_patience_seconds": 0.1})
    async with asyncio.timeout(60), open_studio(tmp_path, executor, hasty) as studio:
        large, small = await submit(studio, settings=Settings(levels=1)), await submit(studio)
        refused = await finished(studio, large)
        assert refused.state is JobState.FAILED
        assert str(refused.error) == (
            "level 1 needs 5.0 GiB of memory, more than there is for it. Choose level 0, the largest that fits."
        )
        (await executor.run(small)).finish()
        assert (await finished(studio, small)).state is JobState.DONE


async def test_runs_on_one_device_share_its_memory(tmp_path: Path, open_studio: OpenStudio) -> None:
    """Free memory doesn't know yet what a run that has just begun will take; its end is always waited for."""
    slots = [Slot("gpu:0.0", "gpu:0", "test"), Slot("gpu:0.1", "gpu:0", "test")]
    executor = ScriptedExecutor(*slots, estimate=lambda run, slot: small_estimate(memory_bytes=5 * GIB))
    hasty = QUICK.model_copy(update={"memory_patience_seconds": 0})
    async with asyncio.timeout(60), open_studio(tmp_path, executor, hasty) as studio:
        first, second = await submit(studio), await submit(studio)
        run = await executor.run(first)
        with studio.subscribe(job_id=second.id) as events:
            while not (await studio.job(second.id)).waiting:
                await events.next(within=PATIENCE)
        run.finish()
        assert (await executor.run(second)).run.settings == SMALL


async def test_a_job_too_large_for_one_device_waits_for_the_other(tmp_path: Path, open_studio: OpenStudio) -> None:
    little, big = Slot("gpu:0", "gpu:0", "little"), Slot("gpu:1", "gpu:1", "big")

    def estimate(run: Run, slot: Slot | None) -> Estimate:
        total = 4 * GIB if slot == little else 16 * GIB
        return small_estimate(memory_bytes=(1 + 7 * run.settings.levels) * GIB, free_bytes=total, total_bytes=total)

    executor = ScriptedExecutor(little, big, estimate=estimate)
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        large = [await submit(studio, settings=Settings(levels=1)) for _ in range(2)]
        small = await submit(studio)
        first, beside = await executor.run(large[0]), await executor.run(small)
        assert (first.slot, beside.slot) == (big, little)
        first.finish()
        assert (await executor.run(large[1])).slot == big


async def test_an_input_that_is_broken_is_refused_at_once(tmp_path: Path, open_studio: OpenStudio) -> None:
    def estimate(run: Run, slot: Slot | None) -> Estimate:
        raise ImageError("this is not a picture")

    async with asyncio.timeout(60), open_studio(tmp_path, ScriptedExecutor(estimate=estimate)) as studio:
        with pytest.raises(ImageError):
            await submit(studio)


# ── Trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_lost_run_goes_on_from_where_it_was_saved(studio: Studio, executor: ScriptedExecutor) -> None:
    job = await submit(studio)
    run = await executor.run(job)
    run.send(Checkpoint(b"half", 30))
    run.fail(LostRunError("the node went away"))
    await settled(lambda: len(executor.order) == 2)
    run = await executor.run(job)
    assert run.saved == b"half"
    run.finish()
    assert (await finished(studio, job)).state is JobState.DONE


async def test_a_run_that_is_always_lost_fails_in_the_end(studio: Studio, executor: ScriptedExecutor) -> None:
    job = await submit(studio)
    (await executor.run(job)).end()
    await settled(lambda: len(executor.order) == 2)
    (await executor.run(job)).fail(LostRunError("the node went away"))
    assert (await finished(studio, job)).state is JobState.FAILED


async def test_a_poisoned_device_asks_the_process_to_exit_and_the_queue_is_safe(
    tmp_path: Path, open_studio: OpenStudio
) -> None:
    """In process alone: on a cluster a poisoned device ends its worker and nothing else."""
    executor = ScriptedExecutor(Slot("gpu:0", "gpu:0", "test"), Slot("gpu:1", "gpu:1", "test"))
    async with asyncio.timeout(60), studio_doubles.open_studio(tmp_path, executor) as studio:
        culprit, beside, waiting = [await submit(studio, owner) for owner in "abc"]
        await executor.run(beside)
        healthy = studio.fatal
        (await executor.run(culprit)).fail(PoisonedDeviceError("illegal memory access"))
        assert "illegal memory access" in str(await studio.until_fatal())
        assert (healthy, type(studio.fatal)) == (None, PoisonedDeviceError)
        await settled(lambda: not executor.run_ids)
        assert executor.order == [culprit.id, beside.id], "nothing more is started"
    executor = ScriptedExecutor()
    async with asyncio.timeout(60), studio_doubles.open_studio(tmp_path, executor) as studio:
        assert studio.fatal is None
        for job in (culprit, beside, waiting):
            run = await executor.run(job)
            run.finish()
            assert (await finished(studio, job)).state is JobState.DONE
        store = studio._store
        assert (store.get(culprit.id).attempt, executor.order) == (1, [culprit.id, beside.id, waiting.id])


async def test_a_full_disk_fails_the_job_whose_picture_it_was(
    studio: Studio, executor: ScriptedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Files.write

    def full(self: Files, kind: str, name: str, data: bytes, *, sync: bool = True) -> None:
        if kind != "inputs" and data == b"too large":
            raise StorageError("there is no space left", "Free some")
        write(self, kind, name, data, sync=sync)  # type: ignore[arg-type]

    monkeypatch.setattr(Files, "write", full)
    job, other = await submit(studio), await submit(studio)
    run = await executor.run(job)
    run.send(Checkpoint(b"too large", 10), Preview(b"too large"), Checkpoint(b"too large", 20), progress(20))
    run.finish(b"too large")
    failed = await finished(studio, job)
    assert str(failed.error) == "there is no space left. Free some."
    assert len(failed.notices) == 1, "that it can't be saved on the way is said once"
    assert "can't be saved on the way" in failed.notices[0].text
    (await executor.run(other)).finish(b"small enough")
    assert (await finished(studio, other)).state is JobState.DONE


async def test_a_result_is_recorded_as_soon_as_the_database_can_be_written_again(
    studio: Studio, executor: ScriptedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submit(studio)
    run = await executor.run(job)
    finish, tries = Store.finish, 0

    def full(*args: object) -> bool:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StorageError("the database is full")
        return finish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "finish", full)
    run.finish(b"worth keeping")
    assert (await finished(studio, job)).state is JobState.DONE
    assert await studio.result_bytes(job.id) == b"worth keeping"


async def test_an_unwritable_database_refuses_and_recovers(
    studio: Studio, executor: ScriptedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submit(studio)
    with monkeypatch.context() as patch:
        patch.setattr("core.studio.files.os.fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
        with pytest.raises(StorageError, match="read-only"):
            await submit(studio)
    (await executor.run(job)).finish()
    assert (await finished(studio, job)).state is JobState.DONE


# ── Closing, restarting, several processes ───────────────────────────────────────────────────────────────────────────


async def test_closing_saves_what_runs_and_the_next_start_goes_on(tmp_path: Path, open_studio: OpenStudio) -> None:
    executor = ScriptedExecutor()
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        job, waiting = await submit(studio), await submit(studio)
        await executor.run(job)
        events = studio.subscribe()
    assert executor.closed
    async for _ in events:
        pass
    assert events.ended, "subscribers end with the studio"
    executor = ScriptedExecutor()
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        run = await executor.run(job)
        assert run.saved == b"saved at the end"
        assert (await studio.job(waiting.id)).position == 1
        states = [(line.before, line.after) for line in await studio.transitions(job.id)]
        assert states[-2:] == [("running", "queued"), ("queued", "running")]


async def test_closing_does_not_wait_for_ever(tmp_path: Path, open_studio: OpenStudio) -> None:
    executor = ScriptedExecutor()
    executor.obedient = False
    hasty = QUICK.model_copy(update={"shutdown_seconds": 0.1})
    async with asyncio.timeout(5):
        async with open_studio(tmp_path, executor, hasty) as studio:
            job = await submit(studio)
            await executor.run(job)
    store = Store(tmp_path)
    assert (store.get(job.id).state, store.get(job.id).process) == (JobState.QUEUED, None)
    store.close()


async def test_two_processes_work_on_one_queue(tmp_path: Path, open_studio: OpenStudio) -> None:
    idle, busy = ScriptedExecutor(), ScriptedExecutor()
    idle._slots = []
    async with asyncio.timeout(60), open_studio(tmp_path, idle) as bot, open_studio(tmp_path, busy) as lab:
        with bot.subscribe() as events:
            job = await submit(bot, "tg:1")
            run = await busy.run(job)
            run.send(progress(30), Preview(b"half"))
            while not (event := await events.next(within=PATIENCE)) or not event.job or not event.job.preview:
                assert event is not None
            assert event.job.progress is not None
            assert event.job.progress.iteration == 30
            assert await bot.preview_bytes(job.id) == b"half"
            run.finish(b"painted by the other")
            assert (await finished(bot, job)).state is JobState.DONE
            assert await bot.result_bytes(job.id) == b"painted by the other"
        assert (await lab.job(job.id)).state is JobState.DONE


async def test_a_cancel_reaches_the_process_that_runs_the_job(tmp_path: Path, open_studio: OpenStudio) -> None:
    idle, busy = ScriptedExecutor(), ScriptedExecutor()
    idle._slots = []
    async with asyncio.timeout(60), open_studio(tmp_path, idle) as bot, open_studio(tmp_path, busy):
        job = await submit(bot)
        await busy.run(job)
        await bot.cancel(job.id, 1)
        await settled(lambda: not busy.run_ids)
        assert busy.cancels[0] == (job.id, 1, False)


async def test_the_living_take_over_from_the_dead(tmp_path: Path, open_studio: OpenStudio) -> None:
    async with open_studio(tmp_path, ScriptedExecutor()) as studio:
        await studio.pause_queue()
        job = await submit(studio)
    neighbour = Store(tmp_path)
    neighbour.pause_queue(False)
    claimed = neighbour.claim(job.id, "test")
    assert claimed is not None
    neighbour.files.write("checkpoints", checkpoint_name(claimed), b"half")
    executor = ScriptedExecutor()
    async with asyncio.timeout(60), open_studio(tmp_path, executor) as studio:
        assert (await studio.job(job.id)).state is JobState.RUNNING
        await studio._scheduler.commit(studio._store.recover, 2)
        assert (await studio.job(job.id)).state is JobState.RUNNING, "its process lives"
        neighbour.close()
        assert (await executor.run(job)).saved == b"half"


# ── Time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_time_left_is_learnt_from_finished_jobs(studio: Studio, executor: ScriptedExecutor) -> None:
    job = await submit(studio)
    assert job.seconds_left is None, "nothing like it was measured yet"
    assert (await studio.estimate(SMALL, job.content, job.styles)).seconds is None
    (await executor.run(job)).finish()
    done = await finished(studio, job)
    assert done.result is not None
    seconds = done.result.seconds
    await studio.pause_queue()
    first, second = await submit(studio), await submit(studio)
    assert first.seconds_left == pytest.approx(seconds)
    assert second.seconds_left == pytest.approx(2 * seconds)
    twice = SMALL.changed({"optimizer": {"iterations": 120}})
    assert (await studio.estimate(twice, job.content, job.styles)).seconds == pytest.approx(2 * seconds)


async def test_time_left_of_a_running_job_follows_its_own_pace(
    studio: Studio, executor: ScriptedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("core.studio.scheduler.time.time", lambda: now)
    job = await submit(studio)
    run = await executor.run(job)
    now += 100  # of preparing
    left = []
    for iteration in (0, 1, 15, 30):
        run.send(progress(iteration))
        async with asyncio.timeout(PATIENCE):
            with studio.subscribe(job_id=job.id) as events:
                while not (seen := (await studio.job(job.id)).progress) or seen.iteration < iteration:
                    await events.next()
        left.append((await studio.job(job.id)).seconds_left)
        now += 30
    assert left == [None, None, pytest.approx(180), pytest.approx(90)], "60 s for a quarter, then 90 s for a half"


async def test_places_in_the_queue_are_told_as_they_change(studio: Studio, executor: ScriptedExecutor) -> None:
    """To all who wait, by events alone, whatever of the queue has changed."""
    jobs = [await submit(studio) for _ in range(5)]
    run = await executor.run(jobs[0])
    shown: dict[str, int | None] = {}
    with studio.subscribe() as events:
        shown.update((job.id, job.position) for job in await studio.jobs())
        await studio.reorder(jobs[4].id, 1)
        await _until_shown(shown, events, {jobs[4].id: 1, jobs[1].id: 2, jobs[2].id: 3, jobs[3].id: 4})
        await studio.cancel(jobs[1].id, 1)
        run.finish()
        await _until_shown(shown, events, {jobs[4].id: None, jobs[1].id: None, jobs[2].id: 1, jobs[3].id: 2})


async def _until_shown(shown: dict[str, int | None], events: Subscription, expected: dict[str, int | None]) -> None:
    """Follows the events until a page that does so shows these places."""
    async with asyncio.timeout(PATIENCE):
        while not expected.items() <= shown.items():
            event = await events.next()
            assert event is not None
            if event.job:
                shown[event.job_id] = event.job.position


# ── Load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_hundred_submissions_before_fifty_subscribers(tmp_path: Path, open_studio: OpenStudio) -> None:
    """Every subscriber learns how every job ended, and the loop stays free for all of them."""
    executor = ScriptedExecutor(*(Slot(f"gpu:{number}", f"gpu:{number}", "test") for number in range(4)))
    roomy = QUICK.model_copy(update={"pending_per_owner": 200, "poll_seconds": 0.5})
    async with asyncio.timeout(120), open_studio(tmp_path, executor, roomy) as studio:
        content, style = await studio.add_input("lab", b"content"), await studio.add_input("lab", b"style")
        readers = [asyncio.create_task(_states_until_done(studio, 200)) for _ in range(50)]
        painter = asyncio.create_task(_finish_all(executor))
        submissions = (studio.submit(f"owner {number % 20}", content, [style], SMALL) for number in range(200))
        jobs = await asyncio.gather(*submissions)
        ended = await asyncio.gather(*readers)
        painter.cancel()
    assert len({job.id for job in jobs}) == 200
    assert all(states == {job.id: JobState.DONE for job in jobs} for states in ended)
    assert sorted(executor.order) == sorted(job.id for job in jobs), "each ran exactly once"


async def _states_until_done(studio: Studio, jobs: int) -> dict[str, JobState]:
    """What one page shows: a snapshot, then events, a fresh snapshot after a gap."""
    with studio.subscribe() as events:
        ended = {job.id: job.state for job in await studio.jobs() if not job.state.pending}
        while len(ended) < jobs:
            event = await events.next()
            assert event is not None
            if event.kind == "gap":
                ended = {job.id: job.state for job in await studio.jobs() if not job.state.pending}
            elif event.job is not None and not event.job.state.pending:
                ended[event.job_id] = event.job.state
    return ended


async def _finish_all(executor: ScriptedExecutor) -> None:
    while True:
        await executor.run()
        for job_id in list(executor.run_ids):
            executor._runs[job_id].send(progress(30))
            executor._runs[job_id].finish(new_id().encode())
        await asyncio.sleep(0)


# ── New weights ──────────────────────────────────────────────────────────────────────────────────────────────────────

WEIGHTS = {"loss": {"content_weight": 0.5}}


async def test_a_running_job_is_steered_from_any_process_and_says_when(
    tmp_path: Path, studio: Studio, executor: ScriptedExecutor
) -> None:
    job = await submit(studio)
    run = await executor.run(job)
    await studio.steer(job.id, 1, WEIGHTS, "content 5 → 7")
    elsewhere = Store(tmp_path)
    elsewhere.steer(job.id, 1, {"loss": {"style_weight": 2.0}}, "style 5 → 6")
    elsewhere.close()
    await settled(lambda: len(executor.steered) == 2)
    assert [(job_id, attempt, wish.number) for job_id, attempt, wish in executor.steered] == [
        (job.id, 1, 0),
        (job.id, 1, 1),
    ]
    run.send(Steered(0, 37, 40))
    async with asyncio.timeout(PATIENCE):
        with studio.subscribe(job_id=job.id) as events:
            while (await studio.job(job.id)).steering[0].iteration != 37:
                await events.next()
    run.finish()
    assert (await finished(studio, job)).steering[0].text == "content 5 → 7"


async def test_what_was_asked_for_before_a_run_comes_with_it(studio: Studio, executor: ScriptedExecutor) -> None:
    await studio.pause_queue()
    job = await submit(studio)
    await studio.steer(job.id, 1, WEIGHTS, "content 5 → 7")
    await studio.resume_queue()
    run = await executor.run(job)
    assert [wish.changes for wish in run.run.steering] == [WEIGHTS]
    assert executor.steered == []


@pytest.mark.parametrize("changes", [{"levels": 2}, {"loss": {"content_weight": -1}}, {"noise": {"strength": 0.1}}])
async def test_only_weights_can_be_steered(studio: Studio, changes: dict[str, object]) -> None:
    job = await submit(studio)
    with pytest.raises(SettingsError):
        await studio.steer(job.id, 1, changes, "")
    assert (await studio.job(job.id)).steering == ()


async def test_a_film_is_kept_beside_its_picture(studio: Studio, executor: ScriptedExecutor) -> None:
    job = await submit(studio, film=True)
    run = await executor.run(job)
    assert run.run.film
    run.send(Output(b"picture", "png", 256, 256, b"film", "mp4"))
    run.end()
    await finished(studio, job)
    path = await studio.film_path(job.id)
    assert (path.read_bytes(), path.suffix) == (b"film", ".mp4")
    assert await studio.result_bytes(job.id) == b"picture"
