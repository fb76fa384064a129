"""Pictures of pieces: a mosaic of glass tesserae, and a leaded window."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.samples.canvas import WHITE, Array, Canvas, along, at, colours_at, mix, palette, ramp, smoothstep, tint, vary
from core.samples.marks import lit, relax, voronoi

# ── Mosaic: flowers on water ─────────────────────────────────────────────────────────────────────────────────────────

_FLOWERS = (
    palette("#ffd23f", "#ffb81f", "#6e1220", "#c21f24", "#e8452c", "#ff8a4a", "#ffd9a8", "#a01c28"),
    palette("#7a2a0c", "#b85a10", "#f08a14", "#ffb51f", "#ffd84a", "#fff3c0", "#ffc830", "#8a4208"),
    palette("#ffe27a", "#e8b02c", "#5a0f45", "#a81f66", "#e0508c", "#f79ab8", "#fff0ee", "#7a1450"),
)  # fmt: skip
_WATER = palette(
    "#0d2a5e", "#e2b33c", "#0b4a6a", "#118a8a", "#35b59a", "#a9e0c0", "#2aa5b0", "#0f74a8",
    "#123f8c", "#0d2560", "#1d5aa8", "#46a0cc", "#d9ecd0", "#e2b33c", "#14407c",
)  # fmt: skip


def mosaic(canvas: Canvas) -> Array:
    """Flowers on water, in nearly square Voronoi tiles laid in rows around the flowers."""
    picture, rows = _flowers(canvas.sketch())
    seeds = relax(canvas, canvas.scatter("tesserae", 0.017), rows, rounds=10)
    cells = voronoi(canvas, seeds, at(rows, canvas, seeds))
    rng = canvas.rng("tiles")
    tiles = vary(colours_at(picture, canvas, seeds), rng, 0.085, 0.035)
    smalti = tiles[cells.index] * (1 + 0.09 * canvas.noise("smalti", 70, 3)[..., None])
    grout = tint("#8d8172") * (0.62 + 0.16 * canvas.noise("sand", 220, 2)[..., None])

    inside = cells.border - 0.001 * (1 + 0.3 * canvas.noise("gaps", 60))
    tilt = rng.normal(0, 8.5, (len(seeds), 2)).astype(np.float32)[cells.index]
    from_centre = np.stack(np.broadcast_arrays(*canvas.grid), -1) - seeds[cells.index]
    bevel = 6.3 * np.sqrt(np.clip(inside, 0, 0.004))
    height = bevel + (tilt * from_centre).sum(-1) + 0.035 * canvas.noise("chips", 90, 3)
    tile = smoothstep(-0.0006, 0.0006, inside)
    return lit(mix(grout, smalti, tile), height * tile, canvas.side)


def _flowers(sketch: Canvas) -> tuple[Array, Array]:
    """Colours [h, w, 3], and the angle [h, w] of the rows of tiles, which run around the nearest flower."""
    y, x = sketch.grid
    rng = sketch.rng("flowers")
    beyond = np.full((sketch.height, sketch.width), np.inf, np.float32)
    picture = np.zeros((*beyond.shape, 3), np.float32)
    for n, place in enumerate(sketch.spread("flowers", 7)):
        turn = np.arctan2(y - place[0], x - place[1]) + rng.uniform(0, 6)
        petals = 1 + 0.16 * (np.abs(np.cos(turn * float(rng.integers(5, 9)) / 2)) - 0.6)
        distance = np.hypot(y - place[0], x - place[1]) / (rng.uniform(0.13, 0.2) * petals)
        picture = np.where((distance < beyond)[..., None], ramp(_FLOWERS[n % len(_FLOWERS)], distance), picture)
        beyond = np.minimum(beyond, distance).astype(np.float32)
    current = beyond + 0.08 * sketch.noise("current", 3, 2)
    picture = mix(picture, ramp(_WATER, (current - 1) / 1.7), (beyond >= 1).astype(np.float32))
    return picture, along(ndimage.gaussian_filter(beyond, 1.5))


# ── Glass: a sun over hills and water ────────────────────────────────────────────────────────────────────────────────

_DAWN = palette("#ffe68a", "#ffcf3a", "#ff9e1b", "#f2641a", "#d6304a", "#8f2d8c", "#3d3fa8", "#1d63b8", "#1796c4")
_LAND = palette(
    "#0f5a3c", "#2f8f3a", "#8fbf2a", "#e3c52c", "#1c9a8a", "#1273b0", "#1b3f94", "#4a2a86", "#0f6a5a", "#3aa04a"
)  # fmt: skip


def glass(canvas: Canvas) -> Array:
    """A leaded window: the sun and its rings over bands of land, in opalescent glass."""
    names, position, is_sky = _cartoon(canvas)
    pieces, piece = np.unique(names, return_inverse=True)
    piece = piece.reshape(names.shape)
    pane = _panes(canvas, pieces, piece, _piece_means(piece, position), _piece_means(piece, is_sky) > 0.5)
    border = _distance_to_border(piece) / canvas.side
    pane = pane * (0.72 + 0.4 * smoothstep(0, 0.045, border) + 0.1 * canvas.noise("daylight", 2, 2))[..., None]
    half = 0.0052 * (1 + 0.12 * canvas.noise("lead", 12))
    lead = smoothstep(0.0006, -0.0006, border - half)
    window = mix(pane, _came(canvas, border / half), lead)
    halo = ndimage.gaussian_filter(pane * (1 - lead)[..., None], (0.006 * canvas.side, 0.006 * canvas.side, 0))
    return np.asarray(np.clip(window + 0.16 * halo, 0, 1), np.float32)


def _cartoon(canvas: Canvas) -> tuple[NDArray[np.int64], Array, Array]:
    """The drawing at full size: each pixel's piece by name, its place along its palette, and whether it is sky."""
    y, x = canvas.grid
    h, w = canvas.extent
    down, right = y - 0.36 * h, x - 0.6 * w
    away = np.hypot(down, right) * (1 + 0.02 * canvas.noise("wobble", 3))
    ring = np.ceil((away - 0.1) / 0.145).clip(0).astype(np.int64)
    turn = (np.arctan2(down, right) / (2 * np.pi) + 0.5) * 14 + 0.14 * canvas.noise("rays", 2)
    ray = np.where(ring > 0, np.floor(turn).astype(np.int64) % 14, 0)
    land = y - 0.6 * h - 0.07 * canvas.noise("land", 1.5, 2, stretch=(9, 1.2))
    band = land / (0.075 + 0.16 * np.maximum(land, 0)) + 0.35 * canvas.noise("river", 1.6)
    cell = voronoi(canvas, relax(canvas, canvas.scatter("panes", 0.085), rounds=2)).index
    sky = land < 0
    panel = np.where(sky, 14 * ring + ray, 1000 + np.floor(band).astype(np.int64))
    whole = sky & (ring < 3)
    names = np.where(whole, panel * 4096, panel * 4096 + cell)
    return names, np.where(sky, 1.15 * away, band / 5.5).astype(np.float32), sky.astype(np.float32)


