"""Marks and surfaces: brush strokes, dabs, cut shapes, cells, and light over the relief of the paint."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

from core.samples.canvas import WHITE, Array, Canvas, at, colours_at, mix, trace, vary

_SUPERSAMPLING = 2
_GROUND_HEIGHT = 60
"""Height of the bare ground, out of 255: below every mark."""


class Paint:
    """Opaque paint with a height: colour and relief, drawn at twice the size and averaged."""

    def __init__(self, canvas: Canvas, ground: Array) -> None:
        self._canvas = canvas
        self._scale = canvas.side * _SUPERSAMPLING
        size = canvas.width * _SUPERSAMPLING, canvas.height * _SUPERSAMPLING
        self._image = Image.new("RGBA", size, _ink(ground, _GROUND_HEIGHT))  # the fourth channel is the height
        self._draw = ImageDraw.Draw(self._image)

    def strokes(self, name: str, paths: Array, widths: Array, colours: Array, *, bristles: int = 8) -> None:
        """Brush strokes along `paths` [N, M, 2], each a bundle of bristles of uneven tone, length and height.

        Args:
            name: The random stream.
            paths: Middle lines.
            widths: Greatest widths [N].
            colours: [N, 3].
            bristles: Bristles of a stroke.
        """
        rng = self._canvas.rng(f"{name} bristles")
        count, points = paths.shape[:2]
        across = np.linspace(-0.5, 0.5, bristles)
        offsets = (across + rng.normal(0, 0.25 / bristles, (count, bristles))) * widths[:, None]
        taper = np.sin(np.linspace(0.2, 0.86, points) * np.pi) ** 0.4
        hairs = paths[:, None] + (_normals(paths) * taper[:, None])[:, None] * offsets[:, :, None, None]
        lines = hairs[..., ::-1] * self._scale
        loads = rng.uniform(0.5, 1, (count, 1)) * rng.uniform(0.75, 1, (count, bristles)) * (1 - (1.6 * across) ** 4)
        shades = vary(np.repeat(colours[:, None], bristles, 1), rng, 0.05, 0.017)
        inks = (np.concatenate([shades, loads[..., None]], -1) * 255).astype(int)
        starts, ends = rng.integers(0, 3, (2, count, bristles))
        thickness = np.maximum(1, np.rint(1.7 * widths * self._scale / (bristles - 1))).astype(int)
        for n in self._visible(paths):
            for b in rng.permutation(bristles):
                line = lines[n, b, starts[n, b] : points - ends[n, b]].ravel().tolist()
                self._draw.line(line, fill=tuple(inks[n, b].tolist()), width=int(thickness[n]))

    def dabs(self, name: str, places: Array, radii: Array, colours: Array, angles: Array) -> None:
        """Touches of a round brush at `places` [N, 2]: uneven ovals along `angles` [N], higher and lighter inside."""
        rng = self._canvas.rng(f"{name} dabs")
        turn = np.linspace(0, 2 * np.pi, 11)[:-1]
        reach = radii[:, None] * rng.uniform(0.8, 1.15, (len(places), len(turn)))
        outlines = _rotated(reach * np.sin(turn), 1.25 * reach * np.cos(turn), angles[:, None])
        for n in self._visible(places[:, None]):
            for size, lighter, height in ((1.0, -0.05, 120), (0.7, 0.0, 185), (0.4, 0.04, 230)):
                inside = places[n] - 0.12 * radii[n] * (1 - size) + size * outlines[n]
                fill = _ink(colours[n] * (1 + lighter) + lighter / 3, height)
                self._draw.polygon((inside[:, ::-1] * self._scale).ravel().tolist(), fill=fill)

    def finish(self, relief: float) -> Array:
        """The picture [H, W, 3] under light that rakes over the paint, `relief` high, and the linen beneath."""
        layers = np.asarray(self._image.reduce(_SUPERSAMPLING), np.float32) / 255
        return lit(layers[..., :3], relief * (layers[..., 3] + 0.05 * linen(self._canvas)), self._canvas.side)

    def _visible(self, shapes: Array) -> list[int]:
        """Indices of the shapes [N, M, 2] with a point on the picture or near it."""
        inside = (shapes > -0.03) & (shapes < self._canvas.extent + 0.03)
        indices: list[int] = np.flatnonzero(inside.all(-1).any(-1)).tolist()
        return indices


@dataclass(frozen=True)
class Layer:
    """One round of brush strokes over the whole picture; lengths in units of the shorter side.

    Attributes:
        name: Its random stream.
        spacing: Distance between strokes.
        length: Mean length of a stroke.
        width: Mean width.
        turn: Angle from the flow, in radians.
    """

    name: str
    spacing: float
    length: float
    width: float
    turn: float = 0.0


def brush(paint: Paint, canvas: Canvas, layer: Layer, sketch: Array, angle: Array, accents: Array) -> None:
    """Covers the picture with strokes along `angle` [h, w] in the colours of `sketch` [h, w, 3].

    Every twentieth stroke leans to one of the `accents` [N, 3].
    """
    rng = canvas.rng(layer.name)
    places = canvas.scatter(f"{layer.name} places", layer.spacing)
    sizes = rng.uniform(0.6, 1.3, len(places)).astype(np.float32)
    paths = trace(angle + np.float32(layer.turn), canvas, places, layer.length * sizes)
    colours = vary(colours_at(sketch, canvas, places), rng, 0.12, 0.05)
    accent = accents[rng.integers(0, len(accents), len(places))]
    colours = mix(colours, accent, 0.6 * (rng.random(len(places)) < 0.05).astype(np.float32))
    paint.strokes(layer.name, paths, layer.width * sizes, colours)


def stencil(outlines: Iterable[Array], side: int, height: int, width: int) -> Array:
    """Coverage [height, width] in [0, 1] of the union of closed outlines [M, 2], whose unit is `side` px."""
    image = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    for outline in outlines:
        draw.polygon((outline[:, ::-1] * side * _SUPERSAMPLING).ravel().tolist(), fill=255)
    return np.asarray(image.reduce(_SUPERSAMPLING), np.float32) / 255


def lit(colours: Array, height: Array, side: int) -> Array:
    """The colours [H, W, 3] under light from the top left that rakes over a surface of `height` [H, W].

    A height of 1 over a hundredth of the unit of length, `side` px, is a slope near full light or full shadow.
    """
    surface = ndimage.gaussian_filter(height, 0.0006 * side)
    dy, dx = np.gradient(surface, 1 / side)
    light = np.tanh(-0.01 * (dy + dx))[..., None]
    shaded = colours * (1 + 0.45 * np.minimum(light, 0))
    bright = shaded + (WHITE - shaded) * 0.35 * np.maximum(light, 0)
    return np.asarray(np.clip(bright, 0, 1), np.float32)


def linen(canvas: Canvas) -> Array:
    """The height [H, W] of woven linen: threads over and under each other, of uneven thickness."""
    y, x = canvas.grid
    warp = np.sin(2 * np.pi * 230 * (x + 0.002 * canvas.noise("warp", 8)))
    weft = np.sin(2 * np.pi * 230 * (y + 0.002 * canvas.noise("weft", 8)))
    return np.asarray(warp * weft + 0.4 * canvas.noise("slubs", 110, 2), np.float32)


def fibres(canvas: Canvas, strength: float) -> Array:
    """The tone [H, W, 1], about 1, of paper."""
    return (1 + strength * canvas.noise("fibres", 160, 3))[..., None]


def _ink(colour: Array, height: int) -> tuple[int, int, int, int]:
    red, green, blue = (round(255 * min(max(float(value), 0), 1)) for value in colour)
    return red, green, blue, height


def _normals(paths: Array) -> Array:
    tangents = np.gradient(paths, axis=1)
    normals = np.stack([-tangents[..., 1], tangents[..., 0]], -1)
    return np.asarray(normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9), np.float32)


def _rotated(y: Array, x: Array, angle: Array) -> Array:
    sin, cos = np.sin(angle), np.cos(angle)
    return np.stack([x * sin + y * cos, x * cos - y * sin], -1)


# ── Cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cells:
    """A partition of the picture: each pixel's cell and its distance to the cell's border, both [H, W]."""

    index: NDArray[np.int64]
    border: Array


def voronoi(canvas: Canvas, seeds: Array, angles: Array | None = None) -> Cells:
    """The Voronoi cells of `seeds` [N, 2]; with `angles` [N], nearly square ones, each turned by its angle.

    Squares come from measuring distance in a norm close to the greatest coordinate, in axes turned with the seed
    (A. Hausner, "Simulating Decorative Mosaics", SIGGRAPH 2001).
    """
    places = np.stack(np.broadcast_arrays(*canvas.grid), -1).reshape(-1, 2)
    distance, index = cKDTree(seeds).query(places, k=2 if angles is None else 5)
    if angles is not None:
        offset = places[:, None] - seeds[index]
        squares = _rotated(offset[..., 0], offset[..., 1], angles[index]) ** 2
        sixth_powers = (squares * squares * squares).sum(-1)
        nearest = np.argsort(sixth_powers, axis=1)[:, :2]
        index = np.take_along_axis(index, nearest, 1)
        distance = np.take_along_axis(sixth_powers, nearest, 1) ** (1 / 6)
    border = (distance[:, 1] - distance[:, 0]) / 2
    shape = canvas.height, canvas.width
    return Cells(index[:, 0].reshape(shape), border.reshape(shape).astype(np.float32))


def relax(canvas: Canvas, seeds: Array, angle: Array | None = None, *, rounds: int) -> Array:
    """`seeds` [N, 2] moved to the centres of their cells (Lloyd 1982), so that they become alike and fall into rows."""
    sketch = canvas.sketch()
    y, x = np.broadcast_arrays(*sketch.grid)
    for _ in range(rounds):
        index = voronoi(sketch, seeds, None if angle is None else at(angle, sketch, seeds)).index.ravel()
        count = np.bincount(index, minlength=len(seeds))[:, None]
        total = np.stack([np.bincount(index, axis.ravel(), len(seeds)) for axis in (y, x)], -1)
        seeds = np.where(count > 0, total / np.maximum(count, 1), seeds).astype(np.float32)
    return seeds
