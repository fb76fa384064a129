"""One picture over several devices: its rows are shared out for every evaluation, and the result is that of one device.

    where the run is                                workers, each with some of the rows
    the picture ───────────── rows ──────────────▶ forward: sums over a part's positions
    their total ◀─────────── Gram matrices ─────── (and the content's distance)
    style loss, derivative ── Gram matrices ─────▶ backward: gradient of the rows
    gradient, rows added ◀─── rows ───────────────

Geometry: a level is cut into parts at multiples of the deepest layer's stride, about equal in height. A part's layers
depend on more rows of the picture than its own: on 70 more on either side down to VGG-19's relu5_1, fewer at the
picture's own borders (`tiles.rows_needed` counts them). Two parts read those rows, and the gradients that they find
there are added. Every position of every layer counts in one part alone, so the sums are the whole picture's.

The price of the overlap: every cut costs as much as 91 rows more of the picture (the deeper blocks need fewer than
70 on either side). Exchanging the borders of every block between neighbours instead would save that work, for ten
messages between neighbours, one after the other, in place of four between the run and its workers; `docs/scale.md` has
the arithmetic of where either stops paying.

How a level is cut belongs to the run, as its settings do; how many workers share the parts does not. Sums are taken in
the order of the parts, so that fewer workers make the same picture, more slowly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from core import tiles
from core.features import Network
from core.tiles import Evaluation, Objective, Part, Passes, Statistics, Tiling

Key = tuple[int, int]
"""A level, and the number of one of its parts."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Slab:
    """All that a worker holds of one part of one level, from one evaluation to the next.

    Attributes:
        part: The rows whose positions count.
        rows: The rows of the picture that they depend on.
        objective: Of the level, with the content of the part alone; its style loss is taken elsewhere.
        tiling: How it is computed.
    """

    part: Part
    rows: tuple[int, int]
    objective: Objective
    tiling: Tiling


# ── What computes ────────────────────────────────────────────────────────────────────────────────────────────────────


class Worker:
    """One device's side: evaluates the slabs that it holds.

    Args:
        network: The same as where the run is, on the worker's device.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._slabs: dict[Key, Slab] = {}
        self._passes: dict[Key, Passes] = {}

    def hold(self, key: Key, slab: Slab) -> None:
        """Keeps a slab, in place of the one before; its tensors may be on any device."""
        self._slabs[key] = replace(slab, objective=_on(self._network.device, slab.objective))

    def statistics(self, key: Key, rows: Tensor) -> Statistics:
        """Forward: the sums over a part, given its slab's rows [1, 3, rows, W] of the picture."""
        slab, picture = self._slabs[key], rows.to(self._network.device)
        self._passes[key] = Passes(self._network, picture, slab.objective, slab.tiling, slab.part)
        return self._passes[key].statistics()

    def gradient(self, key: Key, derivatives: Mapping[str, Tensor], content_weight: float) -> Tensor:
        """Back, once after `statistics`: the gradient with respect to those rows; see `Passes.gradient`."""
        here = {layer: value.to(self._network.device) for layer, value in derivatives.items()}
        return self._passes.pop(key).gradient(here, content_weight)


def _on(device: torch.device, objective: Objective) -> Objective:
    content = {
        layer: replace(
            target,
            features=target.features.to(device),
            metric=None if target.metric is None else target.metric.to(device),
            guide=None if target.guide is None else target.guide.to(device),
        )
        for layer, target in objective.content.items()
    }
    guides = {layer: guide.to(device) for layer, guide in objective.guides.items()}
    return replace(objective, content=content, guides=guides)


class Workers(Protocol):
    """Several workers, wherever they are, with the slabs of every level shared out among them."""

    def hold(self, level: int, slabs: Sequence[Slab]) -> None:
        """Gives each slab of a level to a worker, in place of those before."""

    def statistics(self, level: int, rows: Sequence[Tensor]) -> Iterable[Statistics]:
        """The sums of every slab, in order, given their rows; all workers compute at the same time."""

    def gradients(self, level: int, derivatives: Mapping[str, Tensor], content_weight: float) -> Iterable[Tensor]:
        """The gradients of every slab's rows, in order; likewise."""

    def close(self) -> None:
        """Lets the workers go."""


