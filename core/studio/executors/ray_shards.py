"""Workers of a Ray cluster for the parts of one huge picture; see `core.shards`.

A run computes the first part itself and asks the cluster for a worker for each of the others. It takes what is free
within a while and no more: fewer workers make the same picture, more slowly, and two runs can't wait for each other.
Workers end with the run that asked for them, however it ends.

Pictures travel as float32 arrays through Ray's object store: to each worker the rows that it needs, and rows of the
gradient back. What all workers get alike is put there once.

Ray is imported within: its import changes the environment of the process.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from core import devices, weights
from core.config import Settings
from core.shards import Answer, Evaluator, Key, Shards, Slab, ThreadWorker, Worker, with_tensors
from core.studio.jobs import LostRunError, Run, StudioSettings
from core.tiles import Statistics
from core.transfer import network_of
from core.weights import Weights

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]
Sums = tuple[Mapping[str, Array], Mapping[str, int], float]

_LEVELS_BELOW = 2
"""Of a picture that is spread, so many of the next coarser levels are, too; those below have 1 of 64 of its pixels."""
_STARTING_SECONDS = 20.0
"""An actor may take so long to start; before, a worker that has just become idle may have to end."""


# ── On the workers' nodes ────────────────────────────────────────────────────────────────────────────────────────────


class ShardActor:
    """An evaluator that speaks arrays.

    Args:
        settings: Of the run.
        weights: Of its network.
    """

    def __init__(self, settings: Settings, weights: Weights) -> None:
        import ray  # noqa: PLC0415

        gpu = bool(ray.get_gpu_ids())
        self._evaluator = Evaluator(network_of(settings, weights, devices.resolve("cuda:0" if gpu else "cpu")))

    def ready(self) -> None:
        """Returns once the actor is there."""

    def hold(self, key: Key, slab: Slab) -> None:
        """See `Evaluator`."""
        self._evaluator.hold(key, slab)

    def statistics(self, key: Key, rows: Array) -> Sums:
        """See `Evaluator`."""
        found = self._evaluator.statistics(key, _tensor(rows))
        return {layer: _array(gram) for layer, gram in found.grams.items()}, dict(found.positions), found.content

    def gradient(self, key: Key, derivatives: Mapping[str, Array], content_weight: float) -> Array:
        """See `Evaluator`."""
        tensors = {layer: _tensor(value) for layer, value in derivatives.items()}
        return _array(self._evaluator.gradient(key, tensors, content_weight))


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array


def _tensor(array: Array) -> Tensor:
    """A copy: arrays from the object store may not be written to."""
    return torch.from_numpy(array.copy())


# ── Where the run is ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Broadcast:
    """Puts what several workers get alike into the object store once."""

    def __init__(self) -> None:
        self._latest: tuple[Mapping[str, Tensor], Any] | None = None

    def ref(self, tensors: Mapping[str, Tensor]) -> Any:
        """Where they are in the store."""
        import ray  # noqa: PLC0415

        if self._latest is None or self._latest[0] is not tensors:
            self._latest = tensors, ray.put({layer: _array(tensor) for layer, tensor in tensors.items()})
        return self._latest[1]


class _Answer(Generic[T]):
    """What an actor will have found."""

    def __init__(self, ref: Any, unpack: Callable[[Any], T]) -> None:
        self._ref = ref
        self._unpack = unpack

    def result(self) -> T:
        """See `core.shards.Answer`.

        Raises:
            LostRunError: The actor is not there any more.
        """
        import ray  # noqa: PLC0415

        try:
            return self._unpack(ray.get(self._ref))
        except ray.exceptions.RayActorError as error:
            raise LostRunError("a worker that computed a part of the picture went away", machine=True) from error


class RayWorker:
    """A worker that is an actor.

    Args:
        actor: A `ShardActor`.
        broadcast: Shared by the workers of a run.
    """

    def __init__(self, actor: "ActorHandle[Any]", broadcast: _Broadcast) -> None:
        self._actor = actor
        self._broadcast = broadcast

    def hold(self, key: Key, slab: Slab) -> Answer[None]:
        """See `Evaluator`; of a tensor that is a view, only what it shows travels."""
        objective = with_tensors(slab.objective, lambda tensor: tensor.detach().cpu().clone())
        return _Answer(self._actor.hold.remote(key, replace(slab, objective=objective)), _nothing)

    def statistics(self, key: Key, rows: Tensor) -> Answer[Statistics]:
        """See `Evaluator`."""
        return _Answer(self._actor.statistics.remote(key, _array(rows)), _statistics)

    def gradient(self, key: Key, derivatives: Mapping[str, Tensor], content_weight: float) -> Answer[Tensor]:
        """See `Evaluator`."""
        shared = self._broadcast.ref(derivatives)
        return _Answer(self._actor.gradient.remote(key, shared, content_weight), _tensor)

    def close(self) -> None:
        """Frees its device at once."""
        import ray  # noqa: PLC0415

        ray.kill(self._actor)


def _nothing(_: Any) -> None:
    """Of `hold` only the end is waited for."""


def _statistics(sums: Sums) -> Statistics:
    grams, positions, content = sums
    return Statistics({layer: _tensor(gram) for layer, gram in grams.items()}, positions, content)


@contextlib.contextmanager
def shards(studio: StudioSettings, run: Run, device: str, remark: Callable[[str], None]) -> Iterator[Shards | None]:
    """The shards of a run that computes in an actor, for as long as it does; none where it isn't to be spread.

    Args:
        studio: Says from which level on pictures are spread, and over how many workers.
        run: Which is to be computed.
        device: Of the actor.
        remark: Takes what the owner should know.

    Raises:
        WeightsError: The network isn't there.
    """
    settings, ray = run.settings, studio.ray
    if ray.spread_level is None or settings.levels < ray.spread_level:
        yield None
        return
    loaded = weights.load(weights.choose(settings.network), studio.weights)
    with workers(
        settings,
        loaded,
        device=devices.resolve(device),
        others=ray.spread_workers - 1,
        resources=_own_resources(),
        patience=ray.idle_seconds + _STARTING_SECONDS,
    ) as team:
        remark(f"This picture is computed by {len(team)} of {ray.spread_workers} workers together.")
        yield Shards(team, ray.spread_workers, max(0, ray.spread_level - _LEVELS_BELOW))


def _own_resources() -> Mapping[str, float]:
    """What Ray gave the actor that this is called in; each further worker gets as much."""
    import ray  # noqa: PLC0415

    return dict(ray.get_runtime_context().get_assigned_resources())


@contextlib.contextmanager
def workers(
    settings: Settings,
    weights: Weights,
    *,
    device: torch.device,
    others: int,
    resources: Mapping[str, float],
    patience: float,
) -> Iterator[Sequence[Worker]]:
    """Workers for the parts of one run's picture: one on its own device, and more on the cluster.

    Args:
        settings: Of the run.
        weights: Of its network; they reach each node once.
        device: Where the run itself computes.
        others: How many to ask the cluster for.
        resources: CPUs (`CPU`) and GPUs (`GPU`) of each.
        patience: Seconds to wait for them; those that aren't there by then are done without.
    """
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(contextlib.closing(ThreadWorker(network_of(settings, weights, device))))
        broadcast = _Broadcast()
        actors = _actors(settings, weights, others, resources, patience)
        yield [own, *(stack.enter_context(contextlib.closing(RayWorker(actor, broadcast))) for actor in actors)]


def _actors(
    settings: Settings, weights: Weights, count: int, resources: Mapping[str, float], patience: float
) -> "list[ActorHandle[Any]]":
    """As many actors as there is room for now."""
    import ray  # noqa: PLC0415

    kind: Any = ray.remote(num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))(ShardActor)
    parcel = ray.put(weights)
    asked = [kind.remote(settings, parcel) for _ in range(count)]
    signs = {actor.ready.remote(): actor for actor in asked}
    ready, late = ray.wait(list(signs), num_returns=count, timeout=patience) if signs else ([], [])
    for sign in late:
        ray.kill(signs[sign])
    if late:
        log.info("a picture that is spread gets %d of %d further workers", len(ready), count)
    return [signs[sign] for sign in ready]
