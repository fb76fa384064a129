"""The ground that every style is painted on: places, random fields, colours and the flow of the brush.

Places and lengths are (y, x) from the top left corner in units of the picture's shorter side, so that one seed paints
one picture at every size. Each element of a picture draws from a random stream of its own, which bears its name: what
is changed in one element leaves the others as they were.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor
from scipy import ndimage

Array = NDArray[np.floating[Any]]
"""float32 where it is as large as a picture."""

_SKETCH_SIDE = 320
"""Shorter side, in px, at which marks are planned, whatever the picture's size."""

_NOISE_GAIN = 1.55
"""Over one octave's deviation, 0.8, brings that of any noise to about 1.25."""


@dataclass(frozen=True)
class Canvas:
    """A picture's size in px, and the seed of its random streams."""

    height: int
    width: int
    seed: int

    @property
    def side(self) -> int:
        """The shorter side in px: the unit of length."""
        return min(self.height, self.width)

    @property
    def extent(self) -> Array:
        """Height and width in units of the shorter side."""
        return np.array([self.height, self.width], np.float32) / self.side

    @property
    def grid(self) -> tuple[Array, Array]:
        """The pixel centres' places: y [H, 1] and x [1, W]."""
        y, x = np.ogrid[: self.height, : self.width]
        return ((y + 0.5) / self.side).astype(np.float32), ((x + 0.5) / self.side).astype(np.float32)

    def sketch(self) -> "Canvas":
        """The same picture at the size at which marks are planned."""
        scale = _SKETCH_SIDE / self.side
        return Canvas(round(self.height * scale), round(self.width * scale), self.seed)

    def rng(self, name: str) -> np.random.Generator:
        """The random stream of the element `name`."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def noise(self, name: str, frequency: float, octaves: int = 1, *, stretch: tuple[float, float] = (1, 1)) -> Array:
        """Smooth random values [H, W], normal about 0 with a standard deviation of about 1.25.

        Detail finer than a pixel is averaged away, not aliased.

        Args:
            name: The random stream.
            frequency: Features per unit of length in the first octave.
            octaves: Each adds detail of twice the frequency and half the amplitude.
            stretch: How much longer features are along y and along x.
        """
        rng = self.rng(name)
        cells = frequency / np.array(stretch)
        total = np.zeros((self.height, self.width), np.float32)
        for octave in range(octaves):
            total += 0.5**octave * self._lattice(rng, cells * 2**octave)
        return total * (_NOISE_GAIN / math.sqrt(sum(0.25**octave for octave in range(octaves))))

    def scatter(self, name: str, spacing: float) -> Array:
        """Places [N, 2] about `spacing` apart over the picture and a margin, in random order: a jittered grid."""
        rng = self.rng(name)
        rows, columns = np.ceil((self._field() + 0.2) / spacing).astype(int).tolist()
        places = np.indices((rows, columns)).reshape(2, -1).T + rng.random((rows * columns, 2))
        return (rng.permutation(places) * spacing - 0.1).astype(np.float32)

    def spread(self, name: str, count: int) -> Array:
        """Places [count, 2] on the picture that keep apart: each is the one of 20 farthest from the others."""
        rng = self.rng(name)
        places = rng.random((1, 2)) * self.extent
        for _ in range(count - 1):
            tries = rng.random((20, 2)) * self.extent
            nearest = np.linalg.norm(tries[:, None] - places, axis=-1).min(1)
            places = np.vstack([places, tries[nearest.argmax()]])
        return places.astype(np.float32)

    def _field(self) -> Array:
        """An extent larger than the picture, in coarse steps, so that rounding an odd size to px moves nothing."""
        return np.asarray(np.ceil((self.extent - 0.2) * 2) / 2 + 0.2)

    def _lattice(self, rng: np.random.Generator, cells: NDArray[np.float64]) -> Array:
        rows, columns = np.ceil(self._field() * cells).astype(int) + 5
        values = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
        top, left = 2 + rng.random(2)
        bottom, right = (top, left) + self.extent * cells
        box = (float(left), float(top), float(right), float(bottom))
        return np.asarray(values.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box))


def at(field: Array, canvas: Canvas, places: Array, *, beyond: str = "nearest") -> Array:
    """Values [...] of `field` [h, w], which covers `canvas` at any resolution, at `places` [..., 2].

    `beyond` is how the field continues outside, in SciPy's terms.
    """
    rows_columns = np.moveaxis(places / canvas.extent * np.array(field.shape, np.float32) - 0.5, -1, 0)
    return np.asarray(ndimage.map_coordinates(field, rows_columns, order=1, mode=beyond), np.float32)


def colours_at(picture: Array, canvas: Canvas, places: Array) -> Array:
    """Colours [N, 3] of `picture` [h, w, 3], which covers `canvas` at any resolution, at `places` [N, 2]."""
    return np.stack([at(channel, canvas, places) for channel in np.moveaxis(picture, -1, 0)], -1)


# ── Colour ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def palette(*colours: str) -> Array:
    """Colours [N, 3] in [0, 1] from hexadecimal triples."""
    return np.array([ImageColor.getrgb(colour) for colour in colours], np.float32) / 255


def tint(colour: str) -> Array:
    """One colour [3]."""
    return palette(colour).reshape(3)


WHITE = tint("#ffffff")


def ramp(colours: Array, position: ArrayLike) -> Array:
    """The colours [..., 3] at `position` [...] in [0, 1] along a palette, blended between neighbours."""
    place = np.clip(np.asarray(position, np.float32), 0, 1) * (len(colours) - 1)
    first = np.minimum(place.astype(np.int64), len(colours) - 2)
    return mix(colours[first], colours[first + 1], (place - first).astype(np.float32))


def mix(first: Array, second: Array, part: Array | float) -> Array:
    """Colours [..., 3]: `first` where `part` [...] is 0 or less, `second` where it is 1 or more, blends between."""
    return lerp(first, second, np.clip(np.asarray(part, np.float32), 0, 1)[..., None])


def lerp(first: Array, second: Array, part: Array) -> Array:
    """Values `first` where `part` is 0, `second` where it is 1, blends between; all of one shape."""
    return np.asarray(first + (second - first) * part, np.float32)


def vary(colours: Array, rng: np.random.Generator, tone: float, hue: float) -> Array:
    """The colours [..., 3] with random shifts of tone (the same in each channel) and of hue (one for each channel)."""
    shift = tone * rng.standard_normal((*colours.shape[:-1], 1)) + hue * rng.standard_normal(colours.shape)
    return np.clip(colours + shift * (0.35 + colours), 0, 1).astype(np.float32)


def smoothstep(low: float, high: float, value: ArrayLike) -> Array:
    """0 at `low` and before, 1 at `high` and after, smooth between; `low` may be the larger."""
    t = np.clip((np.asarray(value, np.float32) - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


# ── Flow ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def along(potential: Array) -> Array:
    """The angle [h, w] of the level lines of `potential`: the flow is its curl, without sources or sinks."""
    dy, dx = np.gradient(potential)
    return np.asarray(np.arctan2(-dx, dy), np.float32)


def trace(angle: Array, canvas: Canvas, places: Array, lengths: Array, points: int = 12) -> Array:
    """Paths [N, points, 2] of the given lengths [N] along `angle` [h, w], centred on `places` [N, 2]."""
    flow = np.sin(angle), np.cos(angle)
    step = (lengths / (points - 1))[:, None]

    def direction(place: Array) -> Array:
        return np.stack([at(component, canvas, place) for component in flow], -1)

    def walk(sign: int) -> list[Array]:
        passed: list[Array] = [places + sign * step / 2 * direction(places)]
        while len(passed) < points // 2:
            middle = passed[-1] + sign * step / 2 * direction(passed[-1])
            passed.append(passed[-1] + sign * step * direction(middle))
        return passed

    return np.stack([*walk(-1)[::-1], *walk(1)], axis=1)
