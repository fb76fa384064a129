"""Cut paper: sheets brushed with gouache, cut into leaves, flowers and stars, and glued over each other."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from core.samples.canvas import Array, Canvas, at, mix, palette, smoothstep
from core.samples.marks import fibres, lit, stencil

_SHEETS = palette(
    "#1d4fa3", "#f2b632", "#e8502c", "#f6efdc", "#1b8259", "#e4789b", "#152c5b",
    "#f7dc7a", "#68bfc4", "#6d3b8c", "#f08326", "#bccb3a", "#8c1f3d", "#20242e",
)  # fmt: skip
_CREAM = 3

Box = tuple[float, float, float, float]
"""Top, left, bottom, right."""

Outlines = list[Array]
Form = Callable[[np.random.Generator], Outlines]
"""Draws a shape: closed outlines [M, 2] whose union fills about the square from -1 to 1, its stem at the bottom."""


def cutouts(canvas: Canvas) -> Array:
    """A patchwork of sheets, a leaf, flower or star on each, and confetti between."""
    rng = canvas.rng("layout")
    collage = _Collage(canvas)
    sheet = _CREAM
    height, width = canvas.extent.tolist()
    for n, box in enumerate(_divided((-0.01, -0.01, height + 0.01, width + 0.01), rng)):
        sheet = _contrasting(rng, 0.5, sheet)
        leaf = _contrasting(rng, 0.9, sheet)
        collage.paste([_torn(box, rng)], sheet)
        collage.paste(_confetti((pebble, star)[n % 2], box, rng), _contrasting(rng, 0.6, sheet, leaf))
        collage.paste(_motif((alga, fern, flower, star)[n % 4], box, rng), leaf)
        if n % 4 == 2:
            collage.paste(_motif(pebble, box, rng, 0.2), _contrasting(rng, 0.8, leaf))
    return np.asarray(np.clip(collage.picture * fibres(canvas, 0.03), 0, 1), np.float32)


class _Collage:
    """Sheets glued over each other."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._rng = canvas.rng("gouache")
        self._sheet = Canvas(canvas.side, canvas.side, canvas.seed)
        hairs = self._sheet.noise("hairs", 26, 5, stretch=(0.7, 9)) + 0.4 * self._sheet.noise(
            "bristles", 120, 2, stretch=(0.8, 12)
        )
        self._streaks = 0.75 * hairs + 0.6 * self._sheet.noise("washes", 5, 3, stretch=(1, 2.5))
        self.picture = self._gouache(_SHEETS[_CREAM], (slice(None), slice(None)))

    def paste(self, outlines: Outlines, sheet: int) -> None:
        """Glues down the union of the outlines, with its shadow under it and light on its edge."""
        side = self._canvas.side
        window, origin = self._window(np.concatenate(outlines))
        below = self.picture[window]
        shape = stencil([outline - origin for outline in outlines], side, *below.shape[:2])
        # The blur and the new threshold round the corners and fuse what touches, as scissors do.
        cut = smoothstep(0.3, 0.7, ndimage.gaussian_filter(shape, 0.0022 * side))
        shadow = ndimage.gaussian_filter(ndimage.shift(cut, 0.004 * side, order=1), 0.0045 * side)
        paper = lit(self._gouache(_SHEETS[sheet], window), 0.12 * cut, side)
        self.picture[window] = mix(below * (1 - 0.5 * shadow[..., None]), paper, cut)

    def _window(self, points: Array) -> tuple[tuple[slice, slice], Array]:
        """The window of the picture that a sheet with these points [N, 2] and its shadow touch, and its corner."""
        size = self._canvas.height, self._canvas.width
        top, left = np.clip((points.min(0) - 0.03) * self._canvas.side, 0, size).astype(int).tolist()
        bottom, right = np.clip((points.max(0) + 0.03) * self._canvas.side, 0, size).astype(int).tolist()
        return (slice(top, bottom), slice(left, right)), np.array([top, left], np.float32) / self._canvas.side

    def _gouache(self, colour: Array, window: tuple[slice, slice]) -> Array:
        """The colour [h, w, 3] as a sheet brushed in some direction, in a window of the picture."""
        angle = self._rng.uniform(-0.35, 0.35) + np.pi / 2 * float(self._rng.integers(2))
        shift = self._rng.random(2).astype(np.float32)
        y, x = self._canvas.grid
        y, x = y[window[0]], x[:, window[1]]
        across, along = y * np.cos(angle) - x * np.sin(angle), x * np.cos(angle) + y * np.sin(angle)
        streak = at(self._streaks, self._sheet, np.stack([across, along], -1) + shift, beyond="mirror")[..., None]
        thick = np.array([0.05, 0.03, 0.015], np.float32) * np.maximum(streak, 0)
        return np.clip(colour * (1 + 0.1 * streak) + thick, 0, 1)


def _contrasting(rng: np.random.Generator, least: float, *sheets: int) -> int:
    """A random sheet whose colour is at least that far from those of all the others."""
    distance = np.abs(_SHEETS[:, None] - _SHEETS[list(sheets)]).sum(-1).min(1)
    return int(rng.choice(np.flatnonzero(distance > least)))


def _divided(box: Box, rng: np.random.Generator) -> list[Box]:
    """The box, or those it falls into when it is cut across again and again until all are small."""
    top, left, bottom, right = box
    tall, wide = bottom - top, right - left
    if max(tall, wide) < 0.44 * rng.uniform(0.85, 1.15):
        return [box]
    cut = rng.uniform(0.36, 0.64)
    if tall > wide:
        edge = top + cut * tall
        return _divided((top, left, edge, right), rng) + _divided((edge, left, bottom, right), rng)
    edge = left + cut * wide
    return _divided((top, left, bottom, edge), rng) + _divided((top, edge, bottom, right), rng)


