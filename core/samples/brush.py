"""Paintings in oil: swirling strokes, dabs of divided colour, an impasto of water lilies."""

import numpy as np

from core.samples.canvas import Array, Canvas, along, at, colours_at, mix, palette, ramp, smoothstep, tint, vary
from core.samples.marks import Layer, Paint, brush

# ── Swirls: a windy night over fields ────────────────────────────────────────────────────────────────────────────────


def swirls(canvas: Canvas) -> Array:
    """Stars and wind over fields, in strokes along the curl of a noise field."""
    sketch = canvas.sketch()
    y, _ = sketch.grid
    horizon = 0.76 * sketch.extent[0] + 0.05 * sketch.noise("hills", 2.2, 2, stretch=(9, 1))
    wind, glow = _wind(sketch)
    furrows = 4 * (y - horizon) + 0.13 * sketch.noise("furrows", 3, 2, stretch=(1, 1.7))
    angle = np.where(y < horizon, along(wind), along(furrows))
    land = _fields(sketch, furrows, y - horizon)
    picture = mix(_night(sketch, wind, glow), land, smoothstep(-0.004, 0.004, y - horizon))

    paint = Paint(canvas, tint("#4a2f1d"))
    accents = palette("#e98f3a", "#f3d9a0", "#8fd0c0", "#c45a3c")
    for layer in (
        Layer("under", 0.02, 0.15, 0.026),
        Layer("body", 0.014, 0.085, 0.0155),
        Layer("light", 0.019, 0.055, 0.009),
    ):
        brush(paint, canvas, layer, picture, angle, accents)
    return paint.finish(0.7)


def _wind(sketch: Canvas) -> tuple[Array, Array]:
    """The potential of the wind, which turns around two whirls and the stars, and the glow of the stars."""
    y, x = sketch.grid
    rng = sketch.rng("stars")
    wind = 0.28 * sketch.noise("wind", 2.2, 2) + 0.8 * y
    glow = np.zeros_like(wind)
    for n, place in enumerate(sketch.spread("stars", 9) * np.array([0.7, 1], np.float32)):
        radius = rng.uniform(0.15, 0.2) if n < 2 else rng.uniform(0.05, 0.12)
        distance = np.hypot(y - place[0], x - place[1]) * (1 + 0.08 * sketch.noise(f"star {n}", 6)) / radius
        wind += float(rng.choice([-1.6, 1.6])) * np.exp(-(distance**2))
        glow = np.maximum(glow, np.exp(-2 * distance**2) if n >= 2 else 0)
    return wind, glow


def _night(sketch: Canvas, wind: Array, glow: Array) -> Array:
    blues = palette("#0a0f33", "#14246b", "#1d4a98", "#3b7fb8", "#79b3c4", "#d8dfba", "#efd58a")
    fires = palette("#fff3c4", "#f9d54e", "#ee9b2c", "#c4562a")
    night = ramp(blues, 0.36 + 0.12 * sketch.noise("dusk", 2.5, 3) + 0.22 * np.sin(7 * wind))
    return mix(night, ramp(fires, 0.5 + 0.4 * np.sin(11 * wind) - 0.3 * glow), smoothstep(0.3, 0.7, glow))


def _fields(sketch: Canvas, furrows: Array, depth: Array) -> Array:
    crops = palette("#14283a", "#1f4a3c", "#5d7d35", "#c79c33", "#f0d679")
    fields = ramp(crops, 0.5 + 0.3 * np.sin(16 * furrows) + 0.2 * sketch.noise("crops", 5, 3))
    return mix(tint("#22386b"), fields, smoothstep(0, 0.07, depth + 0.02 * sketch.noise("mist", 4)))


# ── Points: a lake at sunset ─────────────────────────────────────────────────────────────────────────────────────────


