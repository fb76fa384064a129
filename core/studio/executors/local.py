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
import gc
import importlib.util
import logging
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from core.errors import CheckpointError, MemoryLimitError, UserError
from core.studio.executors.frames import Frames
from core.studio.jobs import (
    Checkpoint,
    Estimate,
    LevelLoss,
    Losses,
    LossPoint,
    Output,
    PoisonedDeviceError,
    Preview,
    Progress,
    Remark,
    Run,
    Slot,
    Steered,
    StudioSettings,
    Update,
    Wish,
)

if TYPE_CHECKING:
    from core.images import Picture
    from core.shards import Shards
    from core.transfer import Step

log = logging.getLogger(__name__)

_CHART_POINTS = 1000
_PREVIEW_SHARE = 0.1
_CHECKPOINT_SHARE = 0.05
_SWITCH_SECONDS = 0.001
"""How long a thread may keep the interpreter when others wait; with eight GPUs, Python's 5 ms is 40 for the loop."""


# ── What computes ────────────────────────────────────────────────────────────────────────────────────────────────────


def _unmoved(changes: Mapping[str, Any]) -> None:
    """For what can't be steered."""


@dataclass(frozen=True)
class Moment:
    """Where a run is after one step, and what can be had of it.

    The functions cost nothing unless they are called, which must be before the next step is taken.
    """

    progress: Progress
    checkpoint: Callable[[], bytes]
    preview: Callable[[], bytes]
    steer: Callable[[Mapping[str, Any]], None] = _unmoved
    """Changes weights, as `Settings.changed` takes them, for all steps to come."""


class Backend(Protocol):
    """What knows about devices and pictures. Its methods take their time and are called in threads."""

    def slots(self) -> Sequence[Slot]:
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
            run: What to compute, with the steering that is to take hold at known iterations; all other comes through
                `Moment.steer`.
            device: Where.
            checkpoint: Where to go on.
            remark: Takes what the owner should know.

        Raises:
            CheckpointError: The checkpoint is damaged or of another run (raised before the first step).
            UserError: Anything else that the owner can mend.
        """

    def film(self, frames: Sequence[bytes]) -> tuple[bytes, str]:
        """A film of JPEG files, which may be of several sizes, and its file's suffix."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether this says that memory ran out."""

    def poisoned(self, device: str) -> bool:
        """Whether the device is beyond use in this process; asked after an error."""

    def clean(self, device: str) -> None:
        """Gives memory that nothing uses back to the device."""