def _panes(
    canvas: Canvas, pieces: NDArray[np.int64], piece: NDArray[np.int64], position: Array, sky: NDArray[np.bool_]
) -> Array:
    """Streaky glass [H, W, 3]: every piece has a colour of its own and is cut from its sheet at an angle of its own."""
    draw = (
        canvas.rng("pieces").random((4093, 4)).astype(np.float32)[pieces % 4093]
    )  # by name: the same however many slivers there are
    shade = position + 0.25 * (draw[:, 0] - 0.5)
    colour = np.where(sky[:, None], ramp(_DAWN, shade), ramp(_LAND, shade)) * (0.8 + 0.35 * draw[:, 1:2])
    y, x = canvas.grid
    angle = (np.pi * draw[:, 2])[piece]
    along_grain = x * np.cos(angle) + y * np.sin(angle) + draw[:, 3][piece]
    across = y * np.cos(angle) - x * np.sin(angle) + draw[:, 3][piece]
    sheet = Canvas(canvas.side, canvas.side, canvas.seed)
    streak = at(
        sheet.noise("streaks", 14, 6, stretch=(0.7, 4)), sheet, np.stack([across, along_grain], -1), beyond="mirror"
    )
    pale = mix(colour, WHITE, 0.45)
    pane = mix(colour[piece], pale[piece], 0.75 * smoothstep(0, 2.2, streak))
    pane = mix(pane, 0.45 * pane, 0.8 * smoothstep(0.1, 2.2, -streak))
    return lit(pane, 0.04 * canvas.noise("hammered", 60, 3) + 0.04 * streak, canvas.side)


def _came(canvas: Canvas, across: Array) -> Array:
    """Lead [H, W, 3], round in section; `across` is 0 in the middle and 1 at its edge."""
    lead = tint("#26262b") * (1 + 0.35 * canvas.noise("patina", 60, 3)[..., None])
    round_section = np.sqrt(np.clip(1 - across**2, 0, 1))
    return lit(lead, 0.18 * round_section + 0.009 * canvas.noise("solder", 30, 2), canvas.side)


def _piece_means(piece: NDArray[np.int64], values: Array) -> Array:
    flat = piece.ravel()
    return (np.bincount(flat, values.ravel()) / np.bincount(flat)).astype(np.float32)


def _distance_to_border(piece: NDArray[np.int64]) -> Array:
    """Distance in px of each pixel from the nearest that has another piece to its left or above it."""
    border = np.zeros(piece.shape, bool)
    border[:, 1:] |= piece[:, 1:] != piece[:, :-1]
    border[1:] |= piece[1:] != piece[:-1]
    return np.asarray(ndimage.distance_transform_edt(~border), np.float32)
