"""The pyramid: sizes of its levels, what each level should look like, and the loss summed over all of them.

Geometry: level l has shorter side 256·2^l. The longer side is chosen once, at level 0, rounded to whole pixels, and
doubled from level to level, so that every level halves exactly: 3:2 gives 384×256, 768×512, 1536×1024, 3072×2048. A
style keeps its own aspect ratio; its scale multiplies its size (`style_size`). Every level is resized (bicubic,
antialiased) from the original picture, not from the next finer level.

Departure from Gatys et al. 2015: their loss is taken at one scale. Here the same loss is taken at every level of the
picture at once, and summed.
"""

import copy
import hashlib
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from cachetools import LRUCache
from torch import Tensor

from core import losses, tiles
from core.config import LossSettings, Settings
from core.errors import WeightsError
from core.features import Network, block_of, default_content_layers, default_style_layers
from core.guides import Guidance, at_block
from core.images import Size, resize
from core.shards import Shards, SpreadLevel
from core.tiles import WHOLE, ContentTarget, Tiling

LEVEL_0_SIDE = 256

_LEAST_MASS = 1e-6
"""Of a style's region, in positions: a region too small for a layer has no statistics there, and no gradient."""


def level_size(size: Size, level: int) -> Size:
    """Height and width at `level` of a picture of `size` (height, width)."""
    height, width = size
    longer = round(LEVEL_0_SIDE * max(size) / min(size))
    scale = 2**level
    return (LEVEL_0_SIDE * scale, longer * scale) if height <= width else (longer * scale, LEVEL_0_SIDE * scale)


def style_size(size: Size, level: int, scale: float) -> Size:
    """Height and width at `level` of a style of `size`, its features `scale` times as large as usual.

    The shorter side never falls below half of level 0's, where the deepest layers would have too few positions for
    statistics; and the scale enlarges no style beyond its own resolution, where there is nothing but blur to be learnt.
    """
    usual = level_size(size, level)
    most = max(1.0, min(size) / min(usual))
    factor = max(min(scale, most), LEVEL_0_SIDE / 2 / min(usual))
    return round(usual[0] * factor), round(usual[1] * factor)


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that a run looks at, and what the user should know of the choice."""

    style: tuple[str, ...]
    content: tuple[str, ...]
    notices: tuple[str, ...] = ()


def choose_layers(settings: LossSettings, offered: Sequence[str]) -> ChosenLayers:
    """The settings' layers, or the defaults that a network offering `offered` has.

    Raises:
        WeightsError: A layer is asked for that isn't offered, and the settings don't allow the deepest instead.
    """
    style = default_style_layers(offered) if settings.style_layers == "auto" else settings.style_layers
    content = default_content_layers(offered) if settings.content_layers == "auto" else settings.content_layers
    missing = [layer for layer in (*style, *content) if layer not in offered]
    if not missing:
        return ChosenLayers(style, content)
    if settings.missing_layers == "error":
        raise WeightsError(
            f"the network has no layer '{missing[0]}'", f"Its weights offer {offered[0]} to {offered[-1]}"
        )
    if set(style) & set(missing):
        style = tuple(dict.fromkeys((*(layer for layer in style if layer in offered), offered[-1])))
    if set(content) & set(missing):
        content = default_content_layers(offered)
    notice = f"not to the letter: the network lacks {', '.join(missing)}; style {', '.join(style)} and content "
    return ChosenLayers(style, content, (notice + f"{', '.join(content)} stand in",))


@dataclass(frozen=True)
class LevelLoss:
    """The terms of one level, each unweighted; `tv` is 0 where it has no weight."""

    level: int
    content: float
    style: float
    tv: float


@dataclass(frozen=True, eq=False)
class PyramidLoss:
    """The summed objective at a picture, and its gradient [1, 3, H, W]."""

    total: float
    levels: tuple[LevelLoss, ...]
    gradient: Tensor


Statistics = Mapping[str, Tensor]
"""Of one style at one level: for every style layer, the Gram matrix per position."""


@dataclass(frozen=True, eq=False)
class _Level:
    """One level: what weights don't change, and the objective under the present ones."""

    level: int
    size: Size
    statistics: tuple[Statistics, ...]
    content: Mapping[str, ContentTarget]
    objective: tiles.Objective
    tiling: Tiling
    spread: SpreadLevel | None


