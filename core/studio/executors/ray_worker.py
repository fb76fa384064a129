"""What of a Ray cluster's executor runs on its nodes: an actor that computes one job at a time.

The actor drives the very same `LocalExecutor` that computes in the program itself; what is added here is how files get
to the node. They travel as *parcels*, bytes in Ray's object store under the hash of what is in them. Pictures are kept
in a directory of the actor's own only while a run needs them. Network weights are kept on the node, so that they come
to it once.

Every node sees the networks that the head has, and no others: `auto` must mean the same wherever a job goes on.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import psutil
from filelock import AsyncFileLock, FileLock, Timeout

import core
from core.studio.executors.local import Backend, LocalExecutor
from core.studio.jobs import Checkpoint, Estimate, Run, StudioSettings, Update, Wish

if TYPE_CHECKING:
    from ray import ObjectRef

OpenBackend = Callable[[StudioSettings], Backend]

CACHE_VARIABLE = "PYRAMID_STYLE_CACHE"
"""As in `core.weights`, whose import takes the seconds that torch's does."""
_DIRECTORY = "pyramid-style-worker-"
_ALIVE = "alive.lock"
_GIVEN = "given"
"""The stem of a weights file that the operator names; no network is called so."""


@dataclass(frozen=True)
class Parcel:
    """A file on its way."""

    sha256: str
    ref: "ObjectRef[bytes]"


@dataclass(frozen=True)
class Order:
    """A run, and what belongs to it.

    Attributes:
        token: Names this stretch of computing; a job that is paused and resumed runs twice in one attempt.
        run: With paths as they are at the head.
        files: Parcels by these paths; what isn't there at the head isn't here either.
        weights: Files of networks by their names.
        progress_seconds: How often to tell its progress.
        preview_seconds: How often to show its picture.
    """

    token: str
    run: Run
    files: Mapping[Path, Parcel]
    weights: Mapping[str, Parcel]
    progress_seconds: float
    preview_seconds: float


@dataclass(frozen=True)
class Survey:
    """What a worker says of itself."""

    version: str
    kind: str
    """Of its device; nodes whose jobs take the same time, and have the same memory, have the same."""


def paths_of(run: Run) -> list[Path]:
    """All files that a run names."""
    values = [getattr(run, field.name) for field in fields(run)]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Path)]


def moved(run: Run, places: Mapping[Path, Path]) -> Run:
    """The run with other paths in place of its own."""

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(move(item) for item in value)
        return places[value] if isinstance(value, Path) else value

    return replace(run, **{field.name: move(getattr(run, field.name)) for field in fields(run)})


def given_name(path: Path) -> str:
    """What a weights file that the operator names is called on the nodes."""
    return f"{_GIVEN}{path.suffix}"


