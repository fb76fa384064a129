"""Whose turn it is: order, device slots, cancellation, and who is told.

The policy is here, in pure functions where it can be; how a job is computed is an executor's business. What is durable
is the store's: the scheduler commits first, then absorbs what the store says has changed, by this process or another,
and tells subscribers. A cancel from this process, from another one, or of a job that was deleted all take the same way:
the job that a run works on is no longer running, so the run is told to stop.

    front door ─ commit ─▶ store ─ changes ─▶ absorb ─┬▶ events ─▶ subscribers
                                                      ├▶ stop runs that nobody wants any more
                                                      └▶ dispatch: a free slot? whose turn? does it fit? ─ claim ─▶ run
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
import math
import statistics
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, ParamSpec, Protocol, Self, TypeVar

from core.config import Settings
from core.errors import MemoryLimitError, UserError
from core.studio.files import checkpoint_name, frames_name, preview_name
from core.studio.jobs import (
    Checkpoint,
    Estimate,
    Failure,
    Job,
    JobState,
    Losses,
    LossPoint,
    LostRunError,
    Output,
    PoisonedDeviceError,
    Preview,
    Progress,
    Remark,
    Result,
    Run,
    Slot,
    Steered,
    StorageError,
    StudioSettings,
    Update,
    Wish,
    effort,
    new_id,
    remaining_work,
    total_work,
)
from core.studio.store import Changes, Store, Timing

log = logging.getLogger(__name__)

_Place = tuple[int, float | None]
"""A job's place in the queue, from 1, and the seconds until it is done, where that is known."""

P = ParamSpec("P")
T = TypeVar("T")

GIB = 2**30
_RECOVERY_POLLS = 10
_TROUBLE_POLLS = 4
"""After a failure to read or write, wait so many polls before trying again."""
_TIDY_SECONDS = 3600.0
_REMEMBERED_EVENTS = 4096
_QUEUE_NEWS_SECONDS = 0.5
_NEWS_AT_ONCE = 100


class Executor(Protocol):
    """Where jobs are computed: in a thread of this process, on a cluster.

    All methods are called on the event loop and must not block it.
    """

    def slots(self) -> Sequence[Slot]:
        """The places there are at the moment; they may come and go."""

    def expect(self, queued: int, running: int) -> None:
        """Told again and again how many jobs wait for a slot and how many run, in all processes, to make room."""

    def reserve(self, slot: Slot) -> bool:
        """Takes a slot for this process; false where another process has it, or where it isn't ready yet.

        Then comes `start`, or `release`.
        """

    def release(self, slot: Slot) -> None:
        """Gives a slot back to all processes."""

    async def estimate(self, run: Run, slot: Slot | None) -> Estimate:
        """What a run would need on this slot's device (none: on any), and what the device has now.

        Raises:
            UserError: The run can't be computed at all: a picture is broken, a network is missing.
        """

    def start(self, run: Run, slot: Slot) -> AsyncGenerator[Update, None]:
        """Computes; the last update of a run that reaches its end is its `Output`.

        By the time it first waits, `cancel` must know the run. It ends only when nothing of it computes any more.

        Raises:
            UserError: Something that the owner can mend.
            LostRunError: The run ended through no fault of the job.
            PoisonedDeviceError: This process can't compute any more.
        """

    def cancel(self, job_id: str, attempt: int, *, keep: bool) -> None:
        """Makes exactly this run end soon, with a last checkpoint if `keep`; no other run, and none is no mistake."""

    def steer(self, job_id: str, attempt: int, wish: Wish) -> None:
        """Lets exactly this run go on with other weights, which it confirms with `Steered`; none is no mistake."""

    async def close(self) -> None:
        """Stops everything."""


# ── Order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def turns(queued: Iterable[Job], served: Mapping[str, float]) -> list[Job]:
    """The order in which queued jobs start: interrupted ones first, then owners in turn, each with its first job.

    Args:
        queued: Jobs in any order.
        served: When each owner's latest run began. Who had a turn longest ago is next; who never had one comes before
            all who had, by the rank of its first job.
    """
    by_owner: dict[str, list[Job]] = defaultdict(list)
    first: list[Job] = []
    for job in sorted(queued, key=lambda job: job.rank, reverse=True):
        (first if job.interrupted else by_owner[job.owner]).append(job)
    first.sort(key=lambda job: (job.started or 0.0, job.rank))
    # A turn given here counts as later than all that were, and in the order given.
    past = [((0, served.get(owner, -math.inf)), jobs[-1].rank, owner) for owner, jobs in by_owner.items()]
    heapq.heapify(past)
    order = first
    for turn in itertools.count():
        if not past:
            return order
        _, _, owner = heapq.heappop(past)
        jobs = by_owner[owner]
        order.append(jobs.pop())
        if jobs:
            heapq.heappush(past, ((1, turn), jobs[-1].rank, owner))
    raise AssertionError("unreachable")