# ── The mailbox ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Mailbox:
    """Takes updates in a thread and gives them out on an event loop, the latest of each kind only.

    Remarks, losses, steering and the output are all kept; they are few.
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
        self.saving = False
        """Whether a checkpoint is on its way: the next one is better made when this one is safe."""

    def put(self, update: Update) -> None:
        """Called in the thread; never waits for the loop."""
        with self._lock:
            self.saving = self.saving or isinstance(update, Checkpoint)
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
                if isinstance(update, Checkpoint):
                    self.saving = False
        if self._error is not None:
            raise self._error

    def _take(self) -> tuple[list[Update], bool]:
        self._news.clear()
        with self._lock:
            # Wish before the checkpoint that knows it; the output, if any, is the last of all.
            steered = [update for update in self._all if isinstance(update, Steered)]
            others = [update for update in self._all if not isinstance(update, Steered)]
            updates = [*steered, *self._latest.values(), *others]
            self._latest, self._all, self._rung = {}, [], False
            return updates, self._ended


# ── The thread's side ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class _Work:
    """A run, as the loop and its thread share it."""

    run: Run
    slot: Slot
    mailbox: Mailbox
    wishes: deque[Wish] = field(default_factory=deque)
    """What it is to take up at its next step."""
    asked: list[Wish] = field(default_factory=list)
    """What it takes up with the evaluation that it is in, if it comes to its end."""
    taken: list[Wish] = field(default_factory=list)
    """What it has taken up, now or before a restart."""
    stop: threading.Event = field(default_factory=threading.Event)
    keep: bool = False
    """Save it when it stops."""
    thread: threading.Thread | None = None

    def remark(self, text: str) -> None:
        self.mailbox.put(Remark(text))

    def take_wishes(self, moment: Moment) -> None:
        """Tells what has been taken up since the last moment, and lets the run go on from this one as it is asked."""
        for wish in self.asked:
            self.mailbox.put(Steered(wish.number, wish.iteration or 0, wish.evaluation or 0))
        self.taken += self.asked
        self.asked.clear()
        since = {"iteration": moment.progress.iteration, "evaluation": moment.progress.evaluations}
        while self.wishes:
            wish = self.wishes.popleft()
            moment.steer(wish.changes)
            self.asked.append(wish.model_copy(update=since))


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
    """Decides which moments are told, shown, filmed, drawn in the chart and saved."""

    def __init__(self, mailbox: Mailbox, settings: StudioSettings, frames: Frames | None) -> None:
        self._mailbox = mailbox
        self._frames = frames
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
        if self._frames:
            self._frames.offer(progress.iteration, moment.preview)
        with self._checkpoint.when_due() as due:
            if due and not self._mailbox.saving:
                self.save(moment)

    def tell(self, progress: Progress) -> None:
        """Tells the progress, and the points of the chart up to it."""
        points, self._points = self._points, []
        if points:
            self._mailbox.put(Losses(tuple(points)))
        self._mailbox.put(progress)

    def save(self, moment: Moment) -> None:
        """Hands out a checkpoint."""
        frames = self._frames.encode() if self._frames else None
        self._mailbox.put(Checkpoint(moment.checkpoint(), moment.progress.iteration, frames))


def _chart_point(progress: Progress) -> LossPoint:
    return LossPoint(iteration=progress.iteration, seconds=progress.seconds, loss=progress.loss, levels=progress.levels)


class LocalExecutor:
    """Computes in threads of this process; see `core.studio.scheduler.Executor`.

    Args:
        locks: Directory of the lock files by which processes take turns on a device.
        settings: Of the studio.
        backend: What computes.

    Raises:
        DeviceError: The settings name a device that isn't there.
    """

    def __init__(self, locks: Path, settings: StudioSettings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._slots = tuple(backend.slots())
        # Not one per thread: the thread that opens the executor may be another one than that which uses it.
        self._locks = {slot.name: FileLock(locks / lock_name(slot.name), thread_local=False) for slot in self._slots}
        self._works: dict[tuple[str, int], _Work] = {}
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_seconds, _SWITCH_SECONDS))

    def slots(self) -> Sequence[Slot]:
        """The same from beginning to end."""
        return self._slots

    def expect(self, queued: int, running: int) -> None:
        """Changes nothing: a machine has the devices that it has."""

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
        wishes = deque(wish for wish in run.steering if wish.iteration is None)
        taken = [wish for wish in run.steering if wish.iteration is not None]
        work = _Work(run, slot, Mailbox(asyncio.get_running_loop()), wishes=wishes, taken=taken)
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

    def steer(self, job_id: str, attempt: int, wish: Wish) -> None:
        """Gives the run's thread something to take up after the evaluation that it is in."""
        if work := self._works.get((job_id, attempt)):
            work.wishes.append(wish)

    async def close(self) -> None:
        """Lets go of all devices. One where a thread still computes stays locked until the process ends."""
        sys.setswitchinterval(self._switch_seconds)
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
        """What to tell of an error."""
        _let_go_of_pictures(error)
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
        work.wishes.extendleft(reversed(work.asked))  # of an earlier try
        work.asked.clear()
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
            _let_go_of_pictures(error)
            return False
        return True

    def _follow(self, work: _Work, run: Run, checkpoint: bytes | None) -> None:
        """Takes step after step until the end, or until told to stop."""
        run = replace(run, steering=tuple(work.taken))
        frames = _frames_of(run)
        reporter = _Reporter(work.mailbox, self._settings, frames)
        moment: Moment | None = None
        with contextlib.closing(self._backend.compute(run, work.slot.device, checkpoint, work.remark)) as moments:
            while not work.stop.is_set():
                try:
                    moment = next(moments)
                except StopIteration as end:
                    if moment is not None:
                        reporter.tell(moment.progress)
                    work.mailbox.put(self._with_film(end.value, frames))
                    return
                work.take_wishes(moment)
                reporter.report(moment)
            if moment is not None and work.keep:
                reporter.tell(moment.progress)
                reporter.save(moment)

    def _with_film(self, output: Output, frames: Frames | None) -> Output:
        if not frames or not frames.pictures:
            return output
        film, suffix = self._backend.film(frames.pictures)
        return replace(output, film=film, film_format=suffix)


