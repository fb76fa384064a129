"""What survives, and what a restart makes of it."""

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import Settings
from core.studio.files import checkpoint_name, frames_name, preview_name
from core.studio.jobs import (
    Failure,
    Job,
    JobState,
    JobStateError,
    LossPoint,
    NoSuchJobError,
    QueueFullError,
    Result,
    Steered,
    StorageError,
    new_id,
)
from core.studio.store import _MIGRATIONS, Store, Timing
from tests.studio_doubles import progress

ROOM = {"per_owner": 10, "in_all": 100}
DAY = 24 * 3600.0
RESULT = Result(file=f"{new_id()}.png", format="png", width=256, height=256, bytes=7, seconds=1.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path, store: Store) -> Iterator[Store]:
    """The store of a second process."""
    opened = Store(tmp_path)
    yield opened
    opened.close()


def draft(store: Store, owner: str = "lab", **changes: object) -> Job:
    content = changes.pop("content", None) or store.add_input(owner, b"content")
    styles = changes.pop("styles", None) or (store.add_input(owner, b"style"),)
    values = {"id": new_id(), "owner": owner, "content": content, "styles": styles, "created": time.time()}
    return Job.model_validate(values | {"settings": Settings(levels=0), "width": 256, "height": 256} | changes)


def submitted(store: Store, owner: str = "lab", **changes: object) -> Job:
    return store.submit(draft(store, owner, **changes), **ROOM)


def running(store: Store, owner: str = "lab", **changes: object) -> Job:
    job = store.claim(submitted(store, owner, **changes).id, "test")
    assert job is not None
    return job


def done(store: Store, owner: str = "lab", **changes: object) -> Job:
    job = running(store, owner, **changes)
    name = f"{new_id()}.png"
    store.files.write("results", name, b"picture")
    assert store.finish(job.id, 1, RESULT.model_copy(update={"file": name}), progress(60))
    return store.get(job.id)


def crash(store: Store) -> Store:
    """The process ends without a word (the system lets go of its lock); another one starts."""
    store.close()
    fresh = Store(store.root)
    fresh.recover(limit=2)
    return fresh


def states(store: Store, job: Job) -> list[tuple[str | None, str]]:
    return [(line.before, line.after) for line in store.transitions(job.id)]


# Jobs


def test_a_job_survives_closing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = submitted(store, tags={"cell": "1,2"}, key="mine")
    store.close()
    again = Store(tmp_path)
    assert again.get(job.id) == job
    assert again.files.read("inputs", job.content) == b"content"
    again.close()


def test_every_change_of_state_is_a_row_with_a_time(store: Store) -> None:
    began = time.time()
    job = done(store)
    lines = store.transitions(job.id)
    assert [(line.before, line.after, line.attempt) for line in lines] == [
        (None, "queued", 1),
        ("queued", "running", 1),
        ("running", "done", 1),
    ]
    assert began <= lines[0].time <= lines[1].time <= lines[2].time <= time.time()


def test_the_same_key_gives_the_same_job(store: Store) -> None:
    first = submitted(store, key="cell")
    assert submitted(store, key="cell") == first
    assert store.find("lab", "cell") == first
    assert store.find("another", "cell") is None
    assert submitted(store, "another", key="cell").id != first.id
    assert submitted(store).id != submitted(store).id, "no key is no key"


def test_a_full_queue_refuses_clearly(store: Store) -> None:
    for _ in range(2):
        store.submit(draft(store), per_owner=2, in_all=3)
    with pytest.raises(QueueFullError, match="you have 2 jobs"):
        store.submit(draft(store), per_owner=2, in_all=3)
    store.submit(draft(store, "another"), per_owner=2, in_all=3)
    with pytest.raises(QueueFullError, match="the queue is full"):
        store.submit(draft(store, "a third"), per_owner=2, in_all=3)


