"""A Ray cluster as this program sees it: connecting, its machines, what it is asked for, and files on their way.

Everything here may block, and belongs into a thread.
"""

import contextlib
import hashlib
import logging
import os
import socket
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from core.errors import DeviceError
from core.studio.executors.ray_worker import Parcel, given_name, paths_of
from core.studio.jobs import RaySettings, Run

_KEPT_BYTES = 512 * 2**20
"""Pictures that stay in the object store in case a next job uses them, too."""
_KEPT_HASHES = 10_000
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray knows it."""

    id: str
    name: str
    cpus: float
    gpus: float


def connect(settings: RaySettings) -> bool:
    """Connects this process to a cluster, unless it is connected; returns whether it was this call that did.

    Raises:
        DeviceError: Ray isn't installed, or there is no cluster at the address.
    """
    address = settings.address
    # Read by Ray while it is imported: a cluster of this machine alone listens on the loopback interface alone.
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its handler would abort this process three seconds after SIGTERM, while running jobs are being saved.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise DeviceError("the executor is ray, and Ray isn't installed", "pip install -e '.[ray]'") from None
    if address not in (None, "auto"):
        _check_address(address)
    if ray.is_initialized():
        return False
    logging.getLogger("ray").setLevel(logging.ERROR)
    local = {"include_dashboard": False, "object_store_memory": settings.store_bytes} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **local)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"the Ray cluster {address or 'here'} can't be used: {reason}", "See docs/cluster.md"
        ) from None
    return True


def _check_address(address: str) -> None:
    """Says at once what Ray would find out after minutes."""
    if "://" in address:
        remedy = "Make this machine a node (ray start --address=HOST:PORT --num-cpus=0) and set the address to auto"
        raise DeviceError(f"'{address}' is the address of a Ray client, and the studio must run on a node", remedy)
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        remedy = "Start the cluster's head first, and give its address as HOST:PORT; see docs/cluster.md"
        raise DeviceError(f"there is no Ray cluster at {address} ({error})", remedy) from None


def nodes() -> list[Node]:
    """The living machines of the cluster."""
    import ray  # noqa: PLC0415

    return [
        Node(
            id=node["NodeID"],
            name=node["NodeManagerHostname"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def request(bundle: dict[str, float], count: int) -> None:
    """Tells the autoscaler for how many of these there should be room at the same time; it goes by the last word."""
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415

    request_resources(bundles=[bundle] * count)


# ── Files on their way ───────────────────────────────────────────────────────────────────────────────────────────────


class Depot:
    """Puts files into Ray's object store, what is the same once; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Parcel, int]] = OrderedDict()
        self._hashes: OrderedDict[tuple[Path, int, int], str] = OrderedDict()

    def files(self, run: Run) -> dict[Path, Parcel]:
        """Those that a run names, as far as they are there."""
        passing = (run.checkpoint, run.frames)
        return {
            path: parcel
            for path in dict.fromkeys(paths_of(run))
            if (parcel := self.passing(path) if path in passing else self.parcel(path))
        }

    def weights(self, network: str, given: Path | None) -> dict[str, Parcel]:
        """The networks that a run may look for, as far as they are here; the compact one is part of the program."""
        from core import weights  # noqa: PLC0415

        wanted = {"auto": ["vgg19"], "compact": []}.get(network, [network])
        here = {path.name: path for path in map(weights.find, wanted) if path}
        if given:
            here[given_name(given)] = given
        return {name: parcel for name, path in here.items() if (parcel := self.parcel(path))}

    def parcel(self, path: Path) -> Parcel | None:
        """A file that others may name as well; none where it isn't there."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            status = path.stat()
            key = (path, status.st_mtime_ns, status.st_size)
            digest = self._hashes.get(key, "")
            if digest not in self._kept:
                data = path.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                self._remember(key, digest)
                if digest not in self._kept:
                    self._kept[digest] = (_put(data, digest), len(data))
            self._kept.move_to_end(digest)
            parcel = self._kept[digest][0]
            self._forget()
            return parcel
        return None

    def passing(self, path: Path) -> Parcel | None:
        """A file that is needed once, such as a checkpoint."""
        try:
            return _put(path.read_bytes(), "")
        except FileNotFoundError:
            return None

    def _remember(self, key: tuple[Path, int, int], digest: str) -> None:
        self._hashes[key] = digest
        while len(self._hashes) > _KEPT_HASHES:
            self._hashes.popitem(last=False)

    def _forget(self) -> None:
        """Lets go of what was used longest ago; what runs still need, their own references keep."""
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)


def _put(data: bytes, digest: str) -> Parcel:
    import ray  # noqa: PLC0415

    return Parcel(digest, ray.put(data))
