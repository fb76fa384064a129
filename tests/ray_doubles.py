"""Stand-ins for what computes that can be sent to the workers of a Ray cluster, and a cluster on this machine."""

import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from core.studio.executors.local import Backend, Moment
from core.studio.executors.ray_worker import paths_of
from core.studio.jobs import Estimate, Output, Run, StudioSettings
from tests.studio_doubles import Rehearsal

STORE_BYTES = 80 * 2**20
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


@contextlib.contextmanager
def small_cluster(nodes: int) -> Iterator[SmallCluster]:
    """A cluster to which this process is connected."""
    import ray

    directory = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: sockets lie in it
    cluster = SmallCluster(directory)
    try:
        for _ in range(nodes):
            cluster.add()
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.close()
        shutil.rmtree(directory, ignore_errors=True)
