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
T_co = TypeVar("T_co", covariant=True)


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


# ── Where it is computed ─────────────────────────────────────────────────────────────────────────────────────────────


class Evaluator:
    """Evaluates the slabs that it holds on one device.

    Args:
        network: The run's, on this device.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._slabs: dict[Key, Slab] = {}
        self._passes: dict[Key, Passes] = {}

    def hold(self, key: Key, slab: Slab) -> None:
        """Keeps a slab, in place of the one before; its tensors may be on any device."""
        here = with_tensors(slab.objective, lambda tensor: tensor.to(self._network.device))
        self._slabs[key] = replace(slab, objective=here)

    def statistics(self, key: Key, rows: Tensor) -> Statistics:
        """Forward: the sums over a part, given its slab's rows [1, 3, rows, W] of the picture."""
        slab, picture = self._slabs[key], rows.to(self._network.device)
        self._passes[key] = Passes(self._network, picture, slab.objective, slab.tiling, slab.part)
        return self._passes[key].statistics()

    def gradient(self, key: Key, derivatives: Mapping[str, Tensor], content_weight: float) -> Tensor:
        """Back, once after `statistics`: the gradient with respect to those rows; see `Passes.gradient`."""
        here = {layer: value.to(self._network.device) for layer, value in derivatives.items()}
        return self._passes.pop(key).gradient(here, content_weight)


def with_tensors(objective: Objective, change: Callable[[Tensor], Tensor]) -> Objective:
    """The objective with all its tensors changed, such as moved elsewhere."""
    content = {
        layer: replace(
            target,
            features=change(target.features),
            metric=None if target.metric is None else change(target.metric),
            guide=None if target.guide is None else change(target.guide),
        )
        for layer, target in objective.content.items()
    }
    return replace(
        objective, content=content, guides={layer: change(guide) for layer, guide in objective.guides.items()}
    )


class Answer(Protocol[T_co]):
    """What a worker will have found, such as a `concurrent.futures.Future`."""

    def result(self) -> T_co:
        """Waits for it, and raises what went wrong."""


class Worker(Protocol):
    """An `Evaluator` that computes somewhere else, in the order in which it is asked."""

    def hold(self, key: Key, slab: Slab) -> Answer[None]:
        """See `Evaluator`."""

    def statistics(self, key: Key, rows: Tensor) -> Answer[Statistics]:
        """See `Evaluator`."""

    def gradient(self, key: Key, derivatives: Mapping[str, Tensor], content_weight: float) -> Answer[Tensor]:
        """See `Evaluator`."""

    def close(self) -> None:
        """Lets it go."""


class ThreadWorker:
    """A worker in a thread of this process.

    Args:
        network: The run's, on the worker's device.
    """

    def __init__(self, network: Network) -> None:
        self._evaluator = Evaluator(network)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"shard on {network.device}")

    def hold(self, key: Key, slab: Slab) -> Answer[None]:
        """See `Evaluator`."""
        return self._thread.submit(self._evaluator.hold, key, slab)

    def statistics(self, key: Key, rows: Tensor) -> Answer[Statistics]:
        """See `Evaluator`."""
        return self._thread.submit(self._evaluator.statistics, key, rows)

    def gradient(self, key: Key, derivatives: Mapping[str, Tensor], content_weight: float) -> Answer[Tensor]:
        """See `Evaluator`."""
        return self._thread.submit(self._evaluator.gradient, key, derivatives, content_weight)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()


# ── Where the run is ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Shards:
    """Which levels of a run are spread over workers, and how.

    Attributes:
        workers: Who computes; part n is worker n's, and round again where there are more parts.
        parts: Into how many each level is cut; fewer where it has not so many rows.
        from_level: Coarser levels are computed where the run is.
    """

    workers: Sequence[Worker]
    parts: int
    from_level: int = 0

    def worker(self, part: int) -> Worker:
        """Whose a part is."""
        return self.workers[part % len(self.workers)]


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
        self._shards = shards
        self._level = level
        self._height = height
        self._network = network
        self._tiling = tiling
        self._slabs: tuple[Slab, ...] = ()
        self._held: Objective | None = None

    def evaluate(self, picture: Tensor, objective: Objective) -> Evaluation:
        """As `tiles.loss_and_gradient`, to rounding: loss and gradient at `picture` [1, 3, H, W]."""
        self._share_out(objective)
        statistics = total(
            self._ask(lambda worker, key, slab: worker.statistics(key, _rows(picture, slab))), picture.device
        )
        style, derivatives = tiles.style_derivatives(objective, statistics)
        weight = objective.content_weight
        found = self._ask(lambda worker, key, _: worker.gradient(key, derivatives, weight))
        gradient = torch.zeros_like(picture)
        for slab, part in zip(self._slabs, found, strict=True):
            _rows(gradient, slab).add_(part.to(gradient.device))
        return Evaluation(style, statistics.content, gradient)

    def _ask(self, question: Callable[[Worker, Key, Slab], Answer[T]]) -> Iterator[T]:
        """Asks the workers about every slab, all at once; the answers in the order of the slabs."""
        slabs = enumerate(self._slabs)
        answers = [question(self._shards.worker(number), (self._level, number), slab) for number, slab in slabs]
        return (answer.result() for answer in answers)

    def _share_out(self, objective: Objective) -> None:
        """Sends the workers what they hold, once for all evaluations: weights may change, targets don't."""
        if self._held is not None and _has_the_targets_of(objective, self._held):
            return
        stride = 1 << (len(self._network.blocks(objective.layers)) - 1)
        parts = cut(self._height, self._shards.parts, stride)
        self._slabs = tuple(self._slab(objective, part) for part in parts)
        for _ in self._ask(lambda worker, key, slab: worker.hold(key, slab)):
            pass
        self._held = objective

    def _slab(self, objective: Objective, part: Part) -> Slab:
        rows = tiles.rows_needed(self._network, objective.layers, part)
        return Slab(part, rows, replace(objective.part(part), style_loss=_taken_elsewhere), self._tiling)


def _rows(picture: Tensor, slab: Slab) -> Tensor:
    return picture[:, :, slab.rows[0] : slab.rows[1]]


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