def test_finished_jobs_take_no_room(store: Store) -> None:
    job = submitted(store)
    store.cancel(job.id, 1)
    store.submit(draft(store), per_owner=1, in_all=1)
    with pytest.raises(QueueFullError):
        store.retry(job.id, per_owner=1, in_all=9)


def test_a_job_needs_inputs_that_are_there(store: Store) -> None:
    with pytest.raises(NoSuchJobError, match="no such picture"):
        store.submit(draft(store, content=new_id()), **ROOM)
    assert not store.jobs()


def test_cancel_means_one_attempt(store: Store) -> None:
    job = submitted(store)
    assert store.cancel(job.id, 1).state is JobState.CANCELLED
    assert store.cancel(job.id, 1).state is JobState.CANCELLED, "twice does no harm"
    again = store.retry(job.id, **ROOM)
    assert (again.state, again.attempt) == (JobState.QUEUED, 2)
    with pytest.raises(JobStateError, match="attempt 2 now"):
        store.cancel(job.id, 1)
    assert store.get(job.id).state is JobState.QUEUED


def test_what_has_ended_stays_so(store: Store) -> None:
    job = done(store)
    with pytest.raises(JobStateError, match="done"):
        store.cancel(job.id, 1)
    with pytest.raises(JobStateError, match="done"):
        store.pause(job.id)
    with pytest.raises(JobStateError, match="done"):
        store.resume(job.id)
    with pytest.raises(JobStateError, match="done"):
        store.retry(job.id, **ROOM)
    assert store.get(job.id) == job


def test_pause_and_resume(store: Store) -> None:
    job = submitted(store)
    assert store.pause(job.id).state is JobState.PAUSED
    assert store.pause(job.id).state is JobState.PAUSED
    assert store.claim(job.id, "test") is None
    resumed = store.resume(job.id)
    assert (resumed.state, resumed.rank) == (JobState.QUEUED, job.rank)
    assert store.resume(job.id) == resumed


def test_only_what_ended_badly_is_retried(store: Store) -> None:
    for pending in (submitted(store), running(store), store.pause(submitted(store).id)):
        with pytest.raises(JobStateError):
            store.retry(pending.id, **ROOM)


def test_a_retry_forgets_the_attempt_before(store: Store) -> None:
    job = running(store)
    store.record_progress(job.id, 1, progress(30), 99)
    store.add_notice(job.id, 1, "hm")
    store.files.write("checkpoints", checkpoint_name(job), b"half")
    store.record_checkpoint(job.id, 1, 30)
    assert store.fail(job.id, 1, Failure(cause="no luck"))
    again = store.retry(job.id, **ROOM)
    fresh = ("progress", "preview", "error", "started", "finished", "result")
    assert all(getattr(again, name) is None for name in fresh)
    assert (again.notices, again.checkpoint_iteration) == ((), 0)
    assert again.rank > job.rank, "it queues at the end"
    checkpoint = store.run(again).checkpoint
    assert checkpoint is not None
    assert not checkpoint.exists()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_reordering_moves_one_job_among_its_owners(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.mktemp("reorder"))
    owners = data.draw(st.lists(st.sampled_from("ab"), min_size=1, max_size=6))
    picture = store.add_input("a", b"picture")
    jobs = [submitted(store, owner, content=picture, styles=(picture,)) for owner in owners]
    moved = data.draw(st.sampled_from(jobs))
    place = data.draw(st.integers(-1, 8))

    def order(owner: str) -> list[str]:
        return [job.id for job in sorted(store.jobs(owner=owner), key=lambda job: job.rank)]

    mine, others = order(moved.owner), order("b" if moved.owner == "a" else "a")
    owner_by_rank = [job.owner for job in sorted(store.jobs(), key=lambda job: job.rank)]
    store.reorder(moved.id, place)
    mine.remove(moved.id)
    mine.insert(max(0, place - 1), moved.id)
    assert order(moved.owner) == mine
    assert order("b" if moved.owner == "a" else "a") == others
    assert [job.owner for job in sorted(store.jobs(), key=lambda job: job.rank)] == owner_by_rank
    store.close()


