"""Whose colours the result has.

Five ways, each of which decides what the network sees of content and styles, and what becomes of the picture then:

`style`      everything as it is: the style brings its colours along.
`content`    only the luminance is painted, and the content's chroma laid over it (Gatys et al. 2017, "Controlling
             Perceptual Factors in Neural Style Transfer", section 5.1).
`matched`    the style is recoloured first, so that mean and covariance of its colours are the content's (Gatys et al.
             2016, "Preserving Color in Neural Artistic Style Transfer", section 2).
`histogram`  likewise, so that their whole joint distribution is.
`palette`    as `style`, and at the end the picture is recoloured so that its distribution is the style's: no colours
             but the style's own.

Since the noise is made of what the network sees of the style, its colours follow.

The distribution is transported by matching one-dimensional distributions along the axes of one rotated frame after the
other (Pitié et al. 2007, "Automated colour grading using colour distribution transfer"). Matching red, green and blue
apart would agree with every channel and still invent colours that no pixel of the target has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import Colour
from core.images import resize
from core.parametrisation import Parametrisation

_LUMINANCE = (0.299, 0.587, 0.114)
"""Of R, G, B: the Y of YIQ, as in Gatys et al. 2017."""
_LEAST_DEVIATION = 1 / 255
"""A colour axis along which a style hardly varies is not stretched: there would be nothing but grain in it."""
_MOST_COLOURS = 1 << 22
"""Pixels that moments are measured on at most, so that their copies in float64 don't count in memory."""
_SAMPLE = 1 << 16
"""Pixels that a distribution is measured on."""
_QUANTILES = 512
_FRAMES = 20
"""Rotated frames along whose axes distributions are matched, one after the other."""
_TABLE_SIDE = 49
"""Grid points of a map of colours along each channel."""


# ── Luminance ────────────────────────────────────────────────────────────────────────────────────────────────────────


def luminance(picture: Tensor) -> Tensor:
    """Y of a picture [1, 3, H, W]: [1, 1, H, W]."""
    weights = picture.new_tensor(_LUMINANCE)[:, None, None]
    return (picture * weights).sum(1, keepdim=True)


def grey(picture: Tensor) -> Tensor:
    """The luminance as a grey picture [1, 3, H, W]."""
    return luminance(picture).expand(-1, 3, -1, -1).contiguous()


def with_luminance_of(style: Tensor, content: Tensor) -> Tensor:
    """The style in grey, with the mean and the deviation of the content's luminance, not clamped: [1, 3, H, W]."""
    own, wanted = luminance(style), luminance(content)
    factor = wanted.std() / own.std().clamp_min(_LEAST_DEVIATION)
    return grey(factor * (own - own.mean()) + wanted.mean())


def with_chroma_of(picture: Tensor, content: Tensor) -> Tensor:
    """The luminance of `picture`, exactly, under the chroma of `content`, both [1, 3, H, W] in [0, 1].

    Where the two together would leave [0, 1], the chroma is paled as much as that takes.
    """
    bright = luminance(picture)
    chroma = content - luminance(content)
    room = torch.where(chroma > 0, 1 - bright, bright)
    fitting = room / chroma.abs().clamp_min(torch.finfo(chroma.dtype).tiny)
    return (bright + chroma * fitting.amin(1, keepdim=True).clamp(0, 1)).clamp(0, 1)


class Grey:
    """A parametrisation of a grey picture: the luminance of the one that `rule` gives, in all three channels."""

    def __init__(self, rule: Parametrisation) -> None:
        self._rule = rule

    def start(self) -> Tensor:
        """The variable of the starting picture."""
        return self._rule.start()

    def picture(self, variable: Tensor) -> Tensor:
        """The grey picture."""
        return grey(self._rule.picture(variable))

    def pull_back(self, variable: Tensor, gradient: Tensor) -> Tensor:
        """The adjoint of taking the luminance, then that of the rule."""
        weights = gradient.new_tensor(_LUMINANCE)[:, None, None]
        return self._rule.pull_back(variable, gradient.sum(1, keepdim=True) * weights)

    def movement(self, variable: Tensor, step: Tensor) -> float:
        """That of the coloured picture; the grey one moves about as far."""
        return self._rule.movement(variable, step)


# ── Mean and covariance ──────────────────────────────────────────────────────────────────────────────────────────────


def with_moments_of(style: Tensor, content: Tensor) -> Tensor:
    """The style under the affine map of colours that gives it the content's mean and covariance, not clamped.

    The map is Σc^(1/2) Σs^(−1/2) ("image analogies" in Gatys et al. 2016, who prefer it to Cholesky's, which treats
    red, green and blue unlike).
    """
    own_mean, own = _moments(style)
    mean, wanted = _moments(content)
    matrix = _power(wanted, 0.5) @ _power(own, -0.5)
    offset = mean - matrix @ own_mean
    return torch.einsum("dc,nchw->ndhw", matrix.to(style), style) + offset.to(style)[:, None, None]