def points(canvas: Canvas) -> Array:
    """A lake at sunset in dabs of divided colour."""
    sketch = canvas.sketch()
    y, x = sketch.grid
    h, w = sketch.extent
    horizon, sun_x = 0.56 * h, 0.62 * w
    shore = 0.86 * h + 0.09 * sketch.noise("shore", 1.4, 3, stretch=(9, 1)) + 0.25 * (x / w - 0.5)
    from_sun = np.hypot(y - horizon + 0.13, x - sun_x)

    picture = _sunset(sketch, from_sun)
    picture = mix(picture, _ridge(sketch, y - horizon), smoothstep(0, 0.006, y - _ridge_line(sketch, horizon)))
    picture = mix(picture, _lake(sketch, y - horizon, np.abs(x - sun_x)), smoothstep(-0.003, 0.003, y - horizon))
    picture = mix(picture, _meadow(sketch), smoothstep(-0.006, 0.006, y - shore))
    picture = mix(picture, _needles(sketch), _pines(sketch) * (y < shore + 0.05))
    around_sun = np.arctan2(y - horizon + 0.13, x - sun_x) + np.pi / 2
    angle = np.where(y < horizon, around_sun, 0.25 * sketch.noise("drift", 4))

    paint = Paint(canvas, tint("#d9c29a"))
    for name, spacing, radius in (
        ("ground", 0.021, 0.017),
        ("large", 0.0155, 0.0085),
        ("middle", 0.0135, 0.0062),
        ("small", 0.0145, 0.0042),
    ):
        rng = canvas.rng(name)
        places = canvas.scatter(f"{name} places", spacing)
        colours = _divided(colours_at(picture, canvas, places), rng)
        radii = radius * rng.uniform(0.75, 1.2, len(places))
        paint.dabs(name, places, radii, colours, at(angle, canvas, places) + rng.normal(0, 0.25, len(places)))
    return paint.finish(0.3)


def _divided(colours: Array, rng: np.random.Generator) -> Array:
    """The colours [N, 3] parted for the eye to mix: more vivid, and each pushed towards some pure colour, a few far."""
    pure = palette("#ff3b30", "#ffb000", "#ffe000", "#20b060", "#1090d0", "#4040d0", "#b040c0", "#ffffff")
    count = len(colours)
    grey = colours.mean(-1, keepdims=True)
    push = np.where(rng.random(count) < 0.12, 0.55, rng.uniform(0, 0.3, count))
    vivid = np.clip(grey + 1.35 * (colours - grey), 0, 1)
    return vary(mix(vivid, pure[rng.integers(0, len(pure), count)], push), rng, 0.09, 0.03)


def _sunset(sketch: Canvas, from_sun: Array) -> Array:
    sky = palette("#fff6c8", "#ffe08a", "#ffc069", "#f79a6b", "#e0849a", "#b78bc4", "#8aa0dc", "#7cc0dc")
    return ramp(sky, 1.2 * from_sun + 0.12 * sketch.noise("clouds", 3, 4, stretch=(0.6, 2.4)))


def _ridge_line(sketch: Canvas, horizon: float) -> Array:
    return horizon - 0.05 - 0.05 * np.abs(sketch.noise("ridge", 2, 3, stretch=(9, 1)))


def _ridge(sketch: Canvas, below: Array) -> Array:
    hills = palette("#6b5aa8", "#7f7fc9", "#c78fae", "#e8a887")
    return ramp(hills, 0.4 + 0.25 * sketch.noise("slopes", 6, 3) - 2 * below)


def _lake(sketch: Canvas, below: Array, beside: Array) -> Array:
    water = palette("#fff0b0", "#ffc36b", "#ef8f78", "#a878bd", "#5f7fc9", "#2f6fb0", "#1f7f96", "#1b4a78")
    ripples = 0.16 * sketch.noise("ripples", 9, 3, stretch=(0.35, 2.2))
    return ramp(water, 1.2 * beside + 0.8 * below + ripples)


def _meadow(sketch: Canvas) -> Array:
    flowers = palette("#1f4a5c", "#2f7a4c", "#6fa63a", "#c9c14a", "#f0a83c", "#d9587a")
    return ramp(flowers, 0.42 + 0.28 * sketch.noise("flowers", 9, 3))


def _needles(sketch: Canvas) -> Array:
    shades = palette("#141f4d", "#1b3f6b", "#1f5f5a", "#3f8a4a", "#8a4a86")
    return ramp(shades, 0.38 + 0.3 * sketch.noise("boughs", 14, 3))


def _pines(sketch: Canvas) -> Array:
    """Coverage [h, w] of three trees, each tapering upwards in tiers of boughs."""
    y, x = sketch.grid
    h, w = sketch.extent
    cover = np.zeros((sketch.height, sketch.width), np.float32)
    for place, top in ((0.1, 0.24), (0.22, 0.4), (0.95, 0.3)):
        aside = np.abs(x - place * w)
        tiers = 0.75 + 0.45 * np.sin(55 * y + 20 * aside)
        reach = 0.16 * np.clip(y / h - top, 0, 0.6) * tiers + 0.012 * (1 + sketch.noise("needles", 22, 2))
        cover = np.maximum(cover, smoothstep(-0.004, 0.004, reach - aside) * (y > top * h))
    return cover