def test_only_queued_jobs_are_reordered(store: Store) -> None:
    with pytest.raises(JobStateError, match="running"):
        store.reorder(running(store).id, 1)


def test_jobs_are_listed_by_what_is_asked(store: Store) -> None:
    first = submitted(store, tags={"table": "gallery", "row": "1"})
    second = submitted(store, "tg:1", tags={"table": "stages"})
    third = done(store, tags={"table": "gallery"})
    assert [job.id for job in store.jobs()] == [third.id, second.id, first.id]
    assert [job.id for job in store.jobs(tags={"table": "gallery"})] == [third.id, first.id]
    assert [job.id for job in store.jobs(tags={"table": "gallery", "row": "1"})] == [first.id]
    assert [job.id for job in store.jobs(owner="tg:1")] == [second.id]
    assert [job.id for job in store.jobs(states={JobState.DONE})] == [third.id]
    assert [job.id for job in store.jobs(limit=1, before=third.created)] == [second.id]
    assert store.counts()[JobState.QUEUED] == 2
    assert store.submitted("lab", since=third.created) == 1


def test_a_quote_in_a_tag_is_only_a_letter(store: Store) -> None:
    job = submitted(store, tags={'it\'s "odd"': "'; DROP TABLE jobs"})
    assert store.jobs(tags={'it\'s "odd"': "'; DROP TABLE jobs"}) == [job]


# Several processes


def test_a_job_is_claimed_once(store: Store, other: Store) -> None:
    job = submitted(store)
    assert store.claim(job.id, "test") is not None
    assert other.claim(job.id, "test") is None


def test_the_living_keep_their_jobs(store: Store, other: Store) -> None:
    job = running(store)
    other.recover(limit=2)
    assert other.get(job.id).state is JobState.RUNNING
    assert store.finish(job.id, 1, RESULT)


def test_the_dead_lose_theirs_to_whoever_looks(store: Store, other: Store) -> None:
    job = running(other)
    other.close()
    store.recover(limit=2)
    put_back = store.get(job.id)
    assert (put_back.state, put_back.interrupted, put_back.process) == (JobState.QUEUED, True, None)
    assert store.claim(job.id, "test") is not None


def test_only_who_runs_a_job_ends_it(store: Store, other: Store) -> None:
    job = running(store)
    assert not other.finish(job.id, 1, RESULT)
    assert not other.fail(job.id, 1, Failure(cause="not mine"))
    other.release(job.id, "not mine")
    assert store.get(job.id).process == store.process


def test_a_job_that_was_cancelled_meanwhile_is_not_done(store: Store, other: Store) -> None:
    job = running(store)
    other.cancel(job.id, 1)
    assert not store.finish(job.id, 1, RESULT)
    assert store.get(job.id).state is JobState.CANCELLED


def test_a_job_whose_last_run_has_not_ended_is_not_claimed(store: Store, other: Store) -> None:
    job = running(store)
    other.pause(job.id)
    other.resume(job.id)
    assert other.claim(job.id, "test") is None
    store.release(job.id, "ended")
    assert other.claim(job.id, "test") is not None


def test_changes_are_told_once_to_each_process(store: Store, other: Store) -> None:
    job = submitted(store)
    assert [changed.id for changed in store.changes().jobs] == [job.id]
    assert [changed.id for changed in other.changes().jobs] == [job.id]
    assert not store.changes().jobs
    other.cancel(job.id, 1)
    other.pause_queue(True)
    seen = store.changes()
    assert [changed.state for changed in seen.jobs] == [JobState.CANCELLED]
    assert seen.queue_paused
    other.delete(job.id)
    assert store.changes().removed == (job.id,)
    assert other.changes().removed == (job.id,)
    assert not store.changes().removed


def test_a_paused_queue_gives_no_job_to_anyone(store: Store, other: Store) -> None:
    job = submitted(store)
    store.pause_queue(True)
    assert other.claim(job.id, "test") is None
    store.pause_queue(False)
    assert other.claim(job.id, "test") is not None


