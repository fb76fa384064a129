"""The pyramid: sizes of its levels, what each level should look like, and the loss summed over all of them.

Geometry: level l has shorter side 256·2^l. The longer side is chosen once, at level 0, rounded to whole pixels, and
doubled from level to level, so that every level halves exactly: 3:2 gives 384×256, 768×512, 1536×1024, 3072×2048. A
style keeps its own aspect ratio. Every level is resized (bicubic, antialiased) from the original picture, not from the
next finer level.

Departure from Gatys et al. 2015: their loss is taken at one scale. Here the same loss is taken at every level of the
picture at once, and summed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core import losses, tiles
from core.config import LossSettings, Settings
from core.errors import WeightsError
from core.features import Network, block_of, default_content_layers, default_style_layers
from core.images import Size, resize
from core.tiles import WHOLE, ContentTarget, Tiling

LEVEL_0_SIDE = 256


def level_size(size: Size, level: int) -> Size:
    """Height and width at `level` of a picture of `size` (height, width)."""
    height, width = size
    longer = round(LEVEL_0_SIDE * max(size) / min(size))
    scale = 2**level
    return (LEVEL_0_SIDE * scale, longer * scale) if height <= width else (longer * scale, LEVEL_0_SIDE * scale)


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


@dataclass(frozen=True, eq=False)
class _Level:
    level: int
    size: Size
    objective: tiles.Objective
    tiling: Tiling


class Pyramid:
    """The objective of one run: targets for the levels 0…L, or for L alone.

    Args:
        network: Where features come from.
        settings: Layers, weights, levels.
        content: [1, 3, H, W], sRGB in [0, 1], at its original size.
        styles: One or more pictures like it, each at its original size; they weigh the same.
        tilings: How each level is computed, from level 0 up; whole where there is none.
    """

    def __init__(
        self,
        network: Network,
        settings: Settings,
        content: Tensor,
        styles: Sequence[Tensor],
        tilings: Sequence[Tiling] = (),
    ) -> None:
        self.network = network
        self.weights = settings.loss
        layers = choose_layers(settings.loss, network.layers)
        self.style_layers, self.content_layers, self.notices = layers.style, layers.content, layers.notices
        first = 0 if settings.all_levels else settings.levels
        self.levels = tuple(
            self._level(level, content, styles, tilings[level] if level < len(tilings) else WHOLE)
            for level in range(first, settings.levels + 1)
        )

    def _level(self, level: int, content: Tensor, styles: Sequence[Tensor], tiling: Tiling) -> _Level:
        size = level_size((content.shape[2], content.shape[3]), level)
        objective = tiles.Objective(
            style_loss=self._style_loss([self._statistics(style, level, tiling) for style in styles]),
            style_layers=self.style_layers,
            style_weight=self.weights.style_weight,
            content=self._content_targets(resize(content, size), tiling) if self.weights.content_weight else {},
            content_weight=self.weights.content_weight,
            with_ones=bool(self.network.metrics),
        )
        return _Level(level, size, objective, tiling)

    def _statistics(self, style: Tensor, level: int, tiling: Tiling) -> dict[str, Tensor]:
        """The style's Gram matrix per position, in the teacher's metric where there is one, for every style layer."""
        picture = resize(style, level_size((style.shape[2], style.shape[3]), level)).clamp(0, 1)
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

    def _style_loss(self, statistics: Sequence[Mapping[str, Tensor]]) -> tiles.StyleLoss:
        """The mean over layers and styles of the distance between Gram matrices, given those of the picture."""

        def loss(grams: Mapping[str, Tensor], positions: Mapping[str, int]) -> Tensor:
            terms = []
            for layer, gram in grams.items():
                value = self._in_metric(layer, gram / positions[layer])
                terms += [self._style_distance(value, targets[layer]) for targets in statistics]
            return torch.stack(terms).mean()

        return loss

    def _style_distance(self, value: Tensor, target: Tensor) -> Tensor:
        if self.weights.normalisation == "target":
            return losses.relative_squared_distance(value, target)
        # Gatys et al. 2015, equation 4. Their M cancels for Gram matrices per position, which lets the style have
        # another size than the picture.
        channels = target.shape[0]
        scale = self.network.convention.feature_scale**4
        return scale * (value - target).square().sum() / (4 * channels**2)

    def _content_targets(self, content: Tensor, tiling: Tiling) -> dict[str, ContentTarget]:
        found = tiles.activations(self.network, content.clamp(0, 1), self.content_layers, tiling)
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
        gradient = torch.zeros_like(picture)
        terms = []
        for level in self.levels:
            if finest is None or level.level <= finest:
                term, part = self._evaluate_level(picture, level)
                terms.append(term)
                gradient += part
        return PyramidLoss(self._total(terms), tuple(terms), gradient)

    def _evaluate_level(self, picture: Tensor, level: _Level) -> tuple[LevelLoss, Tensor]:
        leaf = picture.detach().requires_grad_()
        with torch.enable_grad():
            resized = resize(leaf, level.size)
        evaluation = tiles.loss_and_gradient(self.network, resized, level.objective, level.tiling)
        gradient, variation = evaluation.gradient, 0.0
        if self.weights.tv_weight:
            variation, slope = _total_variation(resized)
            gradient = gradient + self.weights.tv_weight * slope
        (gradient,) = torch.autograd.grad(resized, leaf, self.weights.level_weight(level.level) * gradient)
        return LevelLoss(level.level, evaluation.content, evaluation.style, variation), gradient

    def _total(self, terms: Sequence[LevelLoss]) -> float:
        weights = self.weights
        return sum(
            weights.level_weight(term.level)
            * (weights.content_weight * term.content + weights.style_weight * term.style + weights.tv_weight * term.tv)
            for term in terms
        )


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
