"""Computes jobs beside the event loop: one thread per device slot.

The thread steps a backend (the real one drives `core.transfer`) and puts what there is to tell into a mailbox; the
event loop takes it out. The mailbox is the only place where anything crosses from a thread to the loop. It keeps the
latest progress, preview and checkpoint only, so that a loop that is busy, or a disk that is slow, never holds up the
computing.

Everything that takes time happens in the thread: reading and encoding pictures, previews, checkpoints. What the loop
gets is small values and finished bytes.
"""

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from core.errors import CheckpointError, MemoryLimitError, UserError
from core.studio.jobs import (
    Checkpoint,
    Estimate,
    Losses,
    LossPoint,
    Output,
    PoisonedDeviceError,
    Preview,
    Progress,
    Remark,
    Run,
    Slot,
    StudioSettings,
    Update,
)

log = logging.getLogger(__name__)

_CHART_POINTS = 1000
_PREVIEW_SHARE = 0.1
_CHECKPOINT_SHARE = 0.05


# ── What computes ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Moment:
    """Where a run is after one step, and what can be had of it.

    The functions cost nothing unless they are called, which must be before the next step is taken.
    """

    progress: Progress
    checkpoint: Callable[[], bytes]
    preview: Callable[[], bytes]


class Backend(Protocol):
    """What knows about devices and pictures. Its methods take their time and are called in threads."""

    def slots(self, settings: StudioSettings) -> Sequence[Slot]:
        """The slots of this machine.

        Raises:
            DeviceError: The settings name a device that isn't there.
        """

    def estimate(self, run: Run, device: str) -> Estimate:
        """What a run needs, and what the device has.

        Raises:
            UserError: The run can't be computed at all.
        """

    def compute(
        self, run: Run, device: str, checkpoint: bytes | None, remark: Callable[[str], None]
    ) -> Generator[Moment, None, Output]:
        """Computes step by step and returns the finished picture. Closing it stops within one evaluation.

        Args:
            run: What to compute.
            device: Where.
            checkpoint: Where to go on.
            remark: Takes what the owner should know.

        Raises:
            CheckpointError: The checkpoint is damaged or of another run (raised before the first step).
            UserError: Anything else that the owner can mend.
        """

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether this says that memory ran out."""

    def poisoned(self, device: str) -> bool:
        """Whether the device is beyond use in this process; asked after an error."""

    def clean(self, device: str) -> None:
        """Gives memory that nothing uses back to the device."""


# ── The mailbox ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Mailbox:
    """Takes updates in a thread and gives them out on an event loop, the latest of each kind only.

    Remarks, losses and the output are all kept; they are few.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._latest: dict[type[Update], Update] = {}
        self._all: list[Update] = []
        self._ended = False
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._rung = False

    def put(self, update: Update) -> None:
        """Called in the thread; never waits for the loop."""
        with self._lock:
            if isinstance(update, Progress | Preview | Checkpoint):
                self._latest[type(update)] = update
            else:
                self._all.append(update)
            self._ring()

    def end(self, error: BaseException | None = None) -> None:
        """Called in the thread, last of all: whoever takes out gets the error after everything else."""
        with self._lock:
            self._ended, self._error = True, error
            self._ring()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody listens any more
                self._loop.call_soon_threadsafe(self._news.set)

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Called on the loop: what comes, until the end.

        Raises:
            BaseException: What ended the thread.
        """
        ended = False
        while not ended:
            await self._news.wait()
            updates, ended = self._take()
            for update in updates:
                yield update
        if self._error is not None:
            raise self._error

    def _take(self) -> tuple[list[Update], bool]:
        self._news.clear()
        with self._lock:
            updates = [*self._latest.values(), *self._all]  # the output, if any, is the last of all
            self._latest, self._all, self._rung = {}, [], False
            return updates, self._ended


# ── The thread's side ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class _Work:
    """A run, as the loop and its thread share it."""

    run: Run
    slot: Slot
    mailbox: Mailbox
    stop: threading.Event = field(default_factory=threading.Event)
    keep: bool = False
    """Save it when it stops."""
    thread: threading.Thread | None = None

    def remark(self, text: str) -> None:
        self.mailbox.put(Remark(text))


class _Cadence:
    """When to do something again: every so many seconds, but never for more than a share of the time."""

    def __init__(self, seconds: float, share: float = 1.0, *, at_once: bool) -> None:
        self._seconds = seconds
        self._share = share
        self._next = time.monotonic() + (0.0 if at_once else seconds)

    @contextlib.contextmanager
    def when_due(self) -> Iterator[bool]:
        began = time.monotonic()
        due = began >= self._next
        yield due
        if due:
            took = time.monotonic() - began
            self._next = began + took + max(self._seconds - took, took / self._share - took)


class _Reporter:
    """Decides which moments are told, shown, drawn in the chart and saved."""

    def __init__(self, mailbox: Mailbox, settings: StudioSettings) -> None:
        self._mailbox = mailbox
        self._progress = _Cadence(settings.progress_seconds, at_once=True)
        self._preview = _Cadence(settings.preview_seconds, _PREVIEW_SHARE, at_once=True)
        self._checkpoint = _Cadence(settings.checkpoint_seconds, _CHECKPOINT_SHARE, at_once=False)
        self._points: list[LossPoint] = []

    def report(self, moment: Moment) -> None:
        """Tells of a moment what is due."""
        progress = moment.progress
        if progress.iteration % max(1, progress.iterations // _CHART_POINTS) == 0:
            self._points.append(_chart_point(progress))
        with self._progress.when_due() as due:
            if due:
                self.tell(progress)
        with self._preview.when_due() as due:
            if due:
                self._mailbox.put(Preview(moment.preview()))
        with self._checkpoint.when_due() as due:
            if due:
                self.save(moment)

    def tell(self, progress: Progress) -> None:
        """Tells the progress, and the points of the chart up to it."""
        points, self._points = self._points, []
        if points:
            self._mailbox.put(Losses(tuple(points)))
        self._mailbox.put(progress)

    def save(self, moment: Moment) -> None:
        """Hands out a checkpoint."""
        self._mailbox.put(Checkpoint(moment.checkpoint(), moment.progress.iteration))


def _chart_point(progress: Progress) -> LossPoint:
    return LossPoint(iteration=progress.iteration, seconds=progress.seconds, loss=progress.loss, levels=progress.levels)


class LocalExecutor:
    """Computes in threads of this process; see `core.studio.scheduler.Executor`.

    Args:
        locks: Directory of the lock files by which processes take turns on a device.
        settings: Of the studio.
        backend: What computes; none: the real one.

    Raises:
        DeviceError: The settings name a device that isn't there.
    """

    def __init__(self, locks: Path, settings: StudioSettings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._slots = tuple(backend.slots(settings))
        # Not one per thread: the thread that opens the executor may be another one than that which uses it.
        self._locks = {slot.name: FileLock(locks / _lock_name(slot), thread_local=False) for slot in self._slots}
        self._works: dict[tuple[str, int], _Work] = {}

    def slots(self) -> Sequence[Slot]:
        """The same from beginning to end."""
        return self._slots

    def reserve(self, slot: Slot) -> bool:
        """Takes the slot's lock file."""
        try:
            self._locks[slot.name].acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self, slot: Slot) -> None:
        """Lets go of the slot's lock file."""
        self._locks[slot.name].release()

    async def estimate(self, run: Run, slot: Slot | None) -> Estimate:
        """Asks the backend, in a thread."""
        return await asyncio.to_thread(self._backend.estimate, run, (slot or self._slots[0]).device)

    async def start(self, run: Run, slot: Slot) -> AsyncGenerator[Update, None]:
        """Computes in a thread of its own; ends when the thread does."""
        work = _Work(run, slot, Mailbox(asyncio.get_running_loop()))
        self._works[run.job_id, run.attempt] = work
        # A daemon: a long evaluation must not keep a process alive that is asked to end.
        work.thread = threading.Thread(target=self._compute, args=(work,), name=slot.name, daemon=True)
        work.thread.start()
        try:
            async with contextlib.aclosing(work.mailbox.updates()) as updates:
                async for update in updates:
                    yield update
        finally:
            work.stop.set()
            del self._works[run.job_id, run.attempt]

    def cancel(self, job_id: str, attempt: int, *, keep: bool) -> None:
        """Asks the run's thread to stop after the evaluation that it is in."""
        if work := self._works.get((job_id, attempt)):
            work.keep = keep
            work.stop.set()

    async def close(self) -> None:
        """Lets go of all devices. One where a thread still computes stays locked until the process ends."""
        busy = {work.slot.name for work in self._works.values() if work.thread and work.thread.is_alive()}
        for name, lock in self._locks.items():
            if name not in busy:
                lock.release(force=True)

    # Below: in the run's thread

    def _compute(self, work: _Work) -> None:
        error: BaseException | None = None
        try:
            self._compute_twice(work)
        except BaseException as raised:
            error = self._judged(raised, work)
        self._backend.clean(work.slot.device)
        work.mailbox.end(error)

    def _judged(self, error: BaseException, work: _Work) -> BaseException:
        """What to tell of an error. Its frames would keep the pictures in memory, so they are emptied."""
        _empty_frames(error)
        if isinstance(error, UserError) or not self._backend.poisoned(work.slot.device):
            return error
        log.critical("%s can't be used any more in this process", work.slot.device, exc_info=error)
        return PoisonedDeviceError(f"the device {work.slot.device} stopped working: {error}")

    def _compute_twice(self, work: _Work) -> None:
        """Once, and where memory runs out, once more in smaller pieces."""
        free = self._free_memory(work)
        if self._compute_once(work, work.run):
            return
        self._backend.clean(work.slot.device)
        smaller = (work.run.settings.max_memory or free) / 2
        work.remark(f"Memory ran out on {work.slot.device}; computing it in smaller pieces ({smaller:.1f} GiB).")
        settings = work.run.settings.changed({"max_memory": smaller})
        if not self._compute_once(work, replace(work.run, settings=settings)):
            raise _out_of_memory(work.run, work.slot)

    def _free_memory(self, work: _Work) -> float:
        """GiB that the run may take if its settings don't say."""
        return self._backend.estimate(work.run, work.slot.device).free_bytes / 2**30

    def _compute_once(self, work: _Work, run: Run) -> bool:
        """Computes as far as it gets; false where memory ran out."""
        try:
            try:
                self._follow(work, run, _saved(run))
            except CheckpointError as error:
                log.warning("job %s begins again: %s", run.job_id, error)
                work.remark(f"What was saved of this job can't be used ({error.cause}); it begins again.")
                self._follow(work, run, None)
        except Exception as error:
            if not self._backend.out_of_memory(error):
                raise
            log.warning("job %s: %s", run.job_id, error)
            _empty_frames(error)
            return False
        return True

    def _follow(self, work: _Work, run: Run, checkpoint: bytes | None) -> None:
        """Takes step after step until the end, or until told to stop."""
        reporter = _Reporter(work.mailbox, self._settings)
        moment: Moment | None = None
        with contextlib.closing(self._backend.compute(run, work.slot.device, checkpoint, work.remark)) as moments:
            while not work.stop.is_set():
                try:
                    moment = next(moments)
                except StopIteration as end:
                    if moment is not None:
                        reporter.tell(moment.progress)
                    work.mailbox.put(end.value)
                    return
                reporter.report(moment)
            if moment is not None and work.keep:
                reporter.save(moment)


def _saved(run: Run) -> bytes | None:
    """The run's latest checkpoint, which may be newer than the run: memory can run out long after its beginning."""
    try:
        return run.checkpoint.read_bytes() if run.checkpoint else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"the checkpoint can't be read: {error.strerror}") from error


def _out_of_memory(run: Run, slot: Slot) -> MemoryLimitError:
    cause = f"memory ran out on {slot.device} twice, also in smaller pieces"
    level = run.settings.levels
    return MemoryLimitError(cause, f"Choose level {level - 1}" if level else "Close other programs that use it")


def _empty_frames(error: BaseException | None) -> None:
    """Drops the local variables of all functions that an error came through; their lines stay known."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _lock_name(slot: Slot) -> str:
    return "device-" + "".join(letter if letter.isalnum() else "-" for letter in slot.name) + ".lock"