class Worker:
    """The actor, with the device that Ray gave it.

    Args:
        settings: Of the studio.
        open_backend: Makes what computes.
    """

    def __init__(self, settings: StudioSettings, open_backend: OpenBackend) -> None:
        _sweep()
        self._directory = Path(tempfile.mkdtemp(prefix=_DIRECTORY))
        self._alive = FileLock(self._directory / _ALIVE, thread_local=False)
        self._alive.acquire(timeout=0)
        self._shelf = _shelf()
        os.environ[CACHE_VARIABLE] = str(self._directory)  # of this process, which is the actor's alone
        self._settings = self._at_home(settings)
        self._backend = open_backend(self._settings)
        self._local = self._executor(self._settings)
        self._running: dict[str, tuple[Run, LocalExecutor]] = {}
        self._unwanted: set[str] = set()
        self._early: dict[str, list[Wish]] = {}

    def _at_home(self, settings: StudioSettings) -> StudioSettings:
        """The settings for one device; weights lie in a directory of the actor's own, where nothing else is found."""
        given = settings.weights and self._directory / given_name(settings.weights)
        devices = () if settings.ray.gpus else ("cpu",)
        return settings.model_copy(update={"devices": devices, "slots_per_device": 1, "weights": given})

    def _executor(self, settings: StudioSettings) -> LocalExecutor:
        return LocalExecutor(self._directory, settings, self._backend)

    async def survey(self) -> Survey:
        """What it is."""
        slot = self._local.slots()[0]
        memory = f", {psutil.virtual_memory().total / 2**30:.0f} GiB" if slot.device == "cpu" else ""
        return Survey(core.__version__, slot.kind + memory)

    async def endure(self) -> None:
        """Never returns: whoever waits for it hears when the actor dies."""
        await asyncio.Event().wait()

    async def estimate(self, order: Order) -> Estimate:
        """What a run would need here."""
        with self._room() as room:
            return await self._local.estimate(await self._unpacked(order, room), self._local.slots()[0])

    async def run(self, order: Order) -> AsyncGenerator[Update, None]:
        """Computes. Ray takes the next update only when the last was fetched; until then only the latest is kept."""
        paces = {"progress_seconds": order.progress_seconds, "preview_seconds": order.preview_seconds}
        executor = self._executor(self._settings.model_copy(update=paces))
        with self._room() as room:
            run = await self._unpacked(order, room)
            if order.token in self._unwanted:
                return
            run = replace(run, steering=(*run.steering, *self._early.pop(order.token, ())))
            self._running[order.token] = run, executor
            try:
                async with contextlib.aclosing(executor.start(run, executor.slots()[0])) as updates:
                    async for update in updates:
                        if isinstance(update, Checkpoint):
                            await asyncio.to_thread(_keep, run, update)
                        yield update
            finally:
                del self._running[order.token]

    async def cancel(self, token: str, *, keep: bool) -> None:
        """Ends a run, also one that hasn't begun yet."""
        self._unwanted.add(token)
        if token in self._running:
            run, executor = self._running[token]
            executor.cancel(run.job_id, run.attempt, keep=keep)

    async def steer(self, token: str, wish: Wish) -> None:
        """Gives a run other weights, also one that hasn't begun yet."""
        if token in self._running:
            run, executor = self._running[token]
            executor.steer(run.job_id, run.attempt, wish)
        else:
            self._early.setdefault(token, []).append(wish)

    async def close(self) -> None:
        """Leaves nothing behind; what is killed without this, `_sweep` finds."""
        self._alive.release()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    # Files

    @contextlib.contextmanager
    def _room(self) -> Iterator[Path]:
        """A directory for the files of one run."""
        with tempfile.TemporaryDirectory(dir=self._directory, ignore_cleanup_errors=True) as room:
            yield Path(room)

    async def _unpacked(self, order: Order, room: Path) -> Run:
        """The run with its files in `room`, and its network where it is looked for."""
        await self._bring_weights(order.weights)
        places = {path: room / str(number) for number, path in enumerate(dict.fromkeys(paths_of(order.run)))}
        for path, parcel in order.files.items():
            await asyncio.to_thread(places[path].write_bytes, await parcel.ref)
        return moved(order.run, places)

    async def _bring_weights(self, parcels: Mapping[str, Parcel]) -> None:
        for name, parcel in parcels.items():
            if not (self._directory / name).exists():
                await _bring(parcel, self._shelf)
                (self._directory / name).symlink_to(self._shelf / parcel.sha256)


def _shelf() -> Path:
    """Where a node keeps weights that were sent to it."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("pyramid-style")) / "sent"


async def _bring(parcel: Parcel, shelf: Path) -> None:
    """Puts a parcel on the shelf, unless it is there; of several workers on a node, one does it and the others wait."""
    place = shelf / parcel.sha256
    await asyncio.to_thread(shelf.mkdir, parents=True, exist_ok=True)
    async with AsyncFileLock(place.with_suffix(".lock")):
        if not place.exists():
            partial = place.with_suffix(".partial")
            await asyncio.to_thread(partial.write_bytes, await parcel.ref)
            partial.replace(place)


def _keep(run: Run, checkpoint: Checkpoint) -> None:
    """Saves a run here as well: where memory runs out, it goes on from there without asking the head."""
    if run.frames and checkpoint.frames is not None:
        run.frames.write_bytes(checkpoint.frames)
    if run.checkpoint:
        run.checkpoint.write_bytes(checkpoint.data)


def _sweep() -> None:
    """Removes what workers left that were killed on this node: users' pictures must not lie about."""
    for directory in Path(tempfile.gettempdir()).glob(_DIRECTORY + "*"):
        alive = FileLock(directory / _ALIVE)
        with contextlib.suppress(OSError, Timeout):  # Timeout: it lives; OSError: another user's, or just removed
            if (directory / _ALIVE).exists():  # else it is just being made
                alive.acquire(timeout=0)
                alive.release()
                shutil.rmtree(directory, ignore_errors=True)
