"""What must survive: jobs in SQLite, pictures in files, and what a restart makes of both.

The data directory:

    studio.sqlite3     jobs, their changes of state, losses and timings; records of the front doors
    inputs/ …          pictures and checkpoints; see `core.studio.files`
    locks/             one file per process, held as long as it lives, and one per device slot

Several processes may share the directory. Each has an id and holds the lock of that name; the operating system lets go
of it however the process ends, so that whoever can take the lock knows that its holder is dead and may put its jobs
back. A job is run by the process whose id it carries; taking it and every change made in its name are transactions that
check this first, so no job can run twice to the end.

A `Store` is synchronous and used by one thread at a time. Every method that changes something is one transaction, and
returns after it is committed. Files are written beside their place, synced and renamed; a row is committed only after
the file that it names, and a file removed only after the row that named it, so that a crash in between leaves at worst
a file that nobody names, which `tidy` finds.
"""

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from core.studio.files import KINDS, STRAY_SECONDS, Files, checkpoint_name, frames_name, preview_name, storage_error
from core.studio.jobs import (
    PENDING,
    UNSTORED,
    Failure,
    Job,
    JobState,
    JobStateError,
    LossPoint,
    NoSuchJobError,
    Notice,
    Progress,
    QueueFullError,
    Result,
    Run,
    Steered,
    StorageError,
    Transition,
    Wish,
    check_transition,
    new_id,
)

log = logging.getLogger(__name__)

_MIGRATIONS = (
    """
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counters VALUES ('version', 0), ('queue paused', 0);

    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        document TEXT NOT NULL,
        owner TEXT GENERATED ALWAYS AS (json_extract(document, '$.owner')) VIRTUAL,
        key TEXT GENERATED ALWAYS AS (json_extract(document, '$.key')) VIRTUAL,
        state TEXT GENERATED ALWAYS AS (json_extract(document, '$.state')) VIRTUAL,
        process TEXT GENERATED ALWAYS AS (json_extract(document, '$.process')) VIRTUAL,
        created REAL GENERATED ALWAYS AS (json_extract(document, '$.created')) VIRTUAL,
        started REAL GENERATED ALWAYS AS (json_extract(document, '$.started')) VIRTUAL,
        finished REAL GENERATED ALWAYS AS (json_extract(document, '$.finished')) VIRTUAL,
        keep_seconds REAL GENERATED ALWAYS AS (json_extract(document, '$.keep_seconds')) VIRTUAL
    );
    CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, key) WHERE key IS NOT NULL;
    CREATE INDEX jobs_by_version ON jobs (version);
    CREATE INDEX jobs_by_state ON jobs (state, owner);
    CREATE INDEX jobs_by_time ON jobs (created);
    CREATE TABLE removed (id TEXT PRIMARY KEY, version INTEGER NOT NULL, time REAL NOT NULL) WITHOUT ROWID;

    CREATE TABLE transitions (
        number INTEGER PRIMARY KEY, job TEXT NOT NULL, time REAL NOT NULL,
        attempt INTEGER NOT NULL, before TEXT, after TEXT NOT NULL, note TEXT NOT NULL
    );
    CREATE INDEX transitions_by_job ON transitions (job);

    CREATE TABLE inputs (id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE uses (input TEXT NOT NULL, job TEXT NOT NULL, PRIMARY KEY (input, job)) WITHOUT ROWID;
    CREATE INDEX uses_by_job ON uses (job);

    CREATE TABLE losses (
        job TEXT NOT NULL, attempt INTEGER NOT NULL, iteration INTEGER NOT NULL, point TEXT NOT NULL,
        PRIMARY KEY (job, attempt, iteration)
    ) WITHOUT ROWID;

    CREATE TABLE timings (
        time REAL NOT NULL, kind TEXT NOT NULL, optimizer TEXT NOT NULL, network TEXT NOT NULL,
        pixels REAL NOT NULL, work REAL NOT NULL, seconds REAL NOT NULL
    );

    CREATE TABLE records (
        number INTEGER PRIMARY KEY, space TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (space, key)
    );
    """,
    # Jobs with masks, films and steering: a program that knows nothing of them must not go on with this directory.
    """
    UPDATE jobs SET document = json_insert(
        document, '$.masks', json_array(), '$.protect', NULL, '$.film', json('false'), '$.steering', json_array()
    );
    """,
    "UPDATE jobs SET document = json_insert(document, '$.machines_lost', 0);",
)
"""One script per version of the schema; a database of an older version runs those that it lacks."""

