"""Stand-ins for what computes, so that the studio can be tested without a network, a GPU or patience."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.config import Settings
from core.errors import CheckpointError
from core.studio import Job, Studio, StudioSettings
from core.studio.executors.local import LocalExecutor, Moment
from core.studio.jobs import Checkpoint, Estimate, LevelLoss, Output, Progress, Run, Slot, Update, Wish
from core.studio.scheduler import Executor

GIB = 2**30
QUICK = StudioSettings(
    checkpoint_seconds=0, preview_seconds=0, progress_seconds=0, record_seconds=0, poll_seconds=0.05, shutdown_seconds=2
)
SMALL = Settings.model_validate({"levels": 0, "optimizer": {"iterations": 60}})


def progress(iteration: int, iterations: int = 60, seconds: float = 1.0) -> Progress:
    """Some progress at level 0."""
    return Progress(
        stage=0,
        stages=1,
        iteration=iteration,
        iterations=iterations,
        evaluations=iteration + 1,
        loss=1 / (1 + iteration),
        levels=(LevelLoss(level=0, content=0.1, style=0.2, tv=0.0),),
        seconds=seconds,
        width=256,
        height=256,
    )


def small_estimate(memory_bytes: int = GIB, free_bytes: int = 8 * GIB, total_bytes: int = 8 * GIB) -> Estimate:
    """What a small picture might need on a device where any level fits."""
    return Estimate(256, 256, memory_bytes, free_bytes, total_bytes, largest_level=6, network="compact")


@dataclass(eq=False)
class ScriptedRun:
    """A run whose every step a test decides."""

    run: Run
    slot: Slot
    updates: "asyncio.Queue[Update | BaseException | None]" = field(default_factory=asyncio.Queue)
    saved: bytes | None = None
    """The checkpoint that it was given."""

    def send(self, *updates: Update) -> None:
        for update in updates:
            self.updates.put_nowait(update)

    def finish(self, data: bytes = b"picture") -> None:
        self.send(Output(data, "png", 256, 256))
        self.updates.put_nowait(None)

    def fail(self, error: BaseException) -> None:
        self.updates.put_nowait(error)

    def end(self) -> None:
        self.updates.put_nowait(None)


class ScriptedExecutor:
    """An executor whose runs do what a test says, and that notes what was asked of it."""

    def __init__(self, *slots: Slot, estimate: Callable[[Run, Slot | None], Estimate] | None = None) -> None:
        self._slots = list(slots) or [Slot("cpu", "cpu", "test")]
        self._estimate = estimate or (lambda run, slot: small_estimate())
        self._runs: dict[str, ScriptedRun] = {}
        self._news = asyncio.Condition()
        self.order: list[str] = []
        self.cancels: list[tuple[str, int, bool]] = []
        self.steered: list[tuple[str, int, Wish]] = []
        self.obedient = True
        """Whether a run that is cancelled ends."""
        self.running: Counter[str] = Counter()
        self.most_running: Counter[str] = Counter()
        self.closed = False

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def expect(self, queued: int, running: int) -> None:
        pass

    def reserve(self, slot: Slot) -> bool:
        return True

    def release(self, slot: Slot) -> None:
        pass

    async def estimate(self, run: Run, slot: Slot | None) -> Estimate:
        return self._estimate(run, slot)

    async def start(self, run: Run, slot: Slot) -> AsyncGenerator[Update, None]:
        scripted = ScriptedRun(run, slot)
        if run.checkpoint and run.checkpoint.exists():
            scripted.saved = run.checkpoint.read_bytes()
        self._runs[run.job_id] = scripted
        self.order.append(run.job_id)
        self.running[slot.name] += 1
        self.most_running[slot.name] = max(self.most_running[slot.name], self.running[slot.name])
        async with self._news:
            self._news.notify_all()
        try:
            while (update := await scripted.updates.get()) is not None:
                if isinstance(update, BaseException):
                    raise update
                yield update
        finally:
            self.running[slot.name] -= 1
            if self._runs.get(run.job_id) is scripted:
                del self._runs[run.job_id]

    def cancel(self, job_id: str, attempt: int, *, keep: bool) -> None:
        self.cancels.append((job_id, attempt, keep))
        scripted = self._runs.get(job_id)
        if scripted and scripted.run.attempt == attempt and self.obedient:
            if keep:
                scripted.send(Checkpoint(b"saved at the end", 7))
            scripted.end()

    def steer(self, job_id: str, attempt: int, wish: Wish) -> None:
        self.steered.append((job_id, attempt, wish))

    async def close(self) -> None:
        self.closed = True

    async def run(self, job: Job | None = None) -> ScriptedRun:
        """Waits until the job (or any) runs."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: self._runs if job is None else job.id in self._runs)
        return self._runs[job.id] if job else next(iter(self._runs.values()))

    def has_ended(self, run: ScriptedRun) -> bool:
        return self._runs.get(run.run.job_id) is not run

    @property
    def run_ids(self) -> set[str]:
        return set(self._runs)