def _torn(box: Box, rng: np.random.Generator) -> Array:
    """The box as cut by hand."""
    top, left, bottom, right = box
    corners = np.array([[top, left], [top, right], [bottom, right], [bottom, left]]) + rng.uniform(
        -0.008, 0.008, (4, 2)
    )
    steps = np.linspace(0, 1, 9)[:-1, None]
    outline = np.concatenate([a + (b - a) * steps for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)])
    return np.asarray(outline + rng.normal(0, 0.0015, outline.shape))


def _confetti(form: Form, box: Box, rng: np.random.Generator) -> Outlines:
    """Small shapes all over the box."""
    corner, size = np.array(box[:2]), np.subtract(box[2:], box[:2])
    places = corner + rng.random((int(260 * size.prod()), 2)) * size
    return [outline for place in places for outline in _placed(form(rng), place, np.full(2, 0.022), rng.uniform(0, 6))]


def _motif(form: Form, box: Box, rng: np.random.Generator, scale: float = 1) -> Outlines:
    """One shape that fills the box, its stem along the longer side."""
    centre, size = np.add(box[:2], box[2:]) / 2, np.subtract(box[2:], box[:2])
    half = 0.46 * scale * np.array([min(size.max(), 1.5 * size.min()), size.min()])
    lying = 0 if size[0] > size[1] else np.pi / 2
    return _placed(form(rng), centre, half, lying + rng.normal(0, 0.12))


def _placed(outlines: Outlines, centre: Array, half: Array, angle: float) -> Outlines:
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [centre + (outline * half) @ turn for outline in outlines]


# ── Forms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def alga(rng: np.random.Generator) -> Outlines:
    """A stem with fingers on both sides that thicken towards their ends."""
    count = int(rng.integers(4, 7))
    shapes = [_limb((1, 0), (-0.9, 0), rng.uniform(-0.06, 0.06), np.linspace(0.1, 0.07, 16))]
    for k in range(count):
        for side in (-1, 1):
            root = 0.85 - 1.6 * (k + 0.3 * (side > 0)) / count
            reach = rng.uniform(0.62, 0.9) * np.sin(np.pi * (0.3 + 0.5 * (k + 1) / count))
            tip = root - 0.32 * rng.uniform(0.6, 1.2), side * reach
            shapes.append(_limb((root, 0), tip, -0.2 * side, np.linspace(0.07, 0.125, 12) * 4.5 / count))
    return shapes


def fern(rng: np.random.Generator) -> Outlines:
    """A stem with pointed leaflets on both sides."""
    count = int(rng.integers(6, 10))
    leaflet = 0.015 + 0.62 / count * np.sin(np.pi * np.linspace(0, 1, 14) ** 0.8) ** 0.8
    shapes = [_limb((1, 0), (-0.85, 0), rng.uniform(-0.05, 0.05), np.linspace(0.06, 0.02, 14))]
    for k in range(count + 1):
        for side in (-1, 1):
            root = 0.8 - 1.6 * k / count
            reach = 0.95 * np.sin(np.pi * (0.2 + 0.68 * k / count)) * rng.uniform(0.88, 1.08)
            shapes.append(_limb((root, 0), (root - 0.35, side * reach), -0.12 * side, leaflet))
    return shapes


def flower(rng: np.random.Generator) -> Outlines:
    """Petals around a centre, all bent one way."""
    count = int(rng.integers(6, 10))
    petal = 0.04 + 1.25 / count * np.sin(np.pi * np.linspace(0, 0.93, 14)) ** 1.3
    angles = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 1)
    reaches = 0.9 * rng.uniform(0.85, 1.1, count)
    return [_limb((0, 0), (r * np.sin(a), r * np.cos(a)), 0.15, petal) for r, a in zip(reaches, angles, strict=True)]


def star(rng: np.random.Generator) -> Outlines:
    """Five to eight uneven rays."""
    count = int(rng.integers(5, 9))
    radii = np.tile([1.0, 0.42], count) * rng.uniform(0.85, 1.1, 2 * count)
    return [_polar(radii, np.arange(2 * count) * np.pi / count + rng.uniform(0, 1))]


def pebble(rng: np.random.Generator) -> Outlines:
    """A rounded blob."""
    angles = np.linspace(0, 2 * np.pi, 25)[:-1]
    radii = 0.8 + 0.15 * np.cos(2 * angles + rng.uniform(0, 6)) + 0.08 * np.cos(3 * angles + rng.uniform(0, 6))
    return [_polar(radii, angles)]


def _polar(radii: Array, angles: Array) -> Array:
    return np.asarray(radii[:, None] * np.stack([np.sin(angles), np.cos(angles)], -1))


def _limb(start: tuple[float, float], end: tuple[float, float], bend: float, radii: Array) -> Array:
    """The outline of a limb from `start` to `end`, bent sideways, with `radii` [n] along it and a round end."""
    t = np.linspace(0, 1, len(radii))[:, None]
    axis = np.subtract(end, start)
    path = start + axis * t + np.array([-axis[1], axis[0]]) * bend * np.sin(np.pi * t)
    normals = np.gradient(path, axis=0)[:, ::-1] * (1, -1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    left, right = path + normals * radii[:, None], path - normals * radii[:, None]
    turn = np.linspace(0, np.pi, 9)[:, None]
    forwards = np.array([-normals[-1, 1], normals[-1, 0]])
    cap = path[-1] + radii[-1] * (np.cos(turn) * normals[-1] + np.sin(turn) * forwards)
    return np.concatenate([left, cap, right[::-1]])
