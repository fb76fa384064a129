"""Stand-ins for what computes that can be sent to the workers of a Ray cluster, and a cluster on this machine."""

import asyncio
import contextlib
import importlib.util
import os
import pickle
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest

from core.errors import ImageError
from core.studio import Studio
from core.studio.executors.local import Backend, Moment
from core.studio.executors.on_ray import RayExecutor
from core.studio.executors.ray_cluster import Node
from core.studio.executors.ray_worker import Worker, paths_of
from core.studio.jobs import Estimate, Output, RaySettings, Run, Slot, StudioSettings, Update, Wish
from core.studio.scheduler import Executor
from tests.studio_doubles import QUICK, Rehearsal, ScriptedExecutor

T = TypeVar("T")

installed = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray isn't installed (pip install -e '.[ray]')"
)
STORE_BYTES = 80 * 2**20
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
HEALTH: Mapping[str, int] = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""So that a machine that went away is missed after a second, not after half a minute."""


# ── On the nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stage:
    """A directory by which a test directs what happens on the nodes, and sees it. Also makes the backends there."""

    directory: Path
    steps: int = 40
    step_seconds: float = 0.0

    def __call__(self, settings: StudioSettings) -> Backend:
        self.note("opened", str(settings.weights or ""))
        return Staged(self)

    # In tests

    def hold(self, iteration: int) -> None:
        """Whoever is about to begin this iteration waits."""
        (self.directory / f"hold {iteration}").touch()

    def let_go(self, iteration: int) -> None:
        (self.directory / f"hold {iteration}").unlink()

    def notes(self, kind: str) -> list[list[str]]:
        """What was noted of a kind, in order; every note ends with the process's id."""
        lines = self._book.read_text().splitlines() if self._book.exists() else []
        return [line.split("\t")[1:] for line in lines if line.split("\t")[0] == kind]

    def held(self) -> Counter[str]:
        """How often a run came to an iteration at which it had to wait, by the hash of its content."""
        return Counter(content for content, _ in self.notes("held"))

    # On the nodes

    def note(self, kind: str, *words: str) -> None:
        with self._book.open("a") as book:
            book.write("\t".join((kind, *words, str(os.getpid()))) + "\n")

    def wait(self, run: Run, iteration: int) -> None:
        path = self.directory / f"hold {iteration}"
        if path.exists():
            self.note("held", name_of(run))
        while path.exists():
            time.sleep(0.005)

    @property
    def _book(self) -> Path:
        return self.directory / "book"