_MOST_STEERING = 100


@dataclass(frozen=True)
class Timing:
    """What a finished job took."""

    kind: str
    optimizer: str
    network: str
    pixels: float
    """Of the result."""
    work: float
    """Pixels times iterations; see `jobs.total_work`."""
    seconds: float


@dataclass(frozen=True)
class Changes:
    """What happened in the store since it was last asked, by this process and by others."""

    jobs: tuple[Job, ...]
    removed: tuple[str, ...]
    timings: tuple[Timing, ...]
    queue_paused: bool


# ── The store ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Store:
    """Everything durable, for one thread at a time.

    Args:
        root: The data directory; made where it is missing.

    Raises:
        StorageError: It can't be used, or was written by a newer version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process = new_id()
        """The id under which this process runs jobs."""
        self.files = Files(root)
        try:
            for kind in (*KINDS, "locks"):
                (root / kind).mkdir(parents=True, exist_ok=True)
            self._alive = self._process_lock(self.process)
            self._alive.acquire(timeout=0)
        except OSError as error:
            raise storage_error(error, root) from error
        try:
            with _told(root), FileLock(root / "locks" / "database.lock", timeout=60):
                self._connection = _connect(root / "studio.sqlite3")
                self._cursor = self._counter("version")
                self._timings_known = self._last_timing()
        except BaseException:
            self._alive.release()
            raise

    def close(self) -> None:
        """Closes the database and lets go of the process's lock; jobs that are still ours count as crashed."""
        self._connection.close()
        self._alive.release()
        with contextlib.suppress(OSError):
            self._lock_path(self.process).unlink(missing_ok=True)

    # Inputs

    def add_input(self, owner: str, data: bytes) -> str:
        """Keeps a picture to make jobs of; the id is its name from now on."""
        name = new_id()
        self.files.write("inputs", name, data)
        with self._transaction():
            self._connection.execute("INSERT INTO inputs VALUES (?, ?, ?)", (name, owner, time.time()))
        return name

    def input_path(self, input_id: str) -> Path:
        """Where an input's bytes are.

        Raises:
            NoSuchJobError: No such input.
        """
        with self._reading():
            if not self._rows("SELECT 1 FROM inputs WHERE id = ?", input_id):
                raise NoSuchJobError("there is no such picture", "It may have been deleted; send it again")
        return self.files.path("inputs", input_id)

    # What owners ask for

    def submit(self, job: Job, *, per_owner: int, in_all: int) -> Job:
        """Takes a new job, or returns the one that the owner submitted under the same key before.

        Raises:
            QueueFullError: The owner has `per_owner` pending jobs, or all together have `in_all`.
            NoSuchJobError: An input isn't there.
        """
        with self._transaction():
            earlier = self._select("owner = ? AND key = ?", job.owner, job.key)
            if earlier:
                return earlier[0]
            self._check_room(job.owner, per_owner, in_all)
            for name in job.inputs:
                self._use(name, job.id)
            return self._enter(job, "submitted")

    def cancel(self, job_id: str, attempt: int) -> Job:
        """Ends a pending job. Cancelling it again changes nothing.

        Raises:
            JobStateError: The job is at another attempt, or has ended otherwise.
        """
        with self._transaction():
            job = self._get(job_id)
            _check_attempt(job, attempt)
            if job.state is not JobState.CANCELLED:
                job = self._move(job, JobState.CANCELLED, "cancelled", finished=time.time(), interrupted=False)
        self._drop_checkpoint(job)
        return job

    def pause(self, job_id: str) -> Job:
        """Holds a queued or running job until `resume`. Pausing it again changes nothing.

        Raises:
            JobStateError: The job has ended.
        """
        with self._transaction():
            job = self._get(job_id)
            return job if job.state is JobState.PAUSED else self._move(job, JobState.PAUSED, "paused")

    def resume(self, job_id: str) -> Job:
        """Queues a paused job at its old place; it goes on from where it was saved.

        Raises:
            JobStateError: The job has ended.
        """
        with self._transaction():
            job = self._get(job_id)
            if job.state in (JobState.QUEUED, JobState.RUNNING):
                return job
            if job.state is not JobState.PAUSED:
                raise JobStateError(f"this job is {job.state}, so there is nothing to resume", "Retry it instead")
            return self._move(job, JobState.QUEUED, "resumed")

    def retry(self, job_id: str, *, per_owner: int, in_all: int) -> Job:
        """Queues a failed or cancelled job again, from its beginning, as the next attempt.

        Raises:
            JobStateError: The job is pending or done.
            QueueFullError: As in `submit`.
        """
        with self._transaction():
            job = self._get(job_id)
            check_transition(job.state, JobState.QUEUED)
            if job.state.pending:
                raise JobStateError(f"this job is {job.state}, so there is nothing to retry")
            self._check_room(job.owner, per_owner, in_all)
            fresh = job.model_copy(update=_AFRESH | {"attempt": job.attempt + 1, "rank": self._next_version()})
            return self._move(fresh, JobState.QUEUED, "retried")

    def reorder(self, job_id: str, place: int) -> Job:
        """Moves a queued job to a place among its owner's queued jobs; those of other owners stay where they are.

        Args:
            job_id: The job.
            place: From 1 (next); beyond the last means the last.

        Raises:
            JobStateError: The job isn't queued.
        """
        with self._transaction():
            job = self._get(job_id)
            if job.state is not JobState.QUEUED:
                raise JobStateError(f"this job is {job.state}; only queued jobs have a place to move")
            queue = self._select("state = 'queued' AND owner = ?", job.owner)
            queue.sort(key=lambda queued: queued.rank)
            ranks = [queued.rank for queued in queue]
            queue = [queued for queued in queue if queued.id != job_id]
            queue.insert(max(0, place - 1), job)
            for queued, rank in zip(queue, ranks, strict=True):
                if queued.rank != rank:
                    self._write(queued.model_copy(update={"rank": rank}))
            return self._get(job_id)

    def steer(self, job_id: str, attempt: int, changes: Mapping[str, Any], text: str) -> Job:
        """Notes other weights for a pending job; whoever runs it, now or later, takes them up.

        Args:
            job_id: The job.
            attempt: That was meant.
            changes: As `Settings.changed` takes them.
            text: The same for people.

        Raises:
            JobStateError: The job is at another attempt, has ended, or was steered too often.
        """
        with self._transaction():
            job = self._get(job_id)
            _check_attempt(job, attempt)
            if not job.state.pending:
                raise JobStateError(f"this job is {job.state}, so it can't be steered any more")
            if len(job.steering) >= _MOST_STEERING:
                raise JobStateError(f"this job has been steered {_MOST_STEERING} times, which has to do")
            wish = Wish(number=len(job.steering), time=time.time(), changes=dict(changes), text=text)
            return self._write(job.model_copy(update={"steering": (*job.steering, wish)}))

    def pause_queue(self, paused: bool) -> None:
        """Starts no further job, in no process, until told otherwise."""
        with self._transaction():
            self._connection.execute("UPDATE counters SET value = ? WHERE name = 'queue paused'", (int(paused),))
            self._next_version()

    # What a run does

    def run(self, job: Job) -> Run:
        """The job as an executor needs it."""

        def file(name: str | None) -> Path | None:
            return self.files.path("inputs", name) if name else None

        return Run(
            job_id=job.id,
            attempt=job.attempt,
            settings=job.settings,
            content=self.files.path("inputs", job.content),
            styles=tuple(self.files.path("inputs", style) for style in job.styles),
            start=file(job.start),
            masks=tuple(map(file, job.masks)),
            protect=file(job.protect),
            steering=job.steering,
            checkpoint=self.files.path("checkpoints", checkpoint_name(job)),
            film=job.film,
            frames=self.files.path("checkpoints", frames_name(job)),
        )

    def claim(self, job_id: str, kind: str) -> Job | None:
        """Makes a queued job run in this process, on a device of this kind; none where it can't be had any more."""
        with self._transaction():
            job = self._find(job_id)
            if job is None or job.state is not JobState.QUEUED or job.process or self._counter("queue paused"):
                return None
            changes = {"process": self.process, "device": kind, "started": time.time(), "interrupted": False}
            return self._move(job, JobState.RUNNING, f"started on {kind}", **changes)

    def record_progress(
        self,
        job_id: str,
        attempt: int,
        progress: Progress | None,
        preview: int | None,
        points: Iterable[LossPoint] = (),
    ) -> None:
        """Writes down how far a run of this process is, for restarts and other processes.

        Args:
            job_id: The job.
            attempt: That is running.
            progress: The latest.
            preview: Version of the preview.
            points: New points of the chart; one that was there before a resume is replaced.
        """
        with self._transaction():
            if job := self._held(job_id, attempt):
                self._write(job.model_copy(update={"progress": progress, "preview": preview}))
                self._draw(job, points)

    def record_checkpoint(self, job_id: str, attempt: int, iteration: int) -> None:
        """Notes that the run was saved at this iteration (its file is there already)."""
        with self._transaction():
            if job := self._held(job_id, attempt):
                self._write(job.model_copy(update={"checkpoint_iteration": iteration}))

    def record_steered(self, job_id: str, attempt: int, steered: Steered) -> None:
        """Notes since when a run of this process does as it was told."""
        with self._transaction():
            job = self._held(job_id, attempt)
            if job and job.steering[steered.number].iteration is None:
                since = {"iteration": steered.iteration, "evaluation": steered.evaluation}
                steering = list(job.steering)
                steering[steered.number] = steering[steered.number].model_copy(update=since)
                self._write(job.model_copy(update={"steering": tuple(steering)}))

    def add_notice(self, job_id: str, attempt: int, text: str) -> None:
        """Tells the owner something, once: what is known already is not repeated by a later run."""
        with self._transaction():
            job = self._held(job_id, attempt)
            if job and text not in [notice.text for notice in job.notices]:
                notice = Notice(time=time.time(), text=text)
                self._write(job.model_copy(update={"notices": (*job.notices, notice)}))

    def finish(
        self,
        job_id: str,
        attempt: int,
        result: Result,
        progress: Progress | None = None,
        points: Iterable[LossPoint] = (),
        timing: Timing | None = None,
    ) -> bool:
        """Ends a run of this process with its result; false where the job isn't ours (any more).

        Args:
            job_id: The job.
            attempt: That was running.
            result: The picture, whose file is there already.
            progress: At the end.
            points: The last ones of the chart.
            timing: What may be learnt from it.
        """
        with self._transaction():
            job = self._ours(job_id, attempt)
            if job is None:
                return False
            done = {"result": result, "progress": progress, "finished": time.time(), "process": None, "crashes": 0}
            job = self._move(job, JobState.DONE, "done", **done)
            self._draw(job, points)
            if timing:
                row = (time.time(), *astuple(timing))
                self._connection.execute("INSERT INTO timings VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._drop_checkpoint(job)
        return True

    def fail(self, job_id: str, attempt: int, failure: Failure) -> bool:
        """Ends a run of this process, or a queued job that can't start; false where the job isn't ours (any more)."""
        with self._transaction():
            job = self._find(job_id)
            refused = job and job.attempt == attempt and job.state is JobState.QUEUED and job.process is None
            if not refused:
                job = self._ours(job_id, attempt)
            if job is None:
                return False
            job = self._fail(job, failure)
        self._drop_checkpoint(job)
        return True

    def release(self, job_id: str, note: str) -> Job | None:
        """Says that no run of this process touches the job any more; the job as it is then.

        One that is still running had to stop through no fault of its own: it goes on first, from where it was saved.
        """
        with self._transaction():
            job = self._find(job_id)
            if job and job.process == self.process:
                job = self._release(job, note)
        if job and not job.state.pending:
            self._drop_checkpoint(job)
        return job

    def release_all(self, note: str) -> None:
        """Lets go of whatever this process still runs; called when it computes nothing any more."""
        with self._transaction():
            for job in self._select("process = ?", self.process):
                self._release(job, note)

    def crash(self, job_id: str, attempt: int, limit: int, note: str, *, machine: bool = False) -> None:
        """Queues a job that was running in a crash, or fails it where it never gets past one.

        Args:
            job_id: The job.
            attempt: That was running.
            limit: How many in a row it fails at.
            note: What happened.
            machine: Whether a whole machine went away; those are counted by themselves.
        """
        with self._transaction():
            if job := self._ours(job_id, attempt):
                self._crash(job, limit, note, machine)

    # What a restart does

    def recover(self, limit: int, *, machine: bool = False) -> None:
        """Puts back what dead processes were running.

        Args:
            limit: Jobs that were running at so many crashes in a row fail.
            machine: As in `crash`: for processes that didn't compute their jobs themselves.
        """
        with self._reading():
            rows = self._rows(
                "SELECT DISTINCT process FROM jobs WHERE process IS NOT NULL AND process <> ?", self.process
            )
        for (process,) in rows:
            with self._if_dead(process) as dead:
                if dead:
                    self._bury(process, limit, machine)

    def tidy(self, keep_seconds: float | None, keep_unused_seconds: float) -> None:
        """Deletes what was kept long enough, and files that nobody names.

        Args:
            keep_seconds: For finished jobs that don't say it themselves; none: for ever.
            keep_unused_seconds: For inputs that no job uses.
        """
        now = time.time()
        with self._reading():
            expired = self._select("finished + coalesce(keep_seconds, ?) < ?", keep_seconds, now)
        for job in expired:
            self.delete(job.id)
        self._remove_unused("created < ?", now - keep_unused_seconds)
        with self._transaction():
            self._connection.execute("DELETE FROM removed WHERE time < ?", (now - 7 * 24 * 3600,))
        self._sweep()

    def delete(self, job_id: str) -> None:
        """Deletes a job with its result, whatever its state; its inputs go when no job uses them for a while."""
        with self._transaction():
            job = self._find(job_id)
            if job is None:
                return
            for table in ("transitions", "uses", "losses"):
                self._connection.execute(f"DELETE FROM {table} WHERE job = ?", (job_id,))
            self._connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            gone = (job_id, self._next_version(), time.time())
            self._connection.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?)", gone)
        self.remove_files(job)

    def forget(self, owner: str) -> int:
        """Deletes all jobs of an owner, and the inputs that no other owner's job uses; says how many jobs."""
        with self._reading():
            jobs = self._select("owner = ?", owner)
        for job in jobs:
            self.delete(job.id)
        self._remove_unused("owner = ?", owner)
        return len(jobs)

    def remove_files(self, job: Job) -> None:
        """Removes what a deleted job, or a run that outlived it, left in files."""
        for name in filter(None, (job.result.file, job.result.film) if job.result else ()):
            self.files.remove("results", name)
        self.files.remove("previews", preview_name(job.id))
        self._drop_checkpoint(job)

    # Reading

    def get(self, job_id: str) -> Job:
        """A job.

        Raises:
            NoSuchJobError: There is none of that id.
        """
        with self._reading():
            return self._get(job_id)

    def find(self, owner: str, key: str) -> Job | None:
        """The job that an owner submitted under a key; none where there is none."""
        with self._reading():
            return next(iter(self._select("owner = ? AND key = ?", owner, key)), None)

    def jobs(
        self,
        *,
        owner: str | None = None,
        states: Collection[JobState] = (),
        tags: Mapping[str, str] | None = None,
        limit: int | None = None,
        before: float | None = None,
    ) -> list[Job]:
        """Jobs, the newest first.

        Args:
            owner: Only of this owner.
            states: Only in these states.
            tags: Only those whose tags have all of these.
            limit: At most so many.
            before: Only created before this time, for pages.
        """
        where, values = ["1"], list[Any]()
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if states:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values.extend(states)
        for tag, value in (tags or {}).items():
            where.append("EXISTS (SELECT 1 FROM json_each(document, '$.tags') AS t WHERE t.key = ? AND t.value = ?)")
            values.extend((tag, value))
        if before is not None:
            where.append("created < ?")
            values.append(before)
        order = " ORDER BY created DESC, version DESC LIMIT ?"
        with self._reading():
            return self._select(" AND ".join(where) + order, *values, -1 if limit is None else limit)

    def pending(self) -> list[Job]:
        """All jobs that aren't finished."""
        return self.jobs(states=PENDING)

    def changes(self) -> Changes:
        """What changed since this was last called (or the store opened), in order."""
        with self._reading():
            jobs = self._select("version > ? ORDER BY version", self._cursor)
            removed = self._rows("SELECT id, version FROM removed WHERE version > ? ORDER BY version", self._cursor)
            paused = bool(self._counter("queue paused"))
            timings = self._timings("WHERE rowid > ? ORDER BY rowid", self._timings_known)
            self._timings_known = self._last_timing()
        versions = [job.version for job in jobs] + [version for _, version in removed]
        self._cursor = max(versions, default=self._cursor)
        return Changes(tuple(jobs), tuple(name for name, _ in removed), tuple(timings), paused)

    def transitions(self, job_id: str) -> list[Transition]:
        """The job's log, oldest first."""
        query = "SELECT time, attempt, before, after, note FROM transitions WHERE job = ? ORDER BY number"
        names = ("time", "attempt", "before", "after", "note")
        with self._reading():
            rows = self._rows(query, job_id)
        return [Transition.model_validate(dict(zip(names, row, strict=True))) for row in rows]

    def losses(self, job_id: str) -> list[LossPoint]:
        """The chart of the job's latest attempt, by iteration."""
        query = "SELECT point FROM losses WHERE job = ? AND attempt = ? ORDER BY iteration"
        with self._reading():
            rows = self._rows(query, job_id, self._get(job_id).attempt)
        return [LossPoint.model_validate_json(point) for (point,) in rows]

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state."""
        with self._reading():
            found = dict(self._rows("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in JobState}

    def submitted(self, owner: str, since: float) -> int:
        """How many jobs an owner has submitted since a time (deleted ones don't count)."""
        with self._reading():
            rows = self._rows("SELECT count(*) FROM jobs WHERE owner = ? AND created >= ?", owner, since)
        return int(rows[0][0])

    def last_started(self) -> dict[str, float]:
        """When each owner's latest run began: who had a turn."""
        with self._reading():
            return dict(self._rows("SELECT owner, max(started) FROM jobs WHERE started IS NOT NULL GROUP BY owner"))

    def timings(self, limit: int = 1000) -> list[Timing]:
        """What finished jobs took, the latest first."""
        with self._reading():
            return self._timings("ORDER BY rowid DESC LIMIT ?", limit)

    # Records: what a front door has to remember, as JSON values by space and key

    def put_record(self, space: str, key: str, value: Any) -> None:
        """Keeps a JSON value."""
        query = (
            "INSERT INTO records (space, key, value) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
        )
        with self._transaction():
            self._connection.execute(query, (space, key, json.dumps(value)))

    def record(self, space: str, key: str) -> Any:
        """The value kept; none where there is none."""
        with self._reading():
            rows = self._rows("SELECT value FROM records WHERE space = ? AND key = ?", space, key)
        return json.loads(rows[0][0]) if rows else None

    def records(self, space: str) -> dict[str, Any]:
        """All values of a space by key, in the order in which they first came."""
        with self._reading():
            rows = self._rows("SELECT key, value FROM records WHERE space = ? ORDER BY number", space)
        return {key: json.loads(value) for key, value in rows}

    def remove_record(self, space: str, key: str) -> bool:
        """Forgets a value; false where there was none (so that of two who take it away one knows that it did)."""
        with self._transaction():
            cursor = self._connection.execute("DELETE FROM records WHERE space = ? AND key = ?", (space, key))
        return cursor.rowcount > 0

    # Below: inside transactions

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _told(self.root):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """One consistent view, also across several statements."""
        with _told(self.root):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def _counter(self, name: str) -> int:
        return int(self._rows("SELECT value FROM counters WHERE name = ?", name)[0][0])

    def _next_version(self) -> int:
        self._connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'version'")
        return self._counter("version")

    def _select(self, where: str, *values: Any) -> list[Job]:
        rows = self._rows(f"SELECT id, document FROM jobs WHERE {where}", *values)
        return [job for job_id, document in rows if (job := _read_document(job_id, document))]

    def _find(self, job_id: str) -> Job | None:
        return next(iter(self._select("id = ?", job_id)), None)

    def _get(self, job_id: str) -> Job:
        job = self._find(job_id)
        if job is None:
            raise NoSuchJobError("there is no such job", "It may have been deleted")
        return job

    def _held(self, job_id: str, attempt: int) -> Job | None:
        """The job, if a run of this process still touches this very attempt, though it may have been told to stop."""
        job = self._find(job_id)
        return job if job and job.process == self.process and job.attempt == attempt else None

    def _ours(self, job_id: str, attempt: int) -> Job | None:
        """The job, if this process is running this very attempt of it."""
        job = self._held(job_id, attempt)
        return job if job and job.state is JobState.RUNNING else None

    def _timings(self, which: str, value: int) -> list[Timing]:
        rows = self._rows(f"SELECT kind, optimizer, network, pixels, work, seconds FROM timings {which}", value)
        return [Timing(*row) for row in rows]

    def _last_timing(self) -> int:
        return int(self._rows("SELECT coalesce(max(rowid), 0) FROM timings")[0][0])

    def _check_room(self, owner: str, per_owner: int, in_all: int) -> None:
        pending = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running', 'paused')"
        own = self._rows(f"{pending} AND owner = ?", owner)[0][0]
        if own >= per_owner:
            raise QueueFullError(f"you have {own} jobs waiting already", "Wait for one of them, or cancel one")
        if self._rows(pending)[0][0] >= in_all:
            raise QueueFullError("the queue is full", "Try again in a while")

    def _use(self, input_id: str, job_id: str) -> None:
        if not self._rows("SELECT 1 FROM inputs WHERE id = ?", input_id):
            raise NoSuchJobError("there is no such picture", "It may have been deleted; send it again")
        self._connection.execute("INSERT OR IGNORE INTO uses VALUES (?, ?)", (input_id, job_id))

    def _enter(self, job: Job, note: str) -> Job:
        job = self._write(job.model_copy(update={"rank": self._next_version()}))
        self._log(job, None, note)
        return job

    def _move(self, job: Job, after: JobState, note: str, **changes: Any) -> Job:
        """The job in its next state, with a line in its log."""
        check_transition(job.state, after)
        moved = self._write(job.model_copy(update={"state": after, **changes}))
        self._log(moved, job.state, note)
        return moved

    def _draw(self, job: Job, points: Iterable[LossPoint]) -> None:
        rows = [(job.id, job.attempt, point.iteration, point.model_dump_json()) for point in points]
        self._connection.executemany("INSERT OR REPLACE INTO losses VALUES (?, ?, ?, ?)", rows)

    def _fail(self, job: Job, failure: Failure, **changes: Any) -> Job:
        ended = {"error": failure, "finished": time.time(), "process": None, "interrupted": False}
        return self._move(job, JobState.FAILED, str(failure), **(ended | changes))

    def _release(self, job: Job, note: str) -> Job:
        if job.state is JobState.RUNNING:
            return self._move(job, JobState.QUEUED, note, process=None, interrupted=True)
        return self._write(job.model_copy(update={"process": None}))

    def _crash(self, job: Job, limit: int, note: str, machine: bool) -> Job:
        """Two crashes are in a row where the job wasn't saved any further between them.

        Otherwise a service that is killed by hand now and then would in time fail every long job; and a job that
        brings the service down always does so before it gets further.
        """
        further = job.checkpoint_iteration > job.crash_iteration
        counts = {"crashes": 0, "machines_lost": 0} if further else _crashes_of(job)
        counted = "machines_lost" if machine else "crashes"
        counts[counted] += 1
        books = {**counts, "crash_iteration": job.checkpoint_iteration, "process": None}
        if counts[counted] >= limit:
            return self._fail(job, _crash_failure(counts[counted], note), **books)
        return self._move(job, JobState.QUEUED, note, interrupted=True, **books)

    def _write(self, job: Job) -> Job:
        job = job.model_copy(update={"version": self._next_version()})
        query = """
            INSERT INTO jobs (id, version, document) VALUES (?, ?, ?)
            ON CONFLICT (id) DO UPDATE SET version = excluded.version, document = excluded.document
        """
        self._connection.execute(query, (job.id, job.version, job.model_dump_json(exclude=UNSTORED)))
        return job

    def _log(self, job: Job, before: JobState | None, note: str) -> None:
        query = "INSERT INTO transitions (job, time, attempt, before, after, note) VALUES (?, ?, ?, ?, ?, ?)"
        self._connection.execute(query, (job.id, time.time(), job.attempt, before, job.state, note))

    # Below: recovery and cleaning

    def _lock_path(self, process: str) -> Path:
        return self.root / "locks" / f"process-{process}.lock"

    def _process_lock(self, process: str) -> FileLock:
        return FileLock(self._lock_path(process), thread_local=False)

    @contextlib.contextmanager
    def _if_dead(self, process: str) -> Iterator[bool]:
        """Whether the process is dead; if so, no other process buries it meanwhile."""
        lock = self._process_lock(process)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
            self._lock_path(process).unlink(missing_ok=True)

    def _bury(self, process: str, limit: int, machine: bool) -> None:
        with self._transaction():
            for job in self._select("process = ?", process):
                if job.state is JobState.RUNNING:
                    self._crash(job, limit, "the process that ran it has ended", machine)
                else:
                    self._release(job, "")

    def _drop_checkpoint(self, job: Job) -> None:
        self.files.remove("checkpoints", checkpoint_name(job))
        self.files.remove("checkpoints", frames_name(job))

    def _remove_unused(self, where: str, value: Any) -> None:
        with self._transaction():
            unused = f"{where} AND NOT EXISTS (SELECT 1 FROM uses WHERE input = id)"
            rows = self._rows(f"SELECT id FROM inputs WHERE {unused}", value)
            self._connection.executemany("DELETE FROM inputs WHERE id = ?", rows)
        for (name,) in rows:
            self.files.remove("inputs", name)

    def _sweep(self) -> None:
        with self._reading():
            inputs = {name for (name,) in self._rows("SELECT id FROM inputs")}
            names = {name for (name,) in self._rows("SELECT id FROM jobs")}
            pending = self._select("state IN ('queued', 'running', 'paused')")
            kept = "SELECT json_extract(document, '$.result.file'), json_extract(document, '$.result.film') FROM jobs"
            results = self._rows(f"{kept} WHERE state = 'done'")
        self.files.sweep("inputs", inputs)
        self.files.sweep("results", {name for names in results for name in names})
        self.files.sweep("checkpoints", {name for job in pending for name in (checkpoint_name(job), frames_name(job))})
        self.files.sweep("previews", {preview_name(name) for name in names})
        self._sweep_locks()

    def _sweep_locks(self) -> None:
        """Removes the locks of processes that died without a job, of which `recover` doesn't hear."""
        with self._reading():
            running = {name for (name,) in self._rows("SELECT DISTINCT process FROM jobs WHERE process IS NOT NULL")}
        for path in (self.root / "locks").glob("process-*.lock"):
            process = path.stem.removeprefix("process-")
            with contextlib.suppress(OSError):
                if process not in running and path.stat().st_mtime < time.time() - STRAY_SECONDS:
                    with self._if_dead(process):
                        pass


_AFRESH: dict[str, Any] = {
    "started": None,
    "finished": None,
    "device": None,
    "progress": None,
    "preview": None,
    "result": None,
    "error": None,
    "notices": (),
    "interrupted": False,
    "crashes": 0,
    "crash_iteration": 0,
    "machines_lost": 0,
    "checkpoint_iteration": 0,
}
"""What a retry forgets of the attempt before."""


def _check_attempt(job: Job, attempt: int) -> None:
    if job.attempt != attempt:
        raise JobStateError(f"this was attempt {attempt}, and the job is at attempt {job.attempt} now")


def _crashes_of(job: Job) -> dict[str, int]:
    """In a row, by what it was that crashed."""
    return {"crashes": job.crashes, "machines_lost": job.machines_lost}


def _crash_failure(crashes: int, note: str) -> Failure:
    return Failure(
        cause=f"{note}, {crashes} times in a row without getting any further",
        remedy="Retry it with a smaller level, or less memory (max_memory)",
    )


def _connect(path: Path) -> sqlite3.Connection:
    """Opens the database in the newest version of its schema; each commit is on the disk before it returns."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")  # of two processes that start together, one migrates
        _migrate(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise StorageError(
            f"this data directory was written by a newer version (schema {version}, known up to {len(_MIGRATIONS)})",
            "Use that version, or another directory",
        )
    for script in _MIGRATIONS[version:]:
        for statement in filter(str.strip, script.split(";")):  # executescript would commit
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


@contextlib.contextmanager
def _told(root: Path) -> Iterator[None]:
    """What SQLite complains of, in a user's words."""
    try:
        yield
    except sqlite3.OperationalError as error:
        remedy = f"Check that there is space in {root} and that it may be written"
        raise StorageError(f"the database of jobs can't be used ({error})", remedy) from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise  # a mistake of ours
        remedy = "Move studio.sqlite3 away to begin anew, or restore it"
        raise StorageError(f"the database of jobs in {root} is damaged ({error})", remedy) from error


def _read_document(job_id: str, document: str) -> Job | None:
    """One row that can't be understood, from another version perhaps, must not hide all the others."""
    try:
        return Job.model_validate_json(document)
    except ValidationError as error:
        log.error("job %s can't be read and is left out: %s", job_id, error)
        return None