def forecast(running: Iterable[float | None], queued: Iterable[float | None], slots: int) -> list[float | None]:
    """Seconds until each queued job is done.

    Args:
        running: Seconds that each running job still takes; none where not known.
        queued: Seconds that each queued job will take, in the order in which they start.
        slots: How many jobs run at the same time.
    """
    ends = [math.inf if seconds is None else seconds for seconds in running]
    ends += [0.0] * (slots - len(ends))
    heapq.heapify(ends)
    done: list[float | None] = []
    for seconds in queued:
        end = math.inf if seconds is None or not ends else ends[0] + seconds
        if ends:
            heapq.heapreplace(ends, end)
        done.append(None if math.isinf(end) else end)
    return done


class Paces:
    """How long work takes, learnt from finished jobs by kind of device, optimiser, network and size."""

    _NEIGHBOURS = 5

    def __init__(self, timings: Sequence[Timing] = ()) -> None:
        self._timings = list(timings)
        self._known: dict[tuple[str | None, str, str, float], float | None] = {}

    def learn(self, timing: Timing) -> None:
        """Adds what a job took."""
        self._timings.insert(0, timing)
        self._known.clear()

    def pace(self, kind: str | None, settings: Settings, network: str, pixels: float) -> float | None:
        """Seconds per pixel and iteration: the median of the latest jobs that are nearest in size.

        Args:
            kind: Kind of device; none: any.
            settings: Of the job.
            network: That will be used.
            pixels: Of the result.
        """
        key = (kind, settings.optimizer.name, network, pixels)
        if key not in self._known:
            self._known[key] = self._measured(*key)
        return self._known[key]

    def _measured(self, kind: str | None, optimizer: str, network: str, pixels: float) -> float | None:
        alike = [
            timing
            for timing in self._timings
            if kind in (None, timing.kind) and (timing.optimizer, timing.network) == (optimizer, network)
        ]
        alike.sort(key=lambda timing: abs(math.log(timing.pixels / pixels)))  # stable: of equals, the latest first
        rates = [timing.seconds / timing.work for timing in alike[: self._NEIGHBOURS]]
        return statistics.median(rates) if rates else None


# ── Events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Event:
    """Something that subscribers are told.

    Events hold the whole job as it is now, so that only the latest of a job matters and any before it may be skipped.
    """

    id: str
    """Grows with time; a subscriber that comes back names the last one it had (`Last-Event-ID`)."""
    kind: Literal["job", "removed", "queue", "gap"]
    """`job`: this is how `job` is now. `removed`: `job_id` was deleted. `queue`: it was paused or resumed. `gap`:
    events were missed; take a fresh snapshot with `Studio.jobs`."""
    job_id: str = ""
    job: Job | None = None
    paused: bool = False
    """Whether the queue is paused (kind `queue`)."""


class Subscription:
    """An endless sequence of events that never holds up whoever causes them.

    At most the latest event of each job waits for the subscriber; if even those become too many, one event `gap` takes
    their place. Use it in a `with` block; iterate over it, or call `next` where something is to be done in between.
    """

    def __init__(self, source: "Events", owner: str | None, job_id: str | None, limit: int) -> None:
        self._source = source
        self._owner = owner
        self._job_id = job_id
        self._limit = limit
        self._waiting: OrderedDict[str, Event] = OrderedDict()
        self._news = asyncio.Event()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next(self, within: float | None = None) -> Event | None:
        """The next event; none when `within` seconds there was none, or when no more will come (`ended`)."""
        if not self._waiting and not self._ended:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._news.wait()
        return self._waiting.popitem(last=False)[1] if self._waiting else None

    @property
    def ended(self) -> bool:
        """Whether no further event will come, because the subscription or the studio was closed."""
        return self._ended and not self._waiting

    def close(self) -> None:
        """Takes no further events."""
        self._source.leave(self)
        self.end()

    def end(self) -> None:
        """Called by the source: nothing more will come."""
        self._ended = True
        self._news.set()

    def offer(self, event: Event) -> None:
        """Called by the source: an event for whom it concerns."""
        if not self._concerns(event):
            return
        key = event.job_id or event.kind
        self._waiting.pop(key, None)  # and at the end, so that ids only grow
        self._waiting[key] = event
        if len(self._waiting) > self._limit:
            self._waiting.clear()
            self._waiting["gap"] = Event(event.id, "gap")
        self._news.set()

    def _concerns(self, event: Event) -> bool:
        if event.kind in ("queue", "gap"):
            return True
        if self._job_id is not None and event.job_id != self._job_id:
            return False
        return self._owner is None or event.job is None or event.job.owner == self._owner