def _frames_of(run: Run) -> Frames | None:
    """The film's frames until now; none where nobody asked for a film."""
    if not run.film:
        return None
    frames = Frames()
    if run.frames:
        frames.restore(run.frames)
    return frames


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


def _let_go_of_pictures(error: BaseException | None) -> None:
    """Drops the local variables of all functions that an error came through; their lines stay known."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    # Errors and their frames form cycles. Only here, since a whole collection stops the interpreter for 0.1 s or more.
    gc.collect()


def lock_name(slot: str) -> str:
    """The file by which processes take turns on a slot of this name."""
    return "device-" + "".join(letter if letter.isalnum() else "-" for letter in slot) + ".lock"


# ── The real backend ─────────────────────────────────────────────────────────────────────────────────────────────────


class TorchBackend:
    """Drives `core.transfer` on this machine's devices.

    torch takes seconds to import, which must happen in a thread, not on the event loop; therefore the imports within.

    Args:
        settings: Of the studio.
    """

    def __init__(self, settings: StudioSettings) -> None:
        self._settings = settings

    def slots(self) -> Sequence[Slot]:
        """Those of the devices in the settings; without any there, of every CUDA device, else MPS, else the CPU."""
        from core import devices  # noqa: PLC0415

        found = [devices.resolve(name) for name in self._settings.devices or _all_devices()]
        return [
            Slot(name, str(device), devices.describe(device))
            for device in dict.fromkeys(found)
            for name in _slot_names(str(device), self._settings.slots_per_device)
        ]

    def estimate(self, run: Run, device: str) -> Estimate:
        """By the headers of the pictures."""
        from core import devices, images, planning, weights  # noqa: PLC0415

        resolved = devices.resolve(device)
        content, *styles = [images.probe(path) for path in (run.content, *run.styles)]
        plan = planning.estimate(
            run.settings,
            (content.height, content.width),
            [(style.height, style.width) for style in styles],
            device,
            regions=len(styles) if run.is_guided else 0,
            weights_file=self._settings.weights,
        )
        return Estimate(
            width=plan.width,
            height=plan.height,
            memory_bytes=plan.memory_bytes,
            free_bytes=devices.free_memory_bytes(resolved),
            total_bytes=devices.total_memory_bytes(resolved),
            largest_level=plan.largest_level,
            seconds=plan.seconds,
            network=weights.choose(run.settings.network),
        )

    def compute(
        self, run: Run, device: str, checkpoint: bytes | None, remark: Callable[[str], None]
    ) -> Generator[Moment, None, Output]:
        """Reads the pictures, and steps the optimisation."""
        from core import images  # noqa: PLC0415
        from core.steering import Steer  # noqa: PLC0415
        from core.transfer import Transfer  # noqa: PLC0415

        content, *styles = [_read(path, remark) for path in (run.content, *run.styles)]
        with self._shards(run, device, remark) as shards:
            transfer = Transfer(
                content.pixels,
                [style.pixels for style in styles],
                run.settings,
                device=device,
                weights_file=self._settings.weights,
                start=_read(run.start, remark).pixels if run.start else None,
                alpha=content.alpha,
                masks=[images.read_mask(mask.read_bytes()) if mask else None for mask in run.masks],
                protect=images.read_mask(run.protect.read_bytes()) if run.protect else None,
                steering=[
                    Steer(evaluation=wish.evaluation or 0, iteration=wish.iteration or 0, changes=wish.changes)
                    for wish in run.steering
                ],
                shards=shards,
            )
            for notice in transfer.notices:
                remark(notice)
            with contextlib.closing(transfer.steps(checkpoint)) as steps:
                for step in steps:
                    yield Moment(_progress(step), step.checkpoint, partial(self._preview, step), transfer.steer)
        return Output(transfer.encode(step), "png", step.width, step.height)

    def _shards(
        self, run: Run, device: str, remark: Callable[[str], None]
    ) -> "contextlib.AbstractContextManager[Shards | None]":
        """On a cluster, other workers may compute parts of a huge picture."""
        if self._settings.executor != "ray":
            return contextlib.nullcontext()
        from core.studio.executors import ray_shards  # noqa: PLC0415

        return ray_shards.shards(self._settings, run, device, remark)

    def _preview(self, step: "Step") -> bytes:
        """A small JPEG file of the picture so far."""
        from core import images  # noqa: PLC0415

        scale = min(1.0, self._settings.preview_side / max(step.width, step.height))
        size = (max(1, round(step.height * scale)), max(1, round(step.width * scale)))
        return images.encode(images.resize(step.picture(), size), "jpeg", quality=85)

    def film(self, frames: Sequence[bytes]) -> tuple[bytes, str]:
        """All frames at the size of the last; MP4 where PyAV is installed, else WebP."""
        from core import images  # noqa: PLC0415
        from core.film import Film  # noqa: PLC0415

        last = images.probe(frames[-1])
        suffix = "webp" if importlib.util.find_spec("av") is None else "mp4"
        with tempfile.TemporaryDirectory(prefix="pyramid-style-") as folder:
            path = Path(folder) / f"film.{suffix}"
            with Film(path, (last.height, last.width)) as film:
                for frame in frames:
                    film.add(images.read(frame).pixels)
            return path.read_bytes(), suffix

    def out_of_memory(self, error: BaseException) -> bool:
        """On CUDA there is a class for it, elsewhere only words."""
        import torch  # noqa: PLC0415

        words = ("out of memory", "can't allocate memory", "not enough memory")
        told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
        return told or isinstance(error, MemoryError | torch.OutOfMemoryError)

    def poisoned(self, device: str) -> bool:
        """After an illegal memory access, say, even the simplest computation fails until the process ends."""
        import torch  # noqa: PLC0415

        if not device.startswith("cuda"):
            return False
        try:
            torch.ones(1, device=device).sum().item()
        except Exception as error:
            return not self.out_of_memory(error)
        return False

    def clean(self, device: str) -> None:
        """Empties torch's cache, so that the next run, or another process, finds the memory free."""
        import torch  # noqa: PLC0415

        with contextlib.suppress(RuntimeError):  # on a poisoned device
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
            elif device == "mps":
                torch.mps.empty_cache()


def _all_devices() -> Sequence[str]:
    import torch  # noqa: PLC0415

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["auto"]


def _slot_names(device: str, slots: int) -> Sequence[str]:
    return [device] if slots == 1 else [f"{device}.{number}" for number in range(slots)]


def _read(path: Path, remark: Callable[[str], None]) -> "Picture":
    """A picture of the user's; from its bytes, since the name of its file would mean nothing to them."""
    from core import images  # noqa: PLC0415

    picture = images.read(path.read_bytes())
    for notice in picture.notices:
        remark(notice)
    return picture


def _progress(step: "Step") -> Progress:
    return Progress(
        stage=step.stage,
        stages=step.stages,
        iteration=step.iteration,
        iterations=step.iterations,
        evaluations=step.evaluations,
        loss=step.loss,
        levels=tuple(
            LevelLoss(level=level.level, content=level.content, style=level.style, tv=level.tv) for level in step.levels
        ),
        seconds=step.seconds,
        width=step.width,
        height=step.height,
    )
