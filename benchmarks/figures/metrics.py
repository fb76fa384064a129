"""What is measured: a definition, a reason, a unit and a range for each figure.

Pictures are arrays [H, W, 3], sRGB in [0, 1]; colour counts like brightness, so energies are means over the channels.
The picture and its content have the size of level L of the pyramid; the style has its own. Lengths are in pixels of
level 0 (1/256 of the shorter side), so that figures of different L compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_laplace, map_coordinates

from core.images import Size, resize
from core.pyramid import LEVEL_0_SIDE, level_size

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def array_of(picture: torch.Tensor) -> Array:
    """A picture [1, 3, H, W] as [H, W, 3]."""
    return picture[0].permute(1, 2, 0).double().numpy()


def resized(picture: Array, size: Size) -> Array:
    """A picture [H, W, 3] at another size, resampled as the pyramid does, within [0, 1]."""
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return array_of(resize(tensor, size).clamp(0, 1))


def at_level(picture: Array, level: int) -> Array:
    """A picture at the size that it has on a level of its own pyramid."""
    return resized(picture, level_size(_size(picture), level))


def blurred(picture: Array, deviation: float) -> Array:
    """Gaussian blur of rows and columns [H, W] or [H, W, C], `deviation` in pixels; mirrored at the border."""
    deviations = (deviation, deviation, 0)[: picture.ndim]
    smooth: Array = gaussian_filter(picture, deviations, mode="reflect")
    return smooth


def slopes(picture: Array, deviation: float) -> Array:
    """Derivatives of the blurred picture down and to the right, per pixel: [2, H, W, 3]."""
    orders = ((1, 0, 0), (0, 1, 0))
    deviations = (deviation, deviation, 0)
    return np.stack([gaussian_filter(picture, deviations, order=order, mode="reflect") for order in orders])


def _size(picture: Array) -> Size:
    return picture.shape[0], picture.shape[1]


def _scale(picture: Array) -> float:
    """Pixels of this picture in one pixel of level 0."""
    return min(_size(picture)) / LEVEL_0_SIDE


# ── Baldness ─────────────────────────────────────────────────────────────────────────────────────────────────────────


_OCTAVES = (1.0, 2.0, 4.0)
"""Deviations f, in pixels of a level, of the bands G_f − G_2f; their periods are about 6.5·f: 6.5, 13 and 26 pixels.

A level tells the network about texture between what its first layers see (3 to 5 pixels) and what relu3_4 sees (48)."""


@dataclass(frozen=True)
class Baldness:
    """The share of the content's flat regions that has (nearly) no texture.

    Definition: in each octave band of each level, b = (G_f − G_2f) ∗ picture, a position is bald where the local energy
    G_4f ∗ b² stays below `fraction` of the median that the style has in this band. The figure is the share of bald
    positions among those where the content is flat, averaged over the bands of all levels.
    Reason: the first flaw of the classical method is paint missing where the photograph gives no gradient to start
    from. The style says how much paint there should be, at every scale at which it is looked at.
    Unit: a share. Range: 0 (texture everywhere, as in the style) to 1 (none).

    Attributes:
        fraction: Of the style's median energy in the band.
        flat: Content is flat where the root mean square gradient around a position is below this, per pixel of level 0.
        stretch: Multiplies the size of every band.
    """

    fraction: float = 0.25
    flat: float = 0.02
    stretch: float = 1.0

    def flatness(self, content: Array) -> Mask:
        """Where the content is flat, at level 0: [H, W]."""
        energy = (slopes(at_level(content, 0), 1.0) ** 2).sum(0).mean(-1)
        flat: Mask = np.sqrt(blurred(energy, 8.0)) < self.flat
        return flat

    def energies(self, picture: Array) -> list[Array]:
        """Local energy [H, W] in each band of a picture that has the size of the level."""
        found = []
        for octave in _OCTAVES:
            fine = octave * self.stretch
            band = blurred(picture, fine) - blurred(picture, 2 * fine)
            found.append(blurred((band**2).mean(-1), 4 * fine))
        return found

    def reference(self, content: Array, style: Array, levels: int) -> "Reference":
        """What pictures of this content in this style are held against."""
        medians = [
            [float(np.median(energy)) for energy in self.energies(at_level(style, level))]
            for level in range(levels + 1)
        ]
        return Reference(self.flatness(content), medians)

    def by_level(self, picture: Array, reference: "Reference") -> list[float]:
        """The share of bald positions on each level; NaN where the content has no flat region."""
        if not reference.flat.any():
            return [float("nan")] * len(reference.medians)
        return [self._at(level, picture, reference) for level in range(len(reference.medians))]

    def _at(self, level: int, picture: Array, reference: "Reference") -> float:
        here = reference.flat.repeat(2**level, 0).repeat(2**level, 1)
        bands = zip(self.energies(at_level(picture, level)), reference.medians[level], strict=True)
        return float(np.mean([(energy[here] < self.fraction * median).mean() for energy, median in bands]))

    def measure(self, picture: Array, reference: "Reference") -> float:
        """The figure."""
        return float(np.mean(self.by_level(picture, reference)))


@dataclass(frozen=True, eq=False)
class Reference:
    """Where the content is flat, at level 0, and the style's median energy in each band of each level."""

    flat: Mask
    medians: list[list[float]]