class ThreadWorkers:
    """Workers in threads of this process, one for each of several devices.

    Args:
        networks: The run's network on every device.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._workers = [Worker(network) for network in networks]
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"shard {n}") for n in range(len(networks))]
        self._parts: dict[int, int] = {}

    def hold(self, level: int, slabs: Sequence[Slab]) -> None:
        """See `Workers`."""
        self._parts[level] = len(slabs)
        list(self._ask(level, lambda worker, number: worker.hold((level, number), slabs[number])))

    def statistics(self, level: int, rows: Sequence[Tensor]) -> Iterator[Statistics]:
        """See `Workers`."""
        return self._ask(level, lambda worker, number: worker.statistics((level, number), rows[number]))

    def gradients(self, level: int, derivatives: Mapping[str, Tensor], content_weight: float) -> Iterator[Tensor]:
        """See `Workers`."""
        return self._ask(level, lambda worker, number: worker.gradient((level, number), derivatives, content_weight))

    def _ask(self, level: int, question: Callable[[Worker, int], T]) -> Iterator[T]:
        """Asks about every part, all at once; part n is worker n's, and round again where there are more."""
        count = len(self._workers)
        numbers = range(self._parts[level])
        asked = [self._threads[n % count].submit(question, self._workers[n % count], n) for n in numbers]
        return (future.result() for future in asked)

    def close(self) -> None:
        """See `Workers`."""
        for thread in self._threads:
            thread.shutdown()


# ── Where the run is ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Shards:
    """Which levels of a run are spread over workers, and how.

    Attributes:
        workers: Who computes.
        parts: Into how many each level is cut; fewer where it has not so many rows.
        from_level: Coarser levels are computed where the run is.
    """

    workers: Workers
    parts: int
    from_level: int = 0


class SpreadLevel:
    """One level of a run, evaluated by workers.

    Args:
        shards: Who computes, and in how many parts.
        level: From 0, the coarsest.
        height: Of its picture.
        network: Of the run.
        tiling: How each part is computed.
    """

    def __init__(self, shards: Shards, level: int, height: int, network: Network, tiling: Tiling) -> None:
        self._workers = shards.workers
        self._count = shards.parts
        self._level = level
        self._height = height
        self._network = network
        self._tiling = tiling
        self._slabs: tuple[Slab, ...] = ()
        self._held: Objective | None = None

    def evaluate(self, picture: Tensor, objective: Objective) -> Evaluation:
        """As `tiles.loss_and_gradient`, to rounding: loss and gradient at `picture` [1, 3, H, W]."""
        self._share_out(objective)
        rows = [picture[:, :, first:last] for first, last in (slab.rows for slab in self._slabs)]
        statistics = total(self._workers.statistics(self._level, rows), picture.device)
        style, derivatives = tiles.style_derivatives(objective, statistics)
        gradient = torch.zeros_like(picture)
        found = self._workers.gradients(self._level, derivatives, objective.content_weight)
        for slab, part in zip(self._slabs, found, strict=True):
            first, last = slab.rows
            gradient[:, :, first:last] += part.to(gradient.device)
        return Evaluation(style, statistics.content, gradient)

    def _share_out(self, objective: Objective) -> None:
        """Sends the workers what they hold, once for all evaluations: weights may change, targets don't."""
        if self._held is not None and _has_the_targets_of(objective, self._held):
            return
        stride = 1 << (len(self._network.blocks(objective.layers)) - 1)
        self._slabs = tuple(self._slab(objective, part) for part in cut(self._height, self._count, stride))
        self._workers.hold(self._level, self._slabs)
        self._held = objective

    def _slab(self, objective: Objective, part: Part) -> Slab:
        rows = tiles.rows_needed(self._network, objective.layers, part)
        return Slab(part, rows, replace(objective.part(part), style_loss=_taken_elsewhere), self._tiling)


def _has_the_targets_of(objective: Objective, other: Objective) -> bool:
    pairs = ((objective.content, other.content), (objective.guides, other.guides))
    return all(one is another or not (one or another) for one, another in pairs)


def cut(height: int, count: int, stride: int) -> list[Part]:
    """At most `count` parts of about equal height, each at least one position of the deepest layer high.

    Args:
        height: Of the picture.
        count: How many are wanted.
        stride: Rows of the picture to one position of the deepest layer.
    """
    positions = height // stride
    count = max(1, min(count, positions))
    edges = [*(number * positions // count * stride for number in range(count)), height]
    return [Part(first, last, height) for first, last in pairwise(edges)]


def total(parts: Iterable[Statistics], device: torch.device) -> Statistics:
    """The sums of all parts, in their order."""
    grams: dict[str, Tensor] = {}
    positions: dict[str, int] = {}
    content = 0.0
    for part in parts:
        for layer, gram in part.grams.items():
            here = gram.to(device)
            grams[layer] = grams[layer] + here if layer in grams else here
            positions[layer] = positions.get(layer, 0) + part.positions[layer]
        content += part.content
    return Statistics(grams, positions, content)


def _taken_elsewhere(_: Mapping[str, Tensor], __: Mapping[str, int]) -> Tensor:
    raise NotImplementedError("a part of a picture has no style loss")