class Rehearsal:
    """A backend without pictures: every step mixes the inputs' bytes, and the result is their digest.

    New weights are mixed in as well, so that the result says when they came.

    Args:
        steps: Iterations of a run; none: those of the job's settings.
        step_seconds: How long one takes.
        hook: Called with the run and the iteration that begins.
        slots: Of the machine that it pretends to be.
        picture: The file to give out at the end instead of the digest, for whoever looks at it.
        preview: Likewise for every preview.
    """

    def __init__(
        self,
        steps: int | None = None,
        step_seconds: float = 0.0,
        hook: Callable[[Run, int], None] | None = None,
        slots: Sequence[Slot] = (Slot("cpu", "cpu", "test"),),
        picture: bytes | None = None,
        preview: bytes | None = None,
    ) -> None:
        self._steps = steps
        self._step_seconds = step_seconds
        self._hook = hook or (lambda run, iteration: None)
        self._slots = slots
        self._picture = picture
        self._preview = preview
        self.estimates = small_estimate()
        self.cleaned: list[str] = []
        self.evaluations = 0
        self.checkpoints = 0
        self.poison = False
        self.closed = 0
        """Generators that were closed or ended."""

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def estimate(self, run: Run, device: str) -> Estimate:
        run.content.read_bytes()
        return self.estimates

    def compute(
        self, run: Run, device: str, checkpoint: bytes | None, remark: Callable[[str], None]
    ) -> Generator[Moment, None, Output]:
        iterations = self._steps or run.settings.optimizer.iterations
        done, state = _restored(checkpoint) if checkpoint is not None else (0, _beginning(run))
        try:
            while done < iterations:
                self._hook(run, done + 1)
                self.evaluations += 1
                if self._step_seconds:
                    time.sleep(self._step_seconds)
                for wish in run.steering:
                    if wish.iteration == done:
                        state = mixed(state, wish.changes)
                done, state = done + 1, hashlib.sha256(state).digest()
                saved = f"{done}:".encode() + state
                preview = self._preview or saved
                wishes: list[Mapping[str, Any]] = []
                yield Moment(
                    progress(done, iterations), partial(self._save, saved), partial(bytes, preview), wishes.append
                )
                for changes in wishes:
                    state = mixed(state, changes)
        finally:
            self.closed += 1
        return Output(self._picture or state, "png", 256, 256)

    def _save(self, state: bytes) -> bytes:
        self.checkpoints += 1
        return state

    def film(self, frames: Sequence[bytes]) -> tuple[bytes, str]:
        return b" ".join(frame.partition(b":")[0] for frame in frames), "gif"

    def out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def poisoned(self, device: str) -> bool:
        return self.poison

    def clean(self, device: str) -> None:
        self.cleaned.append(device)