# ── Edges ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Distortion:
    """How far the content's edges moved and how much they rang, in pixels of level 0; means over all edge points."""

    moved: float
    rang: float
    points: int

    @property
    def total(self) -> float:
        """The figure: what moved and what rang together are the distance between the profiles."""
        return self.moved + self.rang


@dataclass(frozen=True)
class Edges:
    """How far strong edges of the content moved or rang.

    Definition: at every edge point of the content, the gradient's energy is read along the edge's normal, in the
    content and in the picture, and each profile is made to sum to 1. Their 1-Wasserstein distance is how far energy
    must be carried to turn one profile into the other. The part that shifts the centre is *moved*; the rest is *rang*.
    The figure is the mean over all edge points.
    Reason: the second flaw is edges that break up, double or get a halo. An edge that only changed its contrast, its
    sign or its colour is no distortion; carried energy counts by how much and how far, in one unit for both kinds.
    Unit: pixels of level 0. Range: 0 (as in the content) to 2·`reach`; `reach`/2 where nothing of the edge is left.

    Attributes:
        step: An edge is strong where its blurred gradient is that of a step of this height at least.
        deviation: Of the blur under the derivative, in pixels of level 0.
        reach: Of a profile to either side, in pixels of level 0.
        power: The gradient's magnitude to this power is what is carried; 2 is its energy, beside which weak texture
            is little.
    """

    step: float = 0.25
    deviation: float = 1.0
    reach: float = 8.0
    power: float = 2.0

    def points(self, content: Array) -> tuple[Array, Array]:
        """Strong edge points of the content: positions [2, N] (row, column) and unit normals [2, N]."""
        scale = _scale(content)
        # The gradient of the mean of the channels gives the normal a sign; the points are where it peaks along it.
        gradient = slopes(content.mean(-1, keepdims=True), self.deviation * scale)[..., 0]
        size = np.hypot(*gradient)
        normal = gradient / np.maximum(size, np.finfo(float).tiny)
        here = np.indices(size.shape).astype(float)
        ahead, behind = (map_coordinates(size, here + sign * normal, order=1, mode="nearest") for sign in (1, -1))
        steep = self.step / (np.sqrt(2 * np.pi) * self.deviation * scale)
        peak = (size > steep) & (size >= ahead) & (size > behind) & self._inside(size.shape, scale)
        return here[:, peak], normal[:, peak]

    def _inside(self, size: Sequence[int], scale: float) -> Mask:
        """Where a whole profile fits."""
        margin = int(np.ceil(self.reach * scale))
        inside = np.zeros(size, bool)
        inside[margin : size[0] - margin, margin : size[1] - margin] = True
        return inside

    def profiles(self, picture: Array, points: Array, normals: Array) -> Array:
        """Shares of the gradient's energy across each edge: [N, T], one entry per pixel, each row summing to 1."""
        scale = _scale(picture)
        reach = int(np.ceil(self.reach * scale))
        offsets = np.arange(-reach, reach + 1)
        where = points[:, :, None] + normals[:, :, None] * offsets
        across = sum(
            self._sampled(slope, where) * along[:, None, None]
            for slope, along in zip(slopes(picture, self.deviation * scale), normals, strict=True)
        )
        energy = (np.abs(across) ** self.power).sum(-1) + np.finfo(float).eps
        shares: Array = energy / energy.sum(1, keepdims=True)
        return shares

    @staticmethod
    def _sampled(slope: Array, where: Array) -> Array:
        """A slope [H, W, 3] at positions [2, N, T]: [N, T, 3]."""
        return np.stack([map_coordinates(channel, where, order=1) for channel in np.moveaxis(slope, -1, 0)], -1)

    def measure(self, picture: Array, content: Array) -> Distortion:
        """The figure; the content has the picture's size. NaN where the content has no strong edges."""
        points, normals = self.points(content)
        if not points.shape[1]:
            return Distortion(float("nan"), float("nan"), 0)
        before, after = (self.profiles(each, points, normals) for each in (content, picture))
        carried = np.abs(np.cumsum(after - before, 1)).sum(1)
        offsets = np.arange(before.shape[1])
        moved = np.abs((after - before) @ offsets)
        scale = _scale(picture)
        return Distortion(float(moved.mean() / scale), float((carried - moved).mean() / scale), points.shape[1])