def _moments(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [3] and covariance [3, 3] of a picture's colours, in float64; of a very large one, on a part of them."""
    colours = _spread(_colours(picture), _MOST_COLOURS).double()
    return colours.mean(0), torch.cov(colours.T, correction=0)


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """A symmetric matrix to some power; for a negative one, axes without any variance are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    powers = values**exponent if exponent > 0 else torch.where(values > _LEAST_DEVIATION**2, values**exponent, 0)
    result: Tensor = vectors @ torch.diag(powers) @ vectors.T
    return result


# ── The whole distribution ───────────────────────────────────────────────────────────────────────────────────────────


def sample(pictures: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Colours [n, 3] of several pictures, from each as many as its share of them all says."""
    present = [(_colours(picture), share) for picture, share in zip(pictures, shares, strict=True) if share > 0]
    count = min(_SAMPLE / sum(shares), *(len(found) / share for found, share in present))
    return torch.cat([_spread(found, max(1, round(count * share))) for found, share in present])


def with_distribution_of(picture: Tensor, wanted: Tensor) -> Tensor:
    """A picture [1, 3, H, W] recoloured so that the distribution of its colours is that of `wanted` [n, 3].

    The map of colours is found on a sample and kept as a table, so that every size of the same picture, a preview as
    well as the result, is recoloured alike and quickly. Equal colours stay equal, so a picture of few colours can only
    come near.
    """
    return _looked_up(picture, _table(_spread(_colours(picture), _SAMPLE), _spread(wanted, _SAMPLE)))


def _table(colours: Tensor, wanted: Tensor) -> Tensor:
    """Where the transport from one sample to the other takes every colour of a regular grid: [1, 3, R, G, B]."""
    axis = torch.linspace(0, 1, _TABLE_SIDE)
    points = torch.cartesian_prod(axis, axis, axis)
    for frame in _frames():
        ends = [(_quantiles(colours @ side), _quantiles(wanted @ side)) for side in frame.T]
        colours, points = (
            torch.stack([_moved(c @ side, *q) for side, q in zip(frame.T, ends, strict=True)], 1) @ frame.T
            for c in (colours, points)
        )
    return points.T.reshape(1, 3, _TABLE_SIDE, _TABLE_SIDE, _TABLE_SIDE)


def _looked_up(picture: Tensor, table: Tensor) -> Tensor:
    """The picture's colours in the table, trilinearly."""
    places = 2 * picture.flip(1).permute(0, 2, 3, 1)[:, None] - 1
    found = F.grid_sample(table, places, mode="bilinear", padding_mode="border", align_corners=True)
    return found[:, :, 0].clamp(0, 1)


def _colours(picture: Tensor) -> Tensor:
    """[1, 3, H, W] → [H·W, 3]."""
    return picture[0].reshape(3, -1).T.contiguous()


def _frames() -> list[Tensor]:
    """Rotations of the colour space [3, 3], the same at all times; the first is none."""
    draw = torch.Generator().manual_seed(0)
    turned = [torch.linalg.qr(torch.randn(3, 3, generator=draw))[0] for _ in range(_FRAMES - 1)]
    return [torch.eye(3), *turned]


def _moved(values: Tensor, own: Tensor, wanted: Tensor) -> Tensor:
    """The values [n] under the monotone map between two lists of quantiles; beyond them it only shifts."""
    above = torch.searchsorted(own, values).clamp(1, _QUANTILES - 1)
    below = above - 1
    span = (own[above] - own[below]).clamp_min(torch.finfo(own.dtype).eps)
    inside = torch.lerp(wanted[below], wanted[above], ((values - own[below]) / span).clamp(0, 1))
    return inside + (values - own[-1]).clamp_min(0) + (values - own[0]).clamp_max(0)


def _quantiles(values: Tensor) -> Tensor:
    ordered = values.sort().values
    places = torch.linspace(0, len(ordered) - 1, _QUANTILES).round().long()
    return ordered[places]


def _spread(values: Tensor, count: int) -> Tensor:
    """At most `count` of the entries along the first axis, evenly spread over it."""
    if len(values) <= count:
        return values
    return values[torch.linspace(0, len(values) - 1, count).round().long()]


# ── All five ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Colours:
    """What the network sees, and what becomes of the picture that is optimised.

    Attributes:
        way: Whose colours the result has.
        content: [1, 3, H, W], as the network sees it.
        styles: Likewise.
        original: The content as it was given.
    """

    way: Colour
    content: Tensor
    styles: tuple[Tensor, ...]
    original: Tensor

    def rule(self, rule: Parametrisation) -> Parametrisation:
        """The parametrisation of the picture that the network sees."""
        return Grey(rule) if self.way == "content" else rule

    def finish(self, picture: Tensor, shares: Sequence[float]) -> Tensor:
        """The picture as it is shown and written, in [0, 1].

        Args:
            picture: [1, 3, H, W] in [0, 1], as the network sees it, on the CPU.
            shares: Of the styles in it.
        """
        match self.way:
            case "content":
                size = (picture.shape[2], picture.shape[3])
                return with_chroma_of(picture, resize(self.original, size).clamp(0, 1))
            case "palette":
                return with_distribution_of(picture, sample(self.styles, shares))
            case _:
                return picture


def prepare(way: Colour, content: Tensor, styles: Sequence[Tensor]) -> Colours:
    """Recolours what the network is to see.

    Args:
        way: Whose colours the result is to have.
        content: [1, 3, H, W] in [0, 1].
        styles: Likewise.
    """
    match way:
        case "content":
            recoloured = [with_luminance_of(style, content) for style in styles]
        case "matched":
            recoloured = [with_moments_of(style, content) for style in styles]
        case "histogram":
            recoloured = [with_distribution_of(style, sample([content], [1.0])) for style in styles]
        case _:
            return Colours(way, content, tuple(styles), content)
    seen = grey(content) if way == "content" else content
    return Colours(way, seen, tuple(style.clamp(0, 1) for style in recoloured), content)