def rehearsed(
    content: bytes, style: bytes, iterations: int, steering: Mapping[int, Mapping[str, Any]] | None = None
) -> bytes:
    """What a `Rehearsal` makes of its inputs, computed independently of steps and checkpoints.

    Args:
        content: Bytes.
        style: Likewise.
        iterations: How many.
        steering: New weights by the iteration after which they came.
    """
    state = hashlib.sha256(content + style).digest()
    for done in range(iterations):
        if steering and done in steering:
            state = mixed(state, steering[done])
        state = hashlib.sha256(state).digest()
    return state


def mixed(state: bytes, changes: Mapping[str, Any]) -> bytes:
    """The state of a `Rehearsal` under new weights."""
    return hashlib.sha256(state + json.dumps(changes, sort_keys=True).encode()).digest()


def _beginning(run: Run) -> bytes:
    return hashlib.sha256(run.content.read_bytes() + b"".join(style.read_bytes() for style in run.styles)).digest()


def _restored(checkpoint: bytes) -> tuple[int, bytes]:
    iteration, colon, state = checkpoint.partition(b":")
    if not colon or len(state) != 32:
        raise CheckpointError("the checkpoint is damaged")
    return int(iteration), state


class _Scripted(Rehearsal):
    """A backend of the script's slots, on which nothing is computed."""

    def __init__(self, script: ScriptedExecutor) -> None:
        super().__init__(slots=script.slots())
        self._script = script

    def estimate(self, run: Run, device: str) -> Estimate:
        slot = next((slot for slot in self._slots if slot.device == device), None)
        return asyncio.run(self._script.estimate(run, slot))


class ScriptedLocal(LocalExecutor):
    """The executor in threads, in which nothing happens but what a script says."""

    def __init__(self, locks: Path, settings: StudioSettings, script: ScriptedExecutor) -> None:
        super().__init__(locks, settings, _Scripted(script))
        self._script = script
        self._loop = asyncio.get_running_loop()

    async def estimate(self, run: Run, slot: Slot | None) -> Estimate:
        return await asyncio.to_thread(self._backend.estimate, run, slot.device if slot else "")

    def _follow(self, work: Any, run: Run, checkpoint: bytes | None) -> None:
        asyncio.run_coroutine_threadsafe(self._hand_on(work, run), self._loop).result()

    async def _hand_on(self, work: Any, run: Run) -> None:
        if work.stop.is_set():  # cancelled before its script began
            return
        async with contextlib.aclosing(self._script.start(run, work.slot)) as updates:
            async for update in updates:
                work.mailbox.put(update)

    def cancel(self, job_id: str, attempt: int, *, keep: bool) -> None:
        super().cancel(job_id, attempt, keep=keep)
        self._script.cancel(job_id, attempt, keep=keep)

    def steer(self, job_id: str, attempt: int, wish: Wish) -> None:
        super().steer(job_id, attempt, wish)
        self._script.steer(job_id, attempt, wish)

    async def close(self) -> None:
        await super().close()
        await self._script.close()


@contextlib.asynccontextmanager
async def open_local_studio(
    data: Path, script: ScriptedExecutor, settings: StudioSettings = QUICK
) -> AsyncIterator[Studio]:
    """As `open_studio`, with what the script says happening in threads."""
    (data / "locks").mkdir(parents=True, exist_ok=True)
    async with Studio.open(data, settings, ScriptedLocal(data / "locks", settings, script)) as studio:
        yield studio


@contextlib.asynccontextmanager
async def open_studio(data: Path, executor: Executor, settings: StudioSettings = QUICK) -> AsyncIterator[Studio]:
    """A studio that must open, work and close in reasonable time."""
    async with Studio.open(data, settings, executor) as studio:
        yield studio


async def submit(studio: Studio, owner: str = "lab", settings: Settings = SMALL, **options: object) -> Job:
    """A job of two small inputs."""
    content = await studio.add_input(owner, b"content")
    style = await studio.add_input(owner, b"style")
    return await studio.submit(owner, content, [style], settings, **options)  # type: ignore[arg-type]