class Staged(Rehearsal):
    """A rehearsal on a stage; some contents make trouble."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.steps, stage.step_seconds, hook=self._act)
        self._stage = stage

    def estimate(self, run: Run, device: str) -> Estimate:
        self._stage.note("estimated", name_of(run))
        return super().estimate(run, device)

    def compute(
        self, run: Run, device: str, checkpoint: bytes | None, remark: Callable[[str], None]
    ) -> Generator[Moment, None, Output]:
        files = [
            path.read_bytes() for path in paths_of(run) if path.exists() and path not in (run.checkpoint, run.frames)
        ]
        self._stage.note("began", name_of(run), sha256(b"|".join(files)).hexdigest(), str(len(checkpoint or b"")))
        output = yield from super().compute(run, device, checkpoint, remark)
        self._stage.note("ended", name_of(run))
        return output

    def _act(self, run: Run, iteration: int) -> None:
        self._stage.wait(run, iteration)
        if iteration != 20:
            return
        match run.content.read_bytes().split()[0]:
            case b"deadly":
                os._exit(1)
            case b"poisonous":
                self.poison = True
                raise RuntimeError("an illegal memory access was encountered")
            case b"faulty":
                raise ZeroDivisionError("of the node's own")
            case b"greedy" if run.settings.max_memory is None:
                raise MemoryError


class _Refusing(Rehearsal):
    def estimate(self, run: Run, device: str) -> Estimate:
        raise ImageError("the picture is torn", "Glue it")


def refusing(settings: StudioSettings) -> Backend:
    """A backend that takes no picture."""
    return _Refusing()


def name_of(run: Run) -> str:
    """A run by what its content is."""
    return sha256(run.content.read_bytes()).hexdigest()[:12]


# ── The cluster ──────────────────────────────────────────────────────────────────────────────────────────────────────


class SmallCluster:
    """A head without a slot, and nodes of one CPU each."""

    def __init__(self, directory: Path) -> None:
        from ray.cluster_utils import Cluster

        self._directory = directory
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(
            initialize_head=True, head_node_args=head | {"temp_dir": str(directory), "_system_config": dict(HEALTH)}
        )
        self._caches: dict[Any, Path] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        """Starts a node with a cache of its own."""
        cache = Path(tempfile.mkdtemp(dir=self._directory))
        environment = {"PYRAMID_STYLE_CACHE": str(cache)}
        node = self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, env_vars=environment)
        self._caches[node] = cache
        return node

    def kill(self, node: Any) -> None:
        """As when its plug is pulled."""
        self._cluster.remove_node(node, allow_graceful=False)

    def sent(self, node: Any) -> dict[str, int]:
        """The files that a node keeps, with the times of their making."""
        return {path.name: path.stat().st_mtime_ns for path in (self._caches[node] / "sent").glob("*[0-9a-f]")}

    def node(self, node_id: str) -> Any:
        return next(node for node in self._caches if node.node_id == node_id)

    def close(self) -> None:
        self._cluster.shutdown()


def _patiently(start: Callable[[], T]) -> T:
    """Tries again where the machine was so busy that Ray gave up on its own processes."""
    for _ in range(2):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@contextlib.contextmanager
def small_cluster(nodes: int) -> Iterator[SmallCluster]:
    """A cluster to which this process is connected."""
    import ray

    directory = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: sockets lie in it
    cluster = _patiently(partial(SmallCluster, directory))
    try:
        for _ in range(nodes):
            _patiently(cluster.add)
        ray.init(cluster.address, **QUIET)
        yield cluster
    finally:
        ray.shutdown()
        cluster.close()
        shutil.rmtree(directory, ignore_errors=True)


# ── Scripts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Line:
    """From a worker to the test that decides its every step: calls go one way, updates the other.

    On a worker, it opens itself as its own backend.
    """

    socket: Path
    slot: Slot

    def __call__(self, settings: StudioSettings) -> Any:
        return self

    async def call(self, *words: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        send(writer, words)
        return reader, writer

    def estimate(self, run: Run, device: str) -> Estimate:
        """For the head itself, where there is no worker; called in a thread."""
        return asyncio.run(ScriptedLocal(self).estimate(run, None))


class ScriptedLocal:
    """What a worker drives in place of its `LocalExecutor`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._writers: dict[tuple[str, int], asyncio.StreamWriter] = {}

    def slots(self) -> tuple[Slot, ...]:
        return (self._line.slot,)

    async def estimate(self, run: Run, slot: Slot | None) -> Estimate:
        reader, writer = await self._line.call("estimate", run, slot)
        answer: Estimate = await receive(reader)
        writer.close()
        return answer

    async def start(self, run: Run, slot: Slot) -> AsyncGenerator[Update, None]:
        reader, writer = await self._line.call("start", run, slot)
        self._writers[run.job_id, run.attempt] = writer
        try:
            while (update := await receive(reader)) is not None:
                yield update
        finally:
            del self._writers[run.job_id, run.attempt]
            writer.close()

    def cancel(self, job_id: str, attempt: int, *, keep: bool) -> None:
        send(self._writers[job_id, attempt], ("cancel", job_id, attempt, keep))

    def steer(self, job_id: str, attempt: int, wish: Wish) -> None:
        send(self._writers[job_id, attempt], ("steer", job_id, attempt, wish))


class ScriptedWorker(Worker):
    def _executor(self, settings: StudioSettings) -> Any:
        return ScriptedLocal(self._backend)  # type: ignore[arg-type]


