"""Pictures on paper: hills hatched in ink over a wash, and breakers printed from wood blocks."""

import numpy as np

from core.samples.canvas import Array, Canvas, at, lerp, mix, palette, ramp, smoothstep, tint
from core.samples.marks import fibres, stencil

# ── Hatching: hills under a low sun ──────────────────────────────────────────────────────────────────────────────────

_INKS = palette("#33507a", "#3d5a80", "#3b4a5e", "#5a3a2a", "#2c3a34", "#6b2d1e", "#2a1f1a", "#1d1512")
_WASHES = palette("#9db8c9", "#b9c2a0", "#e0b070", "#9fb27a", "#d98f5c", "#c9a95a", "#7f8f5a")


def hatching(canvas: Canvas) -> Array:
    """Hills behind hills in up to three crossing directions of ink, over watercolour."""
    y, x = canvas.grid
    h = canvas.extent[0]
    rng = canvas.rng("hills")
    dark, phase, slant, wash = _sky(canvas, float(rng.uniform(0.25, 0.75)))
    ink = np.broadcast_to(_INKS[0], wash.shape)
    for k in range(7):
        part = k / 6
        crest = h * (0.36 + 0.56 * part**1.15) + (0.0385 + 0.0275 * part) * canvas.noise(
            f"crest {k}", 1.7, 4, stretch=(99, 1)
        )
        depth = y - crest
        hill = smoothstep(-0.0008, 0.0008, depth)
        below = np.exp(-np.maximum(depth, 0) / 0.06)
        form = canvas.noise(f"form {k}", 3.2, 3)
        bend = 0.06 * canvas.noise(f"bend {k}", 2, 2)
        turn = float(rng.uniform(-0.5, 0.5)) + (0.9 if k % 2 else -0.9)
        dark = lerp(dark, np.clip(0.23 + 0.62 * below + 0.17 * form, 0.14, 1), hill)
        phase = lerp(phase, y * np.cos(turn) + x * np.sin(turn) + bend, hill)
        slant = lerp(slant, y * np.cos(turn + 1.1) + x * np.sin(turn + 1.1) + bend, hill)
        ink = mix(ink, _INKS[k + 1], hill)
        stain = mix(_WASHES[k], _WASHES[(k + 2) % 7], 0.5 + 0.3 * form)
        pooled = 1.06 - 0.2 * below**4  # a wash dries darkest along its edge
        wash = mix(wash, stain * pooled[..., None], hill)
    return _inked(canvas, _washed(canvas, wash), ink, dark, phase, slant)


def _sky(canvas: Canvas, sun_x: float) -> tuple[Array, Array, Array, Array]:
    """Darkness, two hatching coordinates and the wash of a sky with the sun at `sun_x` of the width."""
    y, x = canvas.grid
    h, w = canvas.extent
    away = np.hypot(y - 0.2 * h, x - sun_x * w) + 0.012 * canvas.noise("haze", 4, 2)
    clouds = smoothstep(-0.3, 1.6, canvas.noise("clouds", 2.5, 4, stretch=(0.7, 1.8)))
    dark = 0.2 + 0.22 * clouds - 0.3 * smoothstep(0.12, 0.085, away)
    sky = ramp(
        palette("#f3dfa8", "#efb98a", "#dba09a", "#b9a9bd", "#8fb0c4"),
        0.1 + 1.1 * away + 0.1 * canvas.noise("stain", 2.2, 3),
    )
    wash = mix(tint("#f2cf8d"), sky, smoothstep(0.08, 0.1, away))
    return dark, away + 0.03 * canvas.noise("wind", 2, 2), 0.7 * (y + x), wash


def _washed(canvas: Canvas, wash: Array) -> Array:
    """Watercolour on paper: blotted, and thinner where the paper's tooth stands out."""
    strength = 0.74 + 0.2 * canvas.noise("blots", 2.5, 5) + 0.06 * canvas.noise("tooth", 200)
    return tint("#f6ead0") * fibres(canvas, 0.03) * mix(np.ones_like(wash), wash, strength)