class Pyramid:
    """The objective of one run: targets for the levels 0…L, or for L alone.

    Args:
        network: Where features come from.
        settings: Layers, weights, levels.
        content: [1, 3, H, W], sRGB in [0, 1], at its original size.
        styles: One or more pictures like it, each at its original size.
        tilings: How each level is computed, from level 0 up; whole where there is none.
        guidance: Where each style paints; none: all of them everywhere.
        shards: Which levels are spread over several workers; none: all are computed on the network's device.
    """

    def __init__(
        self,
        network: Network,
        settings: Settings,
        content: Tensor,
        styles: Sequence[Tensor],
        tilings: Sequence[Tiling] = (),
        guidance: Guidance | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.network = network
        self.shards = shards
        self.settings = settings
        self.weights = settings.loss
        self._content = content
        self._digests = tuple(_digest(style) for style in styles)
        self._guidance = None if guidance is None or guidance.is_plain else guidance
        layers = choose_layers(settings.loss, network.layers)
        self.style_layers, self.content_layers, self.notices = layers.style, layers.content, layers.notices
        first = 0 if settings.all_levels else settings.levels
        self.levels = tuple(
            self._level(level, content, styles, tilings[level] if level < len(tilings) else WHOLE)
            for level in range(first, settings.levels + 1)
        )

    def _level(self, level: int, content: Tensor, styles: Sequence[Tensor], tiling: Tiling) -> _Level:
        size = level_size((content.shape[2], content.shape[3]), level)
        statistics = tuple(
            self._known_statistics(number, style, level, self.settings.style(number).scale, tiling)
            for number, style in enumerate(styles)
        )
        targets = self._content_targets(size, tiling) if self.weights.content_weight else {}
        objective = self._objective(size, statistics, targets)
        return _Level(level, size, statistics, targets, objective, tiling, self._spread(level, size, tiling))

    def weighted(self, settings: Settings) -> "Pyramid":
        """The same targets under other weights: settings that differ in what `core.steering` can change."""
        new = copy.copy(self)
        new.settings, new.weights = settings, settings.loss
        new.levels = tuple(new._weighted_level(level) for level in self.levels)
        return new

    def _weighted_level(self, level: _Level) -> _Level:
        targets = level.content
        if self.weights.content_weight and not targets:
            targets = self._content_targets(level.size, level.tiling)
        objective = self._objective(level.size, level.statistics, targets)
        return replace(level, content=targets, objective=objective)

    def _objective(
        self, size: Size, statistics: Sequence[Statistics], content: Mapping[str, ContentTarget]
    ) -> tiles.Objective:
        weights = [self.settings.style(number).weight for number in range(len(statistics))]
        if self._guidance is None:
            style_loss = self._style_loss(statistics, [weight / (sum(weights) or 1) for weight in weights])
            return self._plain_objective(style_loss, content)
        shares = self._guidance.shares(size, weights).to(self.network.device)
        guides = {layer: at_block(shares, block_of(layer))[:, 0] for layer in self.style_layers}
        style_loss = self._guided_style_loss(statistics, shares.mean((1, 2, 3)).tolist(), guides)
        emphasis = 1 + (self.weights.protect_weight - 1) * self._guidance.protection(size).to(self.network.device)
        guided = {
            layer: replace(target, guide=at_block(emphasis, block_of(layer))) for layer, target in content.items()
        }
        return replace(self._plain_objective(style_loss, guided), guides=guides)

    def _plain_objective(self, style_loss: tiles.StyleLoss, content: Mapping[str, ContentTarget]) -> tiles.Objective:
        return tiles.Objective(
            style_loss=style_loss,
            style_layers=self.style_layers,
            style_weight=self.weights.style_weight,
            content=content if self.weights.content_weight else {},
            content_weight=self.weights.content_weight,
            with_ones=bool(self.network.metrics),
        )

    def _spread(self, level: int, size: Size, tiling: Tiling) -> SpreadLevel | None:
        if self.shards is None or level < self.shards.from_level:
            return None
        return SpreadLevel(self.shards, level, size[0], self.network, tiling)

    def _known_statistics(self, number: int, style: Tensor, level: int, scale: float, tiling: Tiling) -> Statistics:
        """A style's statistics, computed now or kept from an earlier run with everything the same."""
        network = self.network
        seen_by = (network.name, network.sha256, network.dtype, network.device, network.pooling, network.padding)
        key = (self._digests[number], level, scale, tiling, seen_by, self.style_layers)
        with _lock:
            if key in _kept:
                return _kept[key]
        found = self._statistics(style, level, scale, tiling)
        with _lock:
            _kept[key] = found
        return found

    def _statistics(self, style: Tensor, level: int, scale: float, tiling: Tiling) -> Statistics:
        """The style's Gram matrix per position, in the teacher's metric where there is one, for every style layer."""
        picture = resize(style, style_size((style.shape[2], style.shape[3]), level, scale)).clamp(0, 1)
        picture = _without_rim(picture)
        sums = tiles.grams(
            self.network, picture, self.style_layers, with_ones=bool(self.network.metrics), tiling=tiling
        )
        count = self._positions(picture)
        return {layer: self._in_metric(layer, gram / count[layer]) for layer, gram in sums.items()}

    def _positions(self, picture: Tensor) -> dict[str, int]:
        """Number of positions M of every style layer."""
        height, width = picture.shape[2:]
        return {layer: (height >> block_of(layer)) * (width >> block_of(layer)) for layer in self.style_layers}

    def _in_metric(self, layer: str, gram: Tensor) -> Tensor:
        """The Gram matrix of the teacher's features, which are an affine function of this network's."""
        metric = self.network.metrics.get(layer)
        if metric is None:
            return gram if not self.network.metrics else gram[:-1, :-1]
        affine = torch.cat([metric.weight, metric.bias[:, None]], 1)
        return affine @ gram @ affine.T

    def _style_loss(self, statistics: Sequence[Statistics], shares: Sequence[float]) -> tiles.StyleLoss:
        """The mean over layers of the distances between Gram matrices, every style's share of it multiplied in."""

        def loss(grams: Mapping[str, Tensor], positions: Mapping[str, int]) -> Tensor:
            values = {layer: self._in_metric(layer, gram / positions[layer]) for layer, gram in grams.items()}
            return self._summed([values] * len(shares), statistics, shares)

        return loss

    def _guided_style_loss(
        self, statistics: Sequence[Statistics], shares: Sequence[float], guides: Mapping[str, Tensor]
    ) -> tiles.StyleLoss:
        """The same, every style measured in its own region, which counts by its area."""
        masses = {layer: guide.sum((1, 2)).tolist() for layer, guide in guides.items()}

        def loss(grams: Mapping[str, Tensor], positions: Mapping[str, int]) -> Tensor:
            values = [
                {
                    layer: self._in_metric(layer, gram[number] / max(masses[layer][number], _LEAST_MASS))
                    for layer, gram in grams.items()
                }
                for number in range(len(shares))
            ]
            return self._summed(values, statistics, shares)

        return loss

    def _summed(
        self, values: Sequence[Statistics], statistics: Sequence[Statistics], shares: Sequence[float]
    ) -> Tensor:
        terms = [
            share * torch.stack([self._style_distance(value, targets[layer]) for layer, value in found.items()]).mean()
            for found, targets, share in zip(values, statistics, shares, strict=True)
        ]
        return torch.stack(terms).sum()

    def _style_distance(self, value: Tensor, target: Tensor) -> Tensor:
        if self.weights.normalisation == "target":
            return losses.relative_squared_distance(value, target)
        # Gatys et al. 2015, equation 4. Their M cancels for Gram matrices per position, which lets the style have
        # another size than the picture.
        channels = target.shape[0]
        scale = self.network.convention.feature_scale**4
        return scale * (value - target).square().sum() / (4 * channels**2)

    def _content_targets(self, size: Size, tiling: Tiling) -> dict[str, ContentTarget]:
        content = resize(self._content, size).clamp(0, 1)
        found = tiles.activations(self.network, content, self.content_layers, tiling)
        return {layer: self._content_target(layer, features) for layer, features in found.items()}

    def _content_target(self, layer: str, features: Tensor) -> ContentTarget:
        share = 1 / len(self.content_layers)
        metric = self.network.metrics.get(layer)
        product = None if metric is None else metric.weight.T @ metric.weight
        if self.weights.normalisation == "gatys":
            return ContentTarget(features, share * 0.5 * self.network.convention.feature_scale**2, product)
        norm = self._in_metric(layer, losses.gram(features, with_ones=bool(self.network.metrics))).trace()
        return ContentTarget(features, share / max(float(norm), torch.finfo(torch.float32).tiny), product)

    def evaluate(self, picture: Tensor, finest: int | None = None) -> PyramidLoss:
        """The loss of `picture` [1, 3, H, W], summed over the levels up to `finest` (default: all).

        The picture has the size of level `finest`, lies in [0, 1] and is float32 (or float64) on the network's device.
        """
        levels = [level for level in self.levels if finest is None or level.level <= finest]
        # The finest level first: it needs the most memory, and no sum is held beside it yet.
        term, gradient = self._evaluate_level(picture, levels[-1])
        terms = [term]
        for level in reversed(levels[:-1]):
            term, part = self._evaluate_level(picture, level)
            terms.insert(0, term)
            gradient += part
        return PyramidLoss(self._total(terms), tuple(terms), gradient)

    def _evaluate_level(self, picture: Tensor, level: _Level) -> tuple[LevelLoss, Tensor]:
        leaf = picture.detach().requires_grad_()
        with torch.enable_grad():
            resized = resize(leaf, level.size)
        evaluation = self._loss_and_gradient(resized, level)
        gradient, variation = evaluation.gradient, 0.0
        if self.weights.tv_weight:
            variation, slope = _total_variation(resized)
            gradient = gradient + self.weights.tv_weight * slope
        (gradient,) = torch.autograd.grad(resized, leaf, self.weights.level_weight(level.level) * gradient)
        return LevelLoss(level.level, evaluation.content, evaluation.style, variation), gradient

    def _loss_and_gradient(self, picture: Tensor, level: _Level) -> tiles.Evaluation:
        if level.spread is not None:
            return level.spread.evaluate(picture, level.objective)
        return tiles.loss_and_gradient(self.network, picture, level.objective, level.tiling)

    def _total(self, terms: Sequence[LevelLoss]) -> float:
        weights = self.weights
        return sum(
            weights.level_weight(term.level)
            * (weights.content_weight * term.content + weights.style_weight * term.style + weights.tv_weight * term.tv)
            for term in terms
        )


_KEPT_STATISTICS = 64
"""Of styles at levels, a megabyte or two each."""
_kept: LRUCache[Hashable, Statistics] = LRUCache(_KEPT_STATISTICS)
_lock = threading.Lock()


def _digest(picture: Tensor) -> str:
    """Identifies a picture by its pixels."""
    digest = hashlib.sha256(str((tuple(picture.shape), picture.dtype)).encode())
    digest.update(picture.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _total_variation(picture: Tensor) -> tuple[float, Tensor]:
    """The total variation of a picture, and its gradient."""
    leaf = picture.detach().requires_grad_()
    with torch.enable_grad():
        value = losses.total_variation(leaf)
    return float(value.detach()), torch.autograd.grad(value, leaf)[0]


def _without_rim(style: Tensor) -> Tensor:
    """The style without its outermost 1/64: what scans leave there (frames, lines) would come back as a frame."""
    rim = min(style.shape[2:]) // 64
    return style[:, :, rim:-rim, rim:-rim]