# Crashes


def test_a_crash_loses_nothing(store: Store) -> None:
    finished, waiting, interrupted = done(store), submitted(store), running(store)
    held = store.pause(submitted(store).id)
    store.files.write("checkpoints", checkpoint_name(interrupted), b"half")
    store.record_checkpoint(interrupted.id, 1, 30)
    store = crash(store)
    assert store.get(finished.id) == finished
    assert store.get(waiting.id) == waiting
    assert store.get(held.id) == held
    resumed = store.claim(interrupted.id, "test")
    assert resumed is not None
    checkpoint = store.run(resumed).checkpoint
    assert checkpoint is not None
    assert checkpoint.read_bytes() == b"half"
    assert resumed.attempt == 1


def test_a_job_that_was_running_at_two_crashes_in_a_row_fails(store: Store) -> None:
    job = running(store)
    store = crash(store)
    assert store.get(job.id).state is JobState.QUEUED
    assert store.claim(job.id, "test")
    store = crash(store)
    failed = store.get(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert "2 times in a row" in failed.error.cause


def test_crashes_are_not_in_a_row_where_the_job_got_further_between(store: Store) -> None:
    job = running(store)
    for iteration in (10, 20, 30, 40):
        store.record_checkpoint(job.id, 1, iteration)
        store = crash(store)
        assert store.get(job.id).state is JobState.QUEUED
        assert store.claim(job.id, "test")
    store.record_checkpoint(job.id, 1, 35)  # it began again and came as far as before
    store = crash(store)
    assert store.get(job.id).state is JobState.FAILED


def test_machines_that_go_away_are_counted_apart_from_crashes_and_not_without_end(store: Store) -> None:
    job = running(store)

    def lost(machine: bool) -> Job:
        store.crash(job.id, 1, 5 if machine else 2, "gone", machine=machine)
        after = store.get(job.id)
        if after.state is JobState.QUEUED:
            store.claim(job.id, "test")
        return after

    for machine in (True, True, False, True):
        after = lost(machine)
    assert (after.state, after.crashes, after.machines_lost) == (JobState.QUEUED, 1, 3)
    store.record_checkpoint(job.id, 1, 10)
    after = lost(machine=True)
    assert (after.crashes, after.machines_lost) == (0, 1), "it had got further"
    for _ in range(3):
        assert lost(machine=True).state is JobState.QUEUED
    failed = lost(machine=True)
    assert failed.state is JobState.FAILED
    assert "5 times in a row" in str(failed.error)


def test_a_head_that_dies_is_no_crash_of_what_others_computed(store: Store, other: Store) -> None:
    job = running(store)
    store.close()
    other.recover(limit=5, machine=True)
    after = other.get(job.id)
    assert (after.state, after.crashes, after.machines_lost) == (JobState.QUEUED, 0, 1)


def test_a_job_that_was_paused_while_running_survives_a_crash(store: Store) -> None:
    job = running(store)
    store.pause(job.id)
    store = crash(store)
    paused = store.get(job.id)
    assert (paused.state, paused.crashes, paused.process) == (JobState.PAUSED, 0, None)


def test_closing_in_good_order_is_no_crash(store: Store) -> None:
    job = running(store)
    for _ in range(3):
        store.release_all("stopped")
        store = crash(store)
        again = store.claim(job.id, "test")
        assert again is not None
        assert again.crashes == 0


# Files


def test_a_file_is_written_whole_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_id()
    store.files.write("results", name, b"before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("core.studio.files.os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        store.files.write("results", name, b"after")
    monkeypatch.undo()
    assert store.files.read("results", name) == b"before"
    assert [path.name for path in (store.root / "results").iterdir()] == [name]


def test_a_directory_that_cannot_be_written_says_so(store: Store) -> None:
    (store.root / "results").rmdir()
    (store.root / "results").write_text("a file in the way")
    with pytest.raises(StorageError, match="results can't be used"):
        store.files.write("results", new_id(), b"picture")


@pytest.mark.parametrize("name", ["../studio.sqlite3", "/etc/passwd", "..", "a/b", "", "A" * 24, f"{'a' * 24}/../b"])
def test_no_name_leads_out_of_the_directory(store: Store, name: str) -> None:
    with pytest.raises(NoSuchJobError):
        store.files.path("results", name)
    with pytest.raises(NoSuchJobError):
        store.input_path(name)


def test_deleting_takes_the_files_along(store: Store) -> None:
    job = done(store)
    assert job.result is not None
    store.files.write("previews", preview_name(job.id), b"small")
    store.delete(job.id)
    store.delete(job.id)
    for kind, name in (("results", job.result.file), ("previews", preview_name(job.id))):
        with pytest.raises(NoSuchJobError):
            store.files.read(kind, name)  # type: ignore[arg-type]
    with pytest.raises(NoSuchJobError):
        store.get(job.id)
    assert not store.transitions(job.id)
    assert store.input_path(job.content).exists(), "its inputs may be used again"


def test_forgetting_an_owner_leaves_nothing_of_theirs(store: Store) -> None:
    mine = [done(store, "tg:1"), running(store, "tg:1"), submitted(store, "tg:1")]
    unused = store.add_input("tg:1", b"not yet a job")
    shared = store.add_input("tg:1", b"style")
    theirs = submitted(store, "tg:2", styles=(shared,))
    assert store.forget("tg:1") == 3
    assert [job.id for job in store.jobs()] == [theirs.id]
    gone = [unused, *(job.content for job in mine), *(job.styles[0] for job in mine)]
    assert not {path.name for path in (store.root / "inputs").iterdir()} & set(gone)
    assert store.input_path(shared).exists(), "another owner's job still needs it"
    assert not list((store.root / "results").iterdir())


def test_what_is_kept_long_enough_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    brief, usual, waiting = done(store, keep_seconds=60), done(store), submitted(store)
    unused = store.add_input("lab", b"unused")
    now = time.time()
    monkeypatch.setattr("core.studio.store.time.time", lambda: now + 3600)
    store.tidy(keep_seconds=DAY, keep_unused_seconds=DAY)
    assert {job.id for job in store.jobs()} == {usual.id, waiting.id}
    assert store.input_path(unused).exists()
    monkeypatch.setattr("core.studio.store.time.time", lambda: now + 2 * DAY)
    store.tidy(keep_seconds=DAY, keep_unused_seconds=DAY)
    assert [job.id for job in store.jobs()] == [waiting.id]
    left = {path.name for path in (store.root / "inputs").iterdir()}
    assert left == {waiting.content, *waiting.styles}
    assert brief.id not in {job.id for job in store.jobs()}


def test_without_a_limit_finished_jobs_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = done(store)
    later = time.time() + 1000 * DAY
    monkeypatch.setattr("core.studio.store.time.time", lambda: later)
    store.tidy(keep_seconds=None, keep_unused_seconds=DAY)
    assert store.get(job.id) == job


def test_stray_files_go_after_an_hour(store: Store) -> None:
    kept = done(store)
    paused = store.pause(submitted(store).id)
    store.files.write("checkpoints", checkpoint_name(paused), b"half")
    fresh, old = new_id(), new_id()
    for kind in ("inputs", "results", "checkpoints", "previews"):
        store.files.write(kind, fresh, b"just now")
        store.files.write(kind, old, b"left by a crash")
        (store.root / kind / f"{new_id()}.partial").write_bytes(b"half a file")
    for path in store.root.glob("*s/*"):
        if path.parent.name != "locks" and path.name != fresh:
            os.utime(path, (1, 1))
    store.tidy(keep_seconds=None, keep_unused_seconds=DAY)
    left = {path.name for path in store.root.glob("*s/*") if path.parent.name != "locks"}
    assert kept.result is not None
    expected = {fresh, kept.result.file, kept.content, *kept.styles, paused.content, *paused.styles}
    assert left == expected | {checkpoint_name(paused)}


# The database itself


def test_a_full_disk_says_so_and_others_go_on(store: Store) -> None:
    job = submitted(store)
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="full"):
        for number in range(10_000):
            store.put_record("filler", str(number), "x" * 1000)
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert store.cancel(job.id, 1).state is JobState.CANCELLED


def test_a_directory_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(StorageError, match="can't be used"):
        Store(tmp_path / "data")


def test_a_damaged_database_says_so(tmp_path: Path) -> None:
    Store(tmp_path).close()
    (tmp_path / "studio.sqlite3").write_bytes(b"this is not a database" * 1000)
    with pytest.raises(StorageError, match="damaged"):
        Store(tmp_path)


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "studio.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 1000")
    with pytest.raises(StorageError, match="newer version"):
        Store(tmp_path)