def _inked(canvas: Canvas, ground: Array, ink: Array, dark: Array, phase: Array, slant: Array) -> Array:
    first = _hatch(canvas, "first", phase, 0.0082, np.minimum(dark, 0.62))
    second = _hatch(canvas, "second", slant, 0.0080, np.minimum(1.4 * (dark - 0.36), 0.5))
    third = _hatch(canvas, "third", phase + slant, 0.0115, np.minimum(1.4 * (dark - 0.58), 0.34))
    cover = 1 - (1 - first) * (1 - second) * (1 - third)
    flow = np.clip(0.92 + 0.1 * canvas.noise("ink", 40, 2), 0, 1)
    return np.clip(mix(ground, ink, cover * flow), 0, 1)


def _hatch(canvas: Canvas, name: str, phase: Array, spacing: float, tone: Array) -> Array:
    """Coverage [H, W] of lines at the multiples of `spacing`, as broad as `tone` asks, by an unsteady hand."""
    place = phase / spacing + 0.13 * canvas.noise(f"{name} hand", 14, 3)
    pressed = tone * (1 + 0.25 * canvas.noise(f"{name} pressure", 22, 2))
    from_line = 2 * np.abs(place - np.rint(place))
    pixel = 2 * np.hypot(*np.gradient(place)) + 1e-6
    return np.asarray(np.clip((pressed - from_line) / pixel + 0.5, 0, 1) * (pressed > 0.02), np.float32)


# ── Waves: breakers before a red sun ─────────────────────────────────────────────────────────────────────────────────

_KEY, _FOAM = palette("#101d42", "#f7efdb")
_SEAS = (
    palette("#16386b", "#3f7fae", "#9cc4c8", "#e6e4cc"),
    palette("#0f2a5c", "#1f5f9c", "#6fa9c4", "#dbe3d2"),
    palette("#123a52", "#2a7f8c", "#8fc4b4", "#e9e6cc"),
)
_EDGE = 0.0008
"""Half the width of a printed edge's blur."""


def waves(canvas: Canvas) -> Array:
    """Breakers behind breakers in the manner of a colour woodblock print."""
    rng = canvas.rng("sea")
    carving = _Carving(canvas)
    picture = _dusk(canvas, float(rng.uniform(0.2, 0.8)))
    for k in range(9):
        picture = _breaker(canvas, carving, picture, k, k / 8, float(rng.choice([-1, 1]) * rng.uniform(0.3, 0.5)))
    y, _ = canvas.grid
    rings = np.sin(2 * np.pi * (22 * y + 4 * canvas.noise("rings", 1.3, 2, stretch=(1, 5))))
    grain = 1 + 0.035 * rings + 0.04 * canvas.noise("grain", 60, 3, stretch=(0.4, 14))
    return np.clip(picture * grain[..., None] * fibres(canvas, 0.025), 0, 1)


class _Carving:
    """The unsteadiness of the knife and of the printer's brush, shared by all blocks."""

    def __init__(self, canvas: Canvas) -> None:
        self.line = 0.0013 * (1 + 0.35 * canvas.noise("line", 30, 2))
        self.edge = 0.003 * canvas.noise("edge", 20, 2)
        self.stripes = 0.2 * canvas.noise("stripes", 4, 2)
        self.brush = 0.18 * canvas.noise("brush", 7, 2)
        self.knife = 0.05 * canvas.noise("knife", 20)
        self.bokashi = 0.12 * canvas.noise("bokashi", 3, 2)
        self.lobes = 0.5 * canvas.noise("lobes", 8, 2)
        self.reach = 0.35 * canvas.noise("reach", 9, 2)
        self.fingers = 0.5 * canvas.noise("fingers", 14)
        self.spume = 0.5 * canvas.noise("spume", 20, 2)


def _dusk(canvas: Canvas, sun_x: float) -> Array:
    y, x = canvas.grid
    h, w = canvas.extent
    dusk = palette("#23406f", "#5f86a0", "#c9b49a", "#f0c29a", "#f6dcb4", "#f3e6c6")
    clouds = canvas.noise("clouds", 7, 3, stretch=(0.35, 3.5)) + canvas.noise("wisps", 40, 2, stretch=(0.3, 9))
    bands = 0.16 * (smoothstep(0.25, 0.35, clouds) - smoothstep(-0.35, -0.9, clouds))
    sky = ramp(dusk, y / (0.4 * h) + bands + 0.1 * canvas.noise("mist", 2.5, 4, stretch=(0.35, 2.5)))
    sun = smoothstep(_EDGE, -_EDGE, np.hypot(y - 0.17 * h, x - sun_x * w) - 0.085)
    return mix(sky, ramp(palette("#c8322a", "#e8664a"), y / (0.3 * h)), sun)