class Events:
    """Tells subscribers, and remembers the latest of each job for those who come back."""

    def __init__(self, remembered: int = _REMEMBERED_EVENTS) -> None:
        self._era = new_id()[:8]
        self._number = 0
        self._remembered = remembered
        self._latest: OrderedDict[str, tuple[int, Event]] = OrderedDict()
        self._forgotten = 0
        self._subscriptions: set[Subscription] = set()

    @property
    def last_id(self) -> str:
        """Id of the latest event."""
        return f"{self._era}-{self._number}"

    def tell(
        self, kind: Literal["job", "removed", "queue"], job_id: str = "", job: Job | None = None, paused: bool = False
    ) -> None:
        """Sends an event to all whom it concerns."""
        self._number += 1
        event = Event(self.last_id, kind, job_id, job, paused)
        key = job_id or kind
        self._latest.pop(key, None)
        self._latest[key] = (self._number, event)
        if len(self._latest) > self._remembered:
            _, (self._forgotten, _) = self._latest.popitem(last=False)
        for subscription in self._subscriptions:
            subscription.offer(event)

    def subscribe(self, after: str | None = None, owner: str | None = None, job_id: str | None = None) -> Subscription:
        """See `Studio.subscribe`."""
        subscription = Subscription(self, owner, job_id, self._remembered)
        if after is not None:
            for event in self._since(after):
                subscription.offer(event)
        self._subscriptions.add(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Forgets a subscription."""
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """Ends all subscriptions."""
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions.clear()

    def _since(self, after: str) -> list[Event]:
        era, _, number = after.partition("-")
        if era != self._era or not number.isdecimal() or int(number) < self._forgotten:
            return [Event(self.last_id, "gap")]
        return [event for sent, event in self._latest.values() if sent > int(number)]


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Admission:
    """How a job may start."""

    settings: Settings
    """Those of the job, or with less memory."""
    memory_bytes: int
    notice: str = ""
    """What its owner should know of it."""


@dataclass
class _Active:
    """A run of this process."""

    job: Job
    slot: Slot
    admission: _Admission
    began: float = field(default_factory=time.monotonic)
    progress: Progress | None = None
    first: tuple[float, float] | None = None
    """When its first progress came (preparing is over then), and the work that was left."""
    preview: int | None = None
    points: list[LossPoint] = field(default_factory=list)
    steered: int | None = None
    """How many of its job's wishes the executor has been told; none before it has been told to start."""
    recorded: float = -math.inf
    unsaved: bool = False
    """The owner knows that it can't be saved."""
    unwanted: bool = False
    """It has been told to stop."""
    over: bool = False
    """The executor is done with it."""
    task: "asyncio.Task[None] | None" = None


class Scheduler:
    """Runs jobs in their order on the executor's slots, and tells what happens.

    Args:
        store: Where jobs are; from now on used in a thread of the scheduler's only.
        executor: Where they are computed.
        settings: Of the studio.
    """

    def __init__(self, store: Store, executor: Executor, settings: StudioSettings) -> None:
        self._store = store
        self._executor = executor
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._events = Events()
        self._jobs: dict[str, Job] = {}
        self._active: dict[str, _Active] = {}
        self._served: dict[str, float] = {}
        self._paces = Paces()
        self._paused = False
        self._order: list[Job] | None = None
        self._forecast: dict[str, _Place] = {}
        self._told: dict[str, _Place] = {}
        self._waits: dict[str, tuple[float, str]] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._fatal: asyncio.Future[PoisonedDeviceError] = asyncio.get_running_loop().create_future()
        self._services: list[asyncio.Task[None]] = []
        self._queue_news: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Recovers what a crash left, and begins to work."""
        await self._recover()
        await self.commit(self._store.tidy, self._settings.keep_seconds, self._settings.keep_unused_seconds)
        self._jobs = {job.id: job for job in await self.commit(self._store.pending)}
        self._served = await self.commit(self._store.last_started)
        self._paces = Paces(await self.commit(self._store.timings))
        self._services = [asyncio.create_task(self._dispatch()), asyncio.create_task(self._housekeep())]

    async def close(self) -> None:
        """Saves running jobs and puts them back into the queue; they go on at the next start."""
        self._closing = True
        for service in self._services:
            service.cancel()
        await asyncio.gather(*self._services, return_exceptions=True)
        for active in self._active.values():
            self._stop(active, keep=True)
        tasks = [active.task for active in self._active.values() if active.task]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._settings.shutdown_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        with contextlib.suppress(StorageError):  # then it counts as a crash
            await self.commit(self._store.release_all, "the service was stopped")
        if self._queue_news:
            self._queue_news.cancel()
        self._events.close()
        self._thread.shutdown()

    # Changing and seeing

    async def commit(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a method of the store in its thread; by the time this returns, everyone has been told.

        Also where the caller is cancelled meanwhile: what is committed is absorbed.
        """

        def work() -> tuple[T, Changes]:
            return change(*args, **kwargs), self._store.changes()

        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        future.add_done_callback(self._absorb_outcome)
        outcome, _ = await asyncio.shield(future)
        return outcome

    def subscribe(self, after: str | None = None, owner: str | None = None, job_id: str | None = None) -> Subscription:
        """See `Studio.subscribe`."""
        return self._events.subscribe(after, owner, job_id)

    @property
    def last_event_id(self) -> str:
        """Id of the latest event: what a snapshot that is taken now includes."""
        return self._events.last_id

    @property
    def fatal(self) -> "asyncio.Future[PoisonedDeviceError]":
        """Set when this process can't compute any more and should exit, for its supervisor to start it again."""
        return self._fatal

    @property
    def queue_paused(self) -> bool:
        """Whether no further job is started."""
        return self._paused

    @property
    def busy(self) -> dict[str, str]:
        """Ids of the jobs that run in this process, by the name of their slot."""
        return {active.slot.name: active.job.id for active in self._active.values()}

    def order(self) -> list[Job]:
        """The queue as it would start now, the next job first."""
        if self._order is None:
            queued = [job for job in self._jobs.values() if job.state is JobState.QUEUED]
            self._order = turns(queued, self._served)
            self._forecast = self._look_ahead(self._order)
        return self._order

    def seen(self, job: Job) -> Job:
        """The job with what depends on the moment: progress, place in the queue, time left."""
        if job.state is JobState.QUEUED:
            self.order()
            position, seconds_left = self._forecast.get(job.id, (None, None))
            _, waiting = self._waits.get(job.id, (0.0, ""))
            return job.model_copy(update={"position": position, "seconds_left": seconds_left, "waiting": waiting})
        if job.state is JobState.RUNNING:
            if active := self._active.get(job.id):
                latest = {"progress": active.progress or job.progress, "preview": active.preview or job.preview}
                job = job.model_copy(update=latest)
            return job.model_copy(update={"seconds_left": self._seconds_left(job)})
        return job

    def seconds(self, settings: Settings, network: str, width: int, height: int) -> float | None:
        """How long a job takes, measured on finished ones; none where nothing like it was measured."""
        pace = self._paces.pace(self._usual_kind(), settings, network, width * height)
        return None if pace is None else pace * total_work(settings, width, height)

    async def wants(self, run: Run) -> Estimate:
        """What a run would need, on the device where it fits best.

        Raises:
            MemoryLimitError: It fits on none.
        """
        estimates = [await self._executor.estimate(run, slot) for slot in self._distinct_slots()]
        level = run.settings.levels
        best = max(estimates, key=lambda estimate: (estimate.holds(level), estimate.total_bytes))
        if not best.holds(level):
            raise _too_large(level, best)
        seconds = self.seconds(run.settings, best.network, best.width, best.height)
        return best if seconds is None else replace(best, seconds=seconds * effort(run.masks))

    # Absorbing what changed

    def _absorb_outcome(self, future: "asyncio.Future[tuple[T, Changes]]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._absorb(future.result()[1])

    def _absorb(self, changes: Changes) -> None:
        for timing in changes.timings:
            self._paces.learn(timing)
        for job in changes.jobs:
            self._absorb_job(job)
        for job_id in changes.removed:
            self._jobs.pop(job_id, None)
            self._told.pop(job_id, None)
            if active := self._active.get(job_id):
                self._stop(active, keep=False)
            self._events.tell("removed", job_id)
        if changes.queue_paused != self._paused:
            self._paused = changes.queue_paused
            self._events.tell("queue", paused=self._paused)
            self._wake.set()
        if changes.jobs or changes.removed:
            self._queue_changed()

    def _absorb_job(self, job: Job) -> None:
        if job.started is not None:
            self._served[job.owner] = max(job.started, self._served.get(job.owner, 0.0))
        before = self._jobs.pop(job.id, None)
        if job.state.pending:
            self._jobs[job.id] = job
        if job.state is not JobState.QUEUED:
            self._waits.pop(job.id, None)
        if before is None or before.state is not job.state or before.rank != job.rank:
            self._order = None
        if (active := self._active.get(job.id)) and not self._is_wanted(active):
            self._stop(active, keep=job.state in (JobState.PAUSED, JobState.QUEUED))
        elif active:
            self._steer(active, job)
        self._tell(job)

    def _tell(self, job: Job) -> None:
        seen = self.seen(job)
        if seen.position is None:
            self._told.pop(job.id, None)
        else:
            self._told[job.id] = (seen.position, seen.seconds_left)
        self._events.tell("job", job.id, seen)

    def _is_wanted(self, active: _Active) -> bool:
        job = self._jobs.get(active.job.id)
        return job is not None and job.state is JobState.RUNNING and job.attempt == active.job.attempt

    def _stop(self, active: _Active, *, keep: bool) -> None:
        if not active.over:
            active.unwanted = True
            self._executor.cancel(active.job.id, active.job.attempt, keep=keep)

    def _steer(self, active: _Active, job: Job) -> None:
        """Hands on what was wished for since the run began, by this process or another."""
        if active.steered is None or active.over:
            return
        for wish in job.steering[active.steered :]:
            self._executor.steer(job.id, job.attempt, wish)
        active.steered = len(job.steering)

    def _queue_changed(self) -> None:
        """Wakes the dispatcher now, and tells queued jobs their new places soon, once for many changes."""
        self._wake.set()
        if self._queue_news is None and not self._closing:
            self._queue_news = asyncio.create_task(self._tell_places())

    async def _tell_places(self) -> None:
        await asyncio.sleep(_QUEUE_NEWS_SECONDS)
        self._queue_news = None
        self._order = None  # time has passed as well
        queued = [job for job in self.order() if _is_news(self._told.get(job.id), self._forecast[job.id])]
        for number, job in enumerate(queued):
            if number % _NEWS_AT_ONCE == 0:
                await asyncio.sleep(0)  # a long queue before many pages must not hold up the loop
            if job is self._jobs.get(job.id):
                self._tell(job)

    # Looking ahead

    def _look_ahead(self, order: Sequence[Job]) -> dict[str, _Place]:
        """Place in the queue and seconds until done, by job."""
        running = [self._seconds_left(job) for job in self._jobs.values() if job.state is JobState.RUNNING]
        lengths = [self._length(job) for job in order]
        ends = forecast(running, lengths, max(len(self._executor.slots()), len(running)))
        return {job.id: (place, end) for place, (job, end) in enumerate(zip(order, ends, strict=True), 1)}

    def _length(self, job: Job) -> float | None:
        pace = self._paces.pace(self._usual_kind(), job.settings, job.network, job.width * job.height)
        progress = job.progress if job.checkpoint_iteration else None
        left = remaining_work(job.settings, job.width, job.height, progress)
        return None if pace is None else pace * effort(job.masks) * left

    def _seconds_left(self, job: Job) -> float | None:
        """By its own pace so far, to which earlier jobs add what they know as if it were a tenth of the work."""
        size = (job.settings, job.width, job.height)
        total, left = total_work(*size), remaining_work(*size, job.progress)
        active = self._active.get(job.id)
        began, before = active.first if active and active.first else (job.started or time.time(), total)
        done, elapsed = max(0.0, before - left), time.time() - began
        pace = self._paces.pace(job.device, job.settings, job.network, job.width * job.height)
        if pace is not None:
            done, elapsed = done + total / 10, elapsed + pace * effort(job.masks) * total / 10
        return left * elapsed / done if done >= total / 40 else None

    def _usual_kind(self) -> str | None:
        return next((slot.kind for slot in self._executor.slots()), None)

    def _distinct_slots(self) -> list[Slot | None]:
        """One slot of each kind of device; where there is no slot at the moment, none."""
        return list({slot.kind: slot for slot in self._executor.slots()}.values()) or [None]

    # Starting

    async def _dispatch(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_seconds):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.commit(_nothing)  # absorbs what other processes changed
                self._expect()
                busy = self.busy  # asked once: with a thousand slots, asking for each would hold up the loop
                for slot in self._executor.slots():
                    if slot.name not in busy:
                        await self._fill(slot)
            except StorageError as error:
                log.error("no job can be started: %s", error)
                await self._calm_down()
            except Exception:
                log.exception("the next job could not be started")
                await self._calm_down()

    def _expect(self) -> None:
        running = sum(job.state is JobState.RUNNING for job in self._jobs.values())
        self._executor.expect(0 if self._paused else len(self.order()), running)

    async def _calm_down(self) -> None:
        await asyncio.sleep(self._settings.poll_seconds * _TROUBLE_POLLS)

    async def _fill(self, slot: Slot) -> None:
        """Starts the next job on a free slot, if there is one and no other process has the device."""
        if self._paused or self._fatal.done() or not self.order() or not self._executor.reserve(slot):
            return
        started = False
        try:
            await self.commit(_nothing)  # whoever had the device may have taken jobs
            started = await self._start_next(slot)
        finally:
            if not started:
                self._executor.release(slot)

    async def _start_next(self, slot: Slot) -> bool:
        for job in list(self.order()):
            if job.process is not None:
                continue  # an earlier run of it has yet to end
            admission = await self._admit(job, slot)
            if job.id in self._waits:
                return False  # nobody overtakes it, or it would wait for ever
            if admission is None:
                continue
            claimed = await self.commit(self._store.claim, job.id, slot.kind)
            if claimed:
                self._begin(claimed, slot, admission)
                return True
        return False

    async def _admit(self, job: Job, slot: Slot) -> _Admission | None:
        """How a job may start on this slot; none: not here, or not now (then `_waits` has it)."""
        try:
            run = self._store.run(job)
            estimate = await self._executor.estimate(run, slot)
            if not estimate.holds(job.settings.levels):
                await self.wants(run)  # raises where it fits on no other device either
                return None
            return await self._find_memory(job, run, slot, estimate)
        except UserError as error:
            self._waits.pop(job.id, None)
            await self.commit(self._store.fail, job.id, job.attempt, Failure(cause=error.cause, remedy=error.remedy))
            return None

    async def _find_memory(self, job: Job, run: Run, slot: Slot, estimate: Estimate) -> _Admission | None:
        """Waits for the runs beside it to end; for other programs it waits a while, then makes do with what is free."""
        beside = [
            active.admission.memory_bytes for active in self._active.values() if active.slot.device == slot.device
        ]
        # What is free doesn't know yet what the runs beside it are going to take.
        available = min(estimate.free_bytes, estimate.total_bytes - sum(beside))
        if estimate.memory_bytes <= available:
            self._waits.pop(job.id, None)
            return _Admission(run.settings, estimate.memory_bytes)
        since, _ = self._waits.get(job.id, (time.monotonic(), ""))
        if beside or time.monotonic() - since < self._settings.memory_patience_seconds:
            self._wait(job, since, estimate, available)
            return None
        smaller = run.settings.changed({"max_memory": max(available, 1) / GIB})
        estimate = await self._executor.estimate(replace(run, settings=smaller), slot)
        if not estimate.holds(smaller.levels) or estimate.memory_bytes > available:
            raise _too_large(smaller.levels, estimate)
        self._waits.pop(job.id, None)
        notice = f"Only {_gib(available)} of memory were free, so it is computed in smaller pieces."
        return _Admission(smaller, estimate.memory_bytes, notice)

    def _wait(self, job: Job, since: float, estimate: Estimate, available: int) -> None:
        waiting = f"waits for memory: needs {_gib(estimate.memory_bytes)}, {_gib(available)} free"
        news = job.id not in self._waits
        self._waits[job.id] = (since, waiting)
        if news:
            self._tell(job)

    def _begin(self, job: Job, slot: Slot, admission: _Admission) -> None:
        active = _Active(job, slot, admission, preview=job.preview)
        self._active[job.id] = active
        if not self._is_wanted(active):  # cancelled since it was claimed
            active.unwanted = True
        active.task = asyncio.create_task(self._work(active), name=f"job {job.id}")

    # Running

    async def _work(self, active: _Active) -> None:
        """One run from beginning to end. Whatever happens in it, the slot is free afterwards."""
        try:
            await self._run(active)
        except Exception:
            log.exception("the end of job %s could not be written down", active.job.id)
            await self._end_crashed(active, "its end could not be written down")
        finally:
            active.over = True
        await self._let_go(active)

    async def _run(self, active: _Active) -> None:
        job = active.job
        try:
            await self._compute(active)
        except UserError as error:
            await self._end_failed(active, Failure(cause=error.cause, remedy=error.remedy))
        except LostRunError as error:
            log.warning("job %s: %s", job.id, error)
            await self._end_crashed(active, str(error), machine=error.machine)
        except PoisonedDeviceError as error:
            log.critical("job %s: %s", job.id, error)
            await self._end_poisoned(active, error)
        except Exception:
            log.exception("job %s failed", job.id)
            remedy = f"Retry it; if that doesn't help, the operator finds job {job.id[:6]} in the log"
            await self._end_failed(active, Failure(cause="something went wrong in the studio", remedy=remedy))

    async def _compute(self, active: _Active) -> None:
        if active.unwanted:
            return
        output = None
        if active.admission.notice:
            await self._take(active, Remark(active.admission.notice))
        job = self._jobs.get(active.job.id, active.job)  # as it is now: it may have been steered since it was claimed
        run = replace(self._store.run(job), settings=active.admission.settings)
        active.steered = len(job.steering)
        try:
            async with contextlib.aclosing(self._executor.start(run, active.slot)) as updates:
                async for update in updates:
                    if isinstance(update, Output):
                        output = update
                    else:
                        await self._take(active, update)
        finally:
            active.over = True
            if output is None:
                await self._record(active, now=True)
        if output is not None:
            await self._finish(active, output)
        elif not active.unwanted:
            raise LostRunError("the run ended without a result")

    async def _take(self, active: _Active, update: Update) -> None:
        match update:
            case Progress():
                self._take_progress(active, update)
                await self._record(active)
            case Preview():
                await self._take_preview(active, update)
            case Checkpoint():
                await self._take_checkpoint(active, update)
            case Steered():
                await self._take_steered(active, update)
            case Losses():
                active.points.extend(update.points)
            case Remark():
                await self._take_remark(active, update.text)

    def _take_progress(self, active: _Active, progress: Progress) -> None:
        size = (active.job.settings, active.job.width, active.job.height)
        left, total = remaining_work(*size, progress), total_work(*size)
        active.first = active.first or (time.time(), left)
        active.progress = progress.model_copy(update={"fraction": min(1.0, max(0.0, 1 - left / total))})
        self._tell_run(active)

    def _tell_run(self, active: _Active) -> None:
        if self._is_wanted(active):
            job = self._jobs[active.job.id]
            self._tell(job)

    async def _take_preview(self, active: _Active, preview: Preview) -> None:
        name = preview_name(active.job.id)
        try:
            await asyncio.to_thread(self._store.files.write, "previews", name, preview.data, sync=False)
        except StorageError as error:
            log.warning("job %s shows no preview: %s", active.job.id, error)
            return
        active.preview = max(time.time_ns() // 1_000_000, (active.preview or 0) + 1)
        self._tell_run(active)
        await self._record(active)

    async def _take_checkpoint(self, active: _Active, checkpoint: Checkpoint) -> None:
        job, name = active.job, checkpoint_name(active.job)
        try:
            if checkpoint.frames is not None:  # before the checkpoint: frames that are too late are left out
                frames = (frames_name(job), checkpoint.frames)
                await asyncio.to_thread(self._store.files.write, "checkpoints", *frames)
            await asyncio.to_thread(self._store.files.write, "checkpoints", name, checkpoint.data)
            await self.commit(self._store.record_checkpoint, job.id, job.attempt, checkpoint.iteration)
        except StorageError as error:
            await self._tell_unsaved(active, error)

    async def _tell_unsaved(self, active: _Active, error: StorageError) -> None:
        """A job that can't be saved goes on; it is only less safe."""
        log.warning("job %s can't be saved: %s", active.job.id, error)
        if not active.unsaved:
            active.unsaved = True
            text = f"This job can't be saved on the way ({error.cause}), so a restart would begin it again."
            await self._take_remark(active, text)

    async def _take_steered(self, active: _Active, steered: Steered) -> None:
        try:
            await self.commit(self._store.record_steered, active.job.id, active.job.attempt, steered)
        except StorageError as error:  # a restart would take the wish up again, where it goes on
            log.warning("job %s: steering can't be written down: %s", active.job.id, error)

    async def _take_remark(self, active: _Active, text: str) -> None:
        log.info("job %s: %s", active.job.id, text)
        try:
            await self.commit(self._store.add_notice, active.job.id, active.job.attempt, text)
        except StorageError as error:
            log.warning("job %s: that can't be written down: %s", active.job.id, error)

    async def _record(self, active: _Active, *, now: bool = False) -> None:
        if not now and time.monotonic() - active.recorded < self._settings.record_seconds:
            return
        active.recorded = time.monotonic()
        points, active.points = active.points, []
        job = active.job
        try:
            await self.commit(self._store.record_progress, job.id, job.attempt, active.progress, active.preview, points)
        except StorageError as error:
            active.points = [*points, *active.points]
            log.warning("progress of job %s can't be written down: %s", job.id, error)

    # Ending

    async def _finish(self, active: _Active, output: Output) -> None:
        job, files = active.job, self._store.files
        name = f"{new_id()}.{output.format}"
        await asyncio.to_thread(files.write, "results", name, output.data)
        film = None
        if output.film is not None:
            film = f"{new_id()}.{output.film_format}"
            await asyncio.to_thread(files.write, "results", film, output.film)
        seconds = time.monotonic() - active.began
        result = Result(
            file=name,
            format=output.format,
            width=output.width,
            height=output.height,
            bytes=len(output.data),
            seconds=seconds,
            film=film,
        )
        timing = None if job.checkpoint_iteration else _timing(active, seconds)  # of whole runs only
        finish = (job.id, job.attempt, result, active.progress, active.points, timing)
        if not await self._patiently(self._store.finish, *finish):
            for left in filter(None, (name, film)):  # cancelled, paused or deleted at the last moment
                await asyncio.to_thread(files.remove, "results", left)

    async def _end_failed(self, active: _Active, failure: Failure) -> None:
        await self._record(active, now=True)
        await self._patiently(self._store.fail, active.job.id, active.job.attempt, failure)

    async def _end_poisoned(self, active: _Active, error: PoisonedDeviceError) -> None:
        """The job counts as one that crashed the service; all others stop, to be resumed by the next process."""
        if not self._fatal.done():
            self._fatal.set_result(error)
        await self._end_crashed(active, str(error))
        for other in self._active.values():
            if other is not active:
                self._stop(other, keep=True)

    async def _end_crashed(self, active: _Active, note: str, *, machine: bool = False) -> None:
        """A run that was told to stop isn't to blame for how it ended; any other counts as running at a crash."""
        job = active.job
        if not active.unwanted:
            limit = self._crashes_in_a_row(machine)
            await self._patiently(self._store.crash, job.id, job.attempt, limit, note, machine=machine)

    async def _let_go(self, active: _Active) -> None:
        """Says, durably first, that nothing touches the job any more, and frees the slot."""
        job = await self._patiently(self._store.release, active.job.id, "stopped")
        if job is None:  # deleted meanwhile, perhaps after the run wrote its last file
            await asyncio.to_thread(self._store.remove_files, active.job)
        del self._active[active.job.id]
        self._executor.release(active.slot)
        self._wake.set()

    async def _patiently(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Commits the end of a run however long the disk is full: a result is not thrown away for that."""
        while True:
            try:
                return await self.commit(change, *args, **kwargs)
            except StorageError as error:
                log.error("%s (trying again)", error)
                await self._calm_down()

    # Keeping house

    async def _recover(self) -> None:
        """Puts back what dead processes ran; where they left the computing to other machines, no job is to blame."""
        elsewhere = self._settings.executor == "ray"
        await self.commit(self._store.recover, self._crashes_in_a_row(elsewhere), machine=elsewhere)

    def _crashes_in_a_row(self, machine: bool) -> int:
        return self._settings.machines_in_a_row if machine else self._settings.crashes_in_a_row

    async def _housekeep(self) -> None:
        tidied = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.poll_seconds * _RECOVERY_POLLS)
            try:
                await self._recover()
                if time.monotonic() - tidied > _TIDY_SECONDS:
                    tidied = time.monotonic()
                    await self.commit(self._store.tidy, self._settings.keep_seconds, self._settings.keep_unused_seconds)
            except StorageError as error:
                log.error("the studio can't be tidied: %s", error)
            except Exception:
                log.exception("the studio could not be tidied")


def _timing(active: _Active, seconds: float) -> Timing:
    job, optimizer = active.job, active.job.settings.optimizer.name
    work = effort(job.masks) * total_work(job.settings, job.width, job.height)
    return Timing(active.slot.kind, optimizer, job.network, job.width * job.height, work, seconds)


def _nothing() -> None:
    """Changes nothing; `commit` still absorbs what others changed."""


def _is_news(before: _Place | None, now: _Place) -> bool:
    """Whether a place in the queue, or the time until done, changed enough to tell."""
    if before is None or before[0] != now[0] or (before[1] is None) != (now[1] is None):
        return True
    return before[1] is not None and now[1] is not None and abs(before[1] - now[1]) > 5 + 0.1 * before[1]


def _too_large(level: int, estimate: Estimate) -> MemoryLimitError:
    cause = f"level {level} needs {_gib(estimate.memory_bytes)} of memory, more than there is for it"
    if estimate.largest_level is None:
        return MemoryLimitError(cause, "Close other programs, or use a smaller network")
    return MemoryLimitError(cause, f"Choose level {estimate.largest_level}, the largest that fits")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