class ScriptedRay(RayExecutor):
    """The cluster's executor with real workers, on which nothing happens but what a script says."""

    _worker = ScriptedWorker

    def __init__(self, locks: Path, settings: StudioSettings, script: ScriptedExecutor, socket: Path) -> None:
        self._script = script
        self._socket = socket
        super().__init__(locks, settings, Line(socket, Slot("head", "head", "head")))

    def _places(self, node: Node) -> tuple[str, ...]:
        return tuple(slot.name for slot in self._script.slots())

    def _slots_of(self, site: Any, kind: str) -> tuple[Slot, ...]:
        return tuple(self._script.slots())

    def _kind_of(self, staff: Any) -> str | None:
        return self._slot(staff.slot).kind

    def _opener(self, slot: str) -> Line:
        return Line(self._socket, self._slot(slot))

    def _slot(self, name: str) -> Slot:
        return next(slot for slot in self._script.slots() if slot.name == name)

    async def close(self) -> None:
        await super().close()
        await self._script.close()


@contextlib.asynccontextmanager
async def open_studio(data: Path, script: Executor, settings: StudioSettings = QUICK) -> AsyncIterator[Studio]:
    """As `studio_doubles.open_studio`, with what the script says happening on the workers of a Ray cluster."""
    assert isinstance(script, ScriptedExecutor)
    (data / "locks").mkdir(parents=True, exist_ok=True)
    changes = {"executor": "ray", "ray": RaySettings(cpus=1, gpus=0, poll_seconds=0.05, idle_seconds=1)}
    settings = settings.model_copy(update=changes)
    with tempfile.TemporaryDirectory(prefix="script-") as directory:  # a short path
        socket = Path(directory) / "line"
        async with await asyncio.start_unix_server(partial(_answer, script), socket):
            executor = await asyncio.to_thread(ScriptedRay, data / "locks", settings, script, socket)
            async with Studio.open(data, settings, executor) as studio:
                yield studio


async def _answer(script: ScriptedExecutor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One call from a worker."""
    kind, run, slot = await receive(reader)
    with contextlib.closing(writer):
        if kind == "estimate":
            send(writer, await _outcome(script.estimate(run, slot)))
            return
        listening = asyncio.create_task(_listen(script, reader))
        telling = asyncio.create_task(_tell(script, run, slot, writer))
        await asyncio.wait({listening, telling}, return_when=asyncio.FIRST_COMPLETED)
        for task in (listening, telling):
            task.cancel()
        await asyncio.gather(listening, telling, return_exceptions=True)


async def _outcome(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    except Exception as error:
        return error


async def _listen(script: ScriptedExecutor, reader: asyncio.StreamReader) -> None:
    """Until the worker hangs up, or is dead."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            kind, job_id, attempt, what = await receive(reader)
            if kind == "cancel":
                script.cancel(job_id, attempt, keep=what)
            else:
                script.steer(job_id, attempt, what)


async def _tell(script: ScriptedExecutor, run: Run, slot: Slot, writer: asyncio.StreamWriter) -> None:
    try:
        async with contextlib.aclosing(script.start(run, slot)) as updates:
            async for update in updates:
                send(writer, update)
        send(writer, None)
    except Exception as error:
        send(writer, error)
    await writer.drain()


def send(writer: asyncio.StreamWriter, what: Any) -> None:
    data = pickle.dumps(what)
    writer.write(len(data).to_bytes(8, "big") + data)


async def receive(reader: asyncio.StreamReader) -> Any:
    """What was sent; an error is raised."""
    what = pickle.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(8), "big")))
    if isinstance(what, Exception):
        raise what
    return what


@contextlib.contextmanager
def ray_here(cpus: int) -> Iterator[None]:
    """A Ray of this machine alone, to which this process is connected."""
    import ray

    ray.init("local", num_cpus=cpus, object_store_memory=STORE_BYTES, include_dashboard=False, **QUIET)
    yield
    ray.shutdown()