# ── Sizes of features ────────────────────────────────────────────────────────────────────────────────────────────────

_PEAK = float(np.exp(np.euler_gamma / 2 - 0.5))
"""λ / (2πσ̄) of a grating of period λ, where σ̄ is its mean scale (geometric, weighted by normalised Laplacian energy).

With v = k²σ² that energy is v²·e^(−v), whose mean of ln(kσ) over d ln σ is ½ψ(2) = ½(1 − γ)."""


@dataclass(frozen=True)
class Features:
    """The size of the dominant features in a region.

    Definition: the energy of the scale-normalised Laplacian σ²∇²G_σ, averaged over the region, says how much there is
    at each scale σ (Lindeberg 1998). The geometric mean of the scales, half an octave apart, weighted by it, is turned
    into the period of the grating that has the same.
    Reason: a size for any region, without cutting strokes out, that contrast doesn't change.
    Unit: percent of the shorter side. Range: about 1 to 50, from a few pixels to half of the picture.

    Attributes:
        finest: Smallest scale σ, in pixels of the picture.
        coarsest: Largest scale, as a share of the shorter side.
    """

    finest: float = 0.7
    coarsest: float = 0.1

    def measure(self, picture: Array, *regions: Mask) -> list[float]:
        """The figure in each region: over the positions where the mask [H, W] is true."""
        scales = self._scales(min(_size(picture)))
        responses = [self._energy(picture, scale) for scale in scales]
        means = [np.average(np.log(scales), weights=[each[region].mean() for each in responses]) for region in regions]
        return [float(100 * 2 * np.pi * _PEAK * np.exp(mean) / min(_size(picture))) for mean in means]

    def _scales(self, side: int) -> Array:
        octaves = np.log2(self.coarsest * side / self.finest)
        return self.finest * 2 ** np.arange(0, octaves, 0.5)

    @staticmethod
    def _energy(picture: Array, scale: float) -> Array:
        """Of the normalised Laplacian, over the channels: [H, W], above 0."""
        # A truncated kernel doesn't quite sum to 0, so the mean must go first.
        channels = np.moveaxis(picture - picture.mean((0, 1)), -1, 0)
        responses = [scale**2 * gaussian_laplace(channel, scale, mode="reflect") for channel in channels]
        energy: Array = np.square(responses).mean(0) + np.finfo(float).tiny
        return energy


def centre(size: Size, radius: float = 0.25) -> Mask:
    """The ellipse in the middle of a picture, its radii shares of the sides: [H, W]."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in size)
    inside: Mask = np.hypot(y[:, None], x[None]) <= radius
    return inside


def centre_against_background(picture: Array) -> float:
    """Size of the features in the centre over that of those around it: above 1 where the centre's are larger."""
    middle = centre(_size(picture))
    inside, outside = Features().measure(picture, middle, ~middle)
    return inside / outside
