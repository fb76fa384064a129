"""Structured noise, and the starting picture that is made with it.

Noise in the start is what gives the optimisation something to turn into strokes where the content is flat. It grew in
four stages, all of which one description (`NoiseSettings`) composes:

(a) normal colour noise in every pixel (`grain = 1`, `source = "normal"`);
(b) several levels, each with spots of its own size (`spots` along the shorter side);
(c) the style's own pixels, randomly permuted, as colours (`source = "style"`);
(d) weighted by the inverse of the local gradient of the content (`gradient_weight`), and each level under a Gaussian
    envelope, so that the centre gets larger features and less noise (`centre`, `edge`, `spread`).

The start is a blend, level by level: where a level has amplitude a, it replaces the share a of the content.

Several styles share the noise as they share the picture (`Mixture`): every spot is made of one style's pixels, drawn by
their shares where it lies, and no spot reaches into a region that its style has no share in.

Every level draws from numbers of its own, and as many as it has spots, whatever the other levels draw. So a level that
says how many spots there are along the shorter side makes the same pattern at every size of the picture.

Geometry: the envelope is a function of the offsets (x, y) from the centre, each as a share of its side, so it is an
ellipse on a picture that is not square. Spots are cells of a grid over the whole picture, smoothed by bicubic resizing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import NoiseLevel, NoiseSettings
from core.images import Size, resize


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several styles, and what they have of a picture.

    Attributes:
        styles: Each [1, 3, h, w].
        shares: [S, 1, H, W], each style's share of every place; together 1 at most, less where there is less noise.
    """

    styles: Sequence[Tensor]
    shares: Tensor


_NORMAL_DEVIATION = 0.5
"""Standard deviation of `normal` colours: about a third of them lie outside [0, 1], so spots are vivid."""
_LEAST_SHARE = 1e-6
"""Less than this of a place is nothing."""


def spot_grid(level: NoiseLevel, size: Size) -> Size:
    """Rows and columns of the level's cells for a picture of `size` (height, width)."""
    shorter = min(size)
    if level.constant:
        return 1, 1
    spot = level.grain if level.grain is not None else shorter / (level.spots or 1)
    return max(1, round(size[0] / spot)), max(1, round(size[1] / spot))