def _breaker(canvas: Canvas, carving: _Carving, picture: Array, k: int, near: float, lean: float) -> Array:
    """The picture with the `k`-th row of waves before it; `near` is 0 at the horizon and 1 at the front."""
    y, x = canvas.grid
    base = canvas.extent[0] * (0.3 + 0.86 * near)
    across = x + lean * (y - base) + 0.03 * canvas.noise(f"lean {k}", 3, 2)
    swell = across / (0.2 + 0.34 * near) + 0.25 * canvas.noise(f"swell {k}", 1.2, stretch=(99, 1)) + 0.37 * k
    hump = 1 - np.abs(np.sin(np.pi * swell)) ** 0.8
    height = (0.08 + 0.15 * near) * (1 + 0.25 * canvas.noise(f"height {k}", 1.5, stretch=(99, 1)))
    depth = y - base + height * hump + carving.edge
    surf = (0.012 + 0.055 * hump**1.6) * (0.6 + 0.6 * near) * (0.8 + carving.reach) + 0.008
    scallops = np.abs(np.sin(np.pi * (across * (34 - 14 * near) + carving.lobes))) ** 0.6
    body = _printed(carving, _SEAS[k % 3], depth, surf, scallops, near)
    sprayed = mix(picture, _FOAM, _spray(canvas, f"spray {k}", depth, hump, near))
    return mix(sprayed, body, smoothstep(-_EDGE, _EDGE, depth + carving.line))


def _printed(carving: _Carving, inks: Array, depth: Array, surf: Array, scallops: Array, near: float) -> Array:
    """A wave's face [H, W, 3]: a graded block, pale stripes along the crest, the key block's lines, and the foam."""
    foam_edge = depth - surf - (0.008 + 0.008 * near) * scallops * (1 + carving.fingers)
    place = (depth - surf) / (0.021 + 0.008 * near) + carving.stripes
    stripe = 2 * np.abs(place - np.rint(place))
    fade = smoothstep(0.45, 0.03, depth)
    body = ramp(inks[:3], 0.1 + 0.75 * smoothstep(0.34, 0, depth) + carving.bokashi)
    body = mix(body, inks[3], 0.9 * fade * smoothstep(0.5, 0.56, stripe + carving.brush))
    body = mix(body, _KEY, (0.3 + 0.7 * fade) * smoothstep(0.86, 0.93, stripe + carving.knife))
    veins = smoothstep(0.28, 0.42, 0.5 * np.sin(9 * place + 3 * scallops) + carving.spume)
    body = mix(body, mix(_FOAM, inks[2], 0.75 * veins), smoothstep(_EDGE, -_EDGE, foam_edge))
    line = np.minimum(np.abs(foam_edge), np.abs(depth) / 1.4)
    return mix(body, _KEY, smoothstep(_EDGE, -_EDGE, line - carving.line))


def _spray(canvas: Canvas, name: str, depth: Array, hump: Array, near: float) -> Array:
    """Coverage [H, W] of the drops above the crests, the denser the nearer."""
    rng = canvas.rng(name)
    drops = canvas.scatter(f"{name} drops", 0.014)
    above = -at(depth, canvas, drops)
    chance = 0.8 * np.exp(-above / (0.02 + 0.02 * near)) * at(hump, canvas, drops) ** 2
    radii = rng.uniform(0.0014, 0.0042, len(drops))
    shown = (above > 0.004) & (rng.random(len(drops)) < chance)
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    circle = np.stack([np.sin(turn), np.cos(turn)], -1)
    circles = (drop + radius * circle for drop, radius in zip(drops[shown], radii[shown], strict=True))
    return stencil(circles, canvas.side, canvas.height, canvas.width)