# ── Lilies: a pond ───────────────────────────────────────────────────────────────────────────────────────────────────


def lilies(canvas: Canvas) -> Array:
    """A pond with water lilies: reflections in upright strokes, the water's surface across them."""
    sketch = canvas.sketch()
    picture, angle, blossoms = _pond(sketch)
    paint = Paint(canvas, tint("#5b4a6a"))
    accents = palette("#f0c3c0", "#3f8f7a", "#fbe3b8", "#3a3f8f")
    layers = (
        Layer("under", 0.024, 0.12, 0.034, turn=1.5),
        Layer("reflections", 0.018, 0.085, 0.016, turn=1.6),
        Layer("surface", 0.019, 0.06, 0.012),
        Layer("light", 0.0165, 0.034, 0.0078),
    )
    for layer in layers:
        brush(paint, canvas, layer, picture, angle, accents)
    for n, (y, x, radius) in enumerate(blossoms):
        _blossom(paint, canvas, f"blossom {n}", np.array([y, x], np.float32), radius)
    return paint.finish(0.7)


def _pond(sketch: Canvas) -> tuple[Array, Array, list[tuple[float, float, float]]]:
    """Colours [h, w, 3], the angle [h, w] of the strokes, and the blossoms (y, x, radius), the nearest last."""
    y, x = sketch.grid
    rng = sketch.rng("pads")
    water = palette("#12333a", "#1f5a52", "#2f6f8f", "#5a6fb8", "#8f86c9", "#c9a3cf", "#f3bfc0", "#fbe3b8", "#fff3d6")
    willows = 0.26 * sketch.noise("willows", 2.2, 3, stretch=(3.5, 0.8))
    picture = ramp(water, 0.47 + willows - willows.mean() + 0.1 * sketch.noise("sky", 3, 3, stretch=(0.6, 2)))
    ripples = 0.1 * sketch.noise("ripples", 6, 2, stretch=(0.5, 2))
    angle, blossoms = ripples, []
    for place in sorted(sketch.spread("clusters", 24).tolist()):
        for _ in range(rng.integers(3, 8)):
            radius = (0.018 + 0.036 * place[0] / float(sketch.extent[0])) * rng.uniform(0.7, 1.3)
            top, left = place[0] + rng.normal(0, 0.02), place[1] + rng.normal(0, 0.075)
            beyond = np.hypot((y - top) / 0.42, x - left) / radius
            shadow = np.hypot((y - top - 0.25 * radius) / 0.42, x - left) / radius
            greens = palette("#bcd08a", "#6fa368", "#2f7a5c", "#1d5a5a", "#c9a0b0")
            pad = ramp(greens, 0.35 + 0.3 * beyond + rng.normal(0, 0.12) + 2 * ripples)
            picture = mix(
                mix(picture, 0.68 * picture, smoothstep(1.5, 1.0, shadow)), pad, smoothstep(1.03, 0.97, beyond)
            )
            angle = np.where(beyond < 1.1, np.arctan2((left - x) * 0.42, (y - top) / 0.42), angle)
            if rng.random() < 0.3:
                blossoms.append((top - 0.2 * radius, left, radius))
    return picture, angle, blossoms


def _blossom(paint: Paint, canvas: Canvas, name: str, heart: Array, radius: float) -> None:
    rng = canvas.rng(name)
    petals = 14
    turn = np.sort(rng.uniform(0.95 * np.pi, 2.05 * np.pi, petals))
    reach = radius * rng.uniform(0.35, 0.75, petals)
    towards = reach[:, None] * np.stack([0.9 * np.sin(turn), np.cos(turn)], -1)
    paths = heart + towards[:, None] * np.linspace(0.1, 1, 8)[:, None]
    pinks = palette("#c2416b", "#ee9ab0", "#fbe3df", "#fffaf0")
    colours = vary(ramp(pinks, rng.random(petals)), rng, 0.05, 0.03)
    paint.strokes(name, paths, np.full(petals, 0.26 * radius), colours, bristles=5)
    paint.dabs(name, heart[None], np.array([0.12 * radius]), palette("#f4c430"), np.zeros(1))