def test_a_row_that_cannot_be_read_hides_no_other(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    odd, good = submitted(store), submitted(store)
    document = "json_set(document, '$.settings.colour', 'blue')"
    store._connection.execute(f"UPDATE jobs SET document = {document} WHERE id = ?", (odd.id,))
    assert [job.id for job in store.jobs()] == [good.id]
    assert odd.id in caplog.text


def test_commits_reach_the_disk_before_they_return(store: Store) -> None:
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"


# Charts, timings, records


def test_a_resumed_run_draws_over_what_was_lost(store: Store) -> None:
    def point(iteration: int, loss: float) -> LossPoint:
        return LossPoint(iteration=iteration, seconds=float(iteration), loss=loss, levels=())

    job = running(store)
    store.record_progress(job.id, 1, progress(3), None, [point(1, 0.9), point(2, 0.8), point(3, 0.7)])
    store.record_progress(job.id, 1, progress(4), None, [point(3, 0.6), point(4, 0.5)])
    assert [(p.iteration, p.loss) for p in store.losses(job.id)] == [(1, 0.9), (2, 0.8), (3, 0.6), (4, 0.5)]
    store.cancel(job.id, 1)
    store.retry(job.id, **ROOM)
    assert not store.losses(job.id), "another attempt, another chart"


def test_notices_are_told_once(store: Store) -> None:
    job = running(store)
    for text in ("one", "two", "one"):
        store.add_notice(job.id, 1, text)
    assert [notice.text for notice in store.get(job.id).notices] == ["one", "two"]


def test_timings_come_back_newest_first(store: Store) -> None:
    timings = [Timing("gpu", "lbfgs", "vgg19", 1e6, 1e8, seconds) for seconds in (1.0, 2.0, 3.0)]
    for timing in timings:
        assert store.finish(running(store).id, 1, RESULT, timing=timing)
    assert store.timings(limit=2) == [timings[2], timings[1]]


def test_what_one_process_measured_others_learn(store: Store, other: Store) -> None:
    timing = Timing("gpu", "lbfgs", "vgg19", 1e6, 1e8, 2.0)
    assert store.finish(running(store).id, 1, RESULT, timing=timing)
    assert other.changes().timings == (timing,)
    assert other.changes().timings == ()


def test_who_had_a_turn(store: Store) -> None:
    job = running(store, "a")
    submitted(store, "b")
    assert store.last_started() == {"a": job.started}


def test_records_keep_json_in_order(store: Store, other: Store) -> None:
    store.put_record("bot.albums", "second", {"files": ["x", "y"]})
    store.put_record("bot.albums", "first", None)
    store.put_record("bot.albums", "second", [1, 2.5, "three"])
    store.put_record("bot.settings", "42", {"language": "ru"})
    assert list(other.records("bot.albums").items()) == [("second", [1, 2.5, "three"]), ("first", None)]
    assert other.record("bot.settings", "42") == {"language": "ru"}
    assert other.record("bot.settings", "43") is None
    assert store.remove_record("bot.albums", "second")
    assert not other.remove_record("bot.albums", "second"), "only one of two takes it away"


# Masks, steering, films

WEIGHTS = {"loss": {"content_weight": 0.5}}


def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    job = Job.model_validate(
        {"id": new_id(), "owner": "lab", "content": new_id(), "styles": [new_id()], "created": 1.0}
        | {"settings": Settings(levels=0), "width": 256, "height": 256}
    )
    new = {"masks", "protect", "film", "steering"}
    with sqlite3.connect(tmp_path / "studio.sqlite3") as connection:
        connection.executescript(_MIGRATIONS[0])
        connection.execute("INSERT INTO jobs VALUES (?, 1, ?)", (job.id, job.model_dump_json(exclude=new)))
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    store = Store(tmp_path)
    assert store.get(job.id) == job
    document = store._connection.execute("SELECT document FROM jobs").fetchone()[0]
    assert new <= json.loads(document).keys()
    store.close()


def test_masks_are_kept_as_long_as_their_job(store: Store) -> None:
    masks, protect = (None, store.add_input("lab", b"mask")), store.add_input("lab", b"face")
    job = submitted(store, masks=masks, protect=protect)
    store.tidy(None, keep_unused_seconds=-DAY)
    run = store.run(job)
    assert run.masks[0] is None and run.masks[1] is not None and run.protect is not None
    assert (run.masks[1].read_bytes(), run.protect.read_bytes()) == (b"mask", b"face")
    store.delete(job.id)
    store.tidy(None, keep_unused_seconds=-DAY)
    assert not run.masks[1].exists() and not run.protect.exists()
    with pytest.raises(NoSuchJobError):
        submitted(store, masks=("0" * 24,))


def test_new_weights_are_part_of_the_job(store: Store) -> None:
    job = running(store)
    asked = store.steer(job.id, 1, WEIGHTS, "content 5 → 7")
    assert [(wish.number, wish.text, wish.iteration) for wish in asked.steering] == [(0, "content 5 → 7", None)]
    assert asked.steered_settings.loss.content_weight == 0.5
    store.record_steered(job.id, 1, Steered(0, 37, 40))
    store.record_steered(job.id, 1, Steered(0, 99, 99))  # a run that begins again doesn't know better
    store.steer(job.id, 1, WEIGHTS, "again")
    fresh = crash(store)
    (first, second) = fresh.run(fresh.get(job.id)).steering
    assert (first.iteration, first.evaluation, second.number, second.iteration) == (37, 40, 1, None)
    fresh.close()


def test_only_the_attempt_that_was_meant_is_steered_and_only_while_it_can_be(store: Store) -> None:
    job = running(store)
    with pytest.raises(JobStateError, match="this was attempt 2"):
        store.steer(job.id, 2, WEIGHTS, "")
    for _ in range(100):
        store.steer(job.id, 1, WEIGHTS, "")
    with pytest.raises(JobStateError, match="100 times"):
        store.steer(job.id, 1, WEIGHTS, "")
    with pytest.raises(JobStateError, match="is done"):
        store.steer(done(store).id, 1, WEIGHTS, "")


def test_a_film_and_its_frames_go_with_their_job(store: Store) -> None:
    job = running(store, film=True)
    for name in (checkpoint_name(job), frames_name(job)):
        store.files.write("checkpoints", name, b"saved")
    picture, film = f"{new_id()}.png", f"{new_id()}.mp4"
    for name in (picture, film):
        store.files.write("results", name, b"data")
    assert store.finish(job.id, 1, RESULT.model_copy(update={"file": picture, "film": film}))
    assert not list((store.root / "checkpoints").iterdir())
    for path in (store.root / "results").iterdir():
        os.utime(path, (0, 0))
    store.tidy(None, DAY)
    assert {path.name for path in (store.root / "results").iterdir()} == {picture, film}
    store.delete(job.id)
    assert not list((store.root / "results").iterdir())