def spots(level: NoiseLevel, size: Size, style: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
    """The random colours of one level before they are smoothed: [1, 3, rows, columns].

    Args:
        level: Which spots, and where their colours come from.
        size: Height and width of the picture that they are for.
        style: [1, 3, h, w]; resized to the grid of spots, its pixels are permuted as wholes, so their multiset stays.
        mean: [1, 3, 1, 1], mean colour of `normal` noise, so that it doesn't change the picture's brightness.
        generator: On the CPU; draws the permutation or the normal numbers.
    """
    rows, columns = spot_grid(level, size)
    if level.source == "normal":
        return mean + _NORMAL_DEVIATION * torch.randn(1, 3, rows, columns, generator=generator)
    if level.constant:
        return _random_pixel(style, generator)
    pixels = resize(style, (rows, columns)).clamp(0, 1).reshape(1, 3, -1)
    return pixels[..., torch.randperm(rows * columns, generator=generator)].reshape(1, 3, rows, columns)


def _random_pixel(style: Tensor, generator: torch.Generator) -> Tensor:
    position = int(torch.randint(style.shape[2] * style.shape[3], (1,), generator=generator))
    return style.reshape(1, 3, -1)[..., position, None, None]


def noise_map(
    level: NoiseLevel, size: Size, style: Tensor | Mixture, mean: Tensor, generator: torch.Generator
) -> Tensor:
    """The noise of one level at the size of the picture, not yet under its envelope: [1, 3, H, W]."""
    if isinstance(style, Mixture):
        maps = [noise_map(level, size, one, mean, generator) for one in style.styles]
        return (torch.cat(maps) * _choice(level, style.shares, generator)).sum(0, keepdim=True)
    cells = spots(level, size, style, mean, generator)
    if level.constant:
        return cells.expand(1, 3, *size)
    return resize(cells, size)


def _choice(level: NoiseLevel, shares: Tensor, generator: torch.Generator) -> Tensor:
    """Whose every spot is, by chance, smoothly from spot to spot: [S, 1, H, W], 1 in sum.

    Where the style of a spot has no share, those that have one take its place.
    """
    size = (shares.shape[2], shares.shape[3])
    drawn = torch.rand(1, 1, *spot_grid(level, size), generator=generator)
    likely = _proportions(F.interpolate(shares, size=(drawn.shape[2], drawn.shape[3]), mode="area"))
    number = (drawn > likely.cumsum(0)).sum(0).clamp_max(len(shares) - 1)
    spots = F.one_hot(number[0], len(shares)).permute(2, 0, 1)[:, None].to(shares)
    around, chosen = (F.interpolate(cells, size=size, mode="bilinear") for cells in (likely, spots))
    chosen = chosen * _proportions(shares) / around.clamp_min(_LEAST_SHARE)
    present = chosen.sum(0, keepdim=True) > _LEAST_SHARE
    return _proportions(torch.where(present, chosen, shares))


def _proportions(shares: Tensor) -> Tensor:
    """The shares [S, …] as parts of their sum; equal ones where that is 0."""
    total = shares.sum(0, keepdim=True)
    return torch.where(total > 0, shares / total.clamp_min(torch.finfo(shares.dtype).tiny), 1 / len(shares))


def envelope(level: NoiseLevel, size: Size) -> Tensor:
    """The level's amplitude over the picture, `centre` in the middle and `edge` far from it: [1, 1, H, W]."""
    y, x = (((torch.arange(n) + 0.5) / n - 0.5) / level.spread for n in size)
    bell = torch.exp(-0.5 * (y[:, None].square() + x[None].square()))
    return (level.edge + (level.centre - level.edge) * bell)[None, None]


def gradient_weight(content: Tensor, radius: float) -> Tensor:
    """Where noise is welcome: 1 in flat regions, towards 0 at strong edges of `content`; [1, 1, H, W].

    The inverse of the local gradient: 1 / (1 + (g / ḡ)²), where g is the gradient's magnitude smoothed over `radius`
    pixels and ḡ its root mean square over the picture, so that contrast and size of the picture don't matter.
    """
    luminance = (content * content.new_tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1, keepdim=True)
    local = _smoothed(_squared_gradient(luminance), radius)
    typical = local.mean().clamp_min(torch.finfo(local.dtype).eps)
    return 1 / (1 + local / typical)


def _squared_gradient(plane: Tensor) -> Tensor:
    padded = F.pad(plane, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return across.square() + down.square()


def _smoothed(plane: Tensor, radius: float) -> Tensor:
    """A smooth local mean, by shrinking and growing the plane again: its cost doesn't depend on the radius."""
    height, width = plane.shape[2:]
    shrunk = (max(1, math.ceil(height / radius)), max(1, math.ceil(width / radius)))
    small = F.interpolate(plane, size=shrunk, mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="bicubic").clamp_min(0)


def amplitudes(settings: NoiseSettings, content: Tensor) -> Tensor:
    """The share of the content that each level replaces, [levels, 1, H, W]; they sum to 1 at most in every pixel."""
    size = (content.shape[2], content.shape[3])
    maps = torch.cat([envelope(level, size) for level in settings.levels]) * settings.strength
    if settings.gradient_weight > 0:
        # Wider, and a rim of bare content would be left around everything; narrower, and noise would fray the edges.
        weight = gradient_weight(content, radius=max(1.5, min(size) / 256))
        maps = maps * (1 - settings.gradient_weight * (1 - weight))
    return maps / maps.sum(0, keepdim=True).clamp_min(1)


def blend(settings: NoiseSettings, content: Tensor, style: Tensor | Mixture, generator: torch.Generator) -> Tensor:
    """`content` [1, 3, H, W] under the structured noise, in [0, 1]; equal to it where there are no levels."""
    if not settings.levels:
        return content.clone()
    size = (content.shape[2], content.shape[3])
    mean = content.mean((2, 3), keepdim=True)
    shares = amplitudes(settings, content)
    if isinstance(style, Mixture):
        shares = shares * style.shares.sum(0, keepdim=True)
    blended = content * (1 - shares.sum(0, keepdim=True))
    for level, share, own in zip(settings.levels, shares, _generators(generator, len(settings.levels)), strict=True):
        blended += share * noise_map(level, size, style, mean, own)
    return blended.clamp_(0, 1)


def _generators(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """One for each level, so that none depends on how much another draws."""
    seeds = torch.randint(1 << 62, (count,), generator=generator)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def noise_alone(settings: NoiseSettings, size: Size, style: Tensor | Mixture, generator: torch.Generator) -> Tensor:
    """The noise without any content, on the style's mean colour: a picture [1, 3, H, W] to look at or to start from."""
    plain = settings.model_copy(update={"gradient_weight": 0.0})
    return blend(plain, _mean_colour(style, size), style, generator)


def _mean_colour(style: Tensor | Mixture, size: Size) -> Tensor:
    """[1, 3, *size]: of a mixture, every place's own."""
    if isinstance(style, Mixture):
        means = torch.cat([one.mean((2, 3), keepdim=True) for one in style.styles])
        return (_proportions(style.shares) * means).sum(0, keepdim=True)
    return style.mean((2, 3), keepdim=True).expand(1, 3, *size)
