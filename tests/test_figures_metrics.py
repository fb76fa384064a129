"""The figures on synthetic pictures whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.figures.metrics import (
    Array,
    Baldness,
    Edges,
    Features,
    Mask,
    at_level,
    blurred,
    centre,
    centre_against_background,
)

H, W = 256, 384
FLAT = np.full((H, W, 3), 0.5)


def texture(height: int = H, width: int = W, seed: int = 0) -> Array:
    """The same at every scale from fine to coarse, and everywhere alike."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    octaves = np.sum([blurred(noise, deviation) * deviation for deviation in (1, 2, 4, 8)], 0)
    picture: Array = np.clip(0.5 + 0.15 * octaves, 0, 1)
    return picture


def step(position: float = W / 2, height: float = 0.5) -> Array:
    """A vertical edge, dark to the left, at `position` (in pixels; whole numbers lie between pixels)."""
    covered = np.clip(np.arange(W) + 1 - position, 0, 1)
    row = 0.5 + height * (covered - 0.5)
    return np.broadcast_to(row[None, :, None], (H, W, 3)).copy()


def grating(period: float, size: tuple[int, int] = (H, W), angle: float = 0.3) -> Array:
    y, x = np.indices(size)
    phase = 2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y)
    return np.repeat((0.5 + 0.3 * np.sin(phase))[..., None], 3, -1)


def bald(picture: Array, content: Array, style: Array, levels: int = 0, rule: Baldness | None = None) -> float:
    rule = rule or Baldness()
    return rule.measure(picture, rule.reference(content, style, levels))


# ── Baldness ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("levels", [0, 1])
def test_a_flat_picture_is_all_bald_and_the_style_itself_is_not(levels: int) -> None:
    content, style = (at_level(each, levels) for each in (FLAT, texture(512, 768)))
    assert bald(content, content, style, levels) == 1
    assert bald(style, content, style, levels) == pytest.approx(0, abs=0.005)


def test_a_half_covered_with_the_style_is_half_bald() -> None:
    half = np.where(np.arange(W)[:, None] < W / 2, texture(), FLAT)
    assert bald(half, FLAT, texture(seed=1)) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("strength", "expected"), [(0.6, 0.0), (0.4, 1.0)])
def test_bald_begins_at_the_fraction_of_the_styles_energy(strength: float, expected: float) -> None:
    """A quarter of the energy is half of the contrast. A grating has the same energy everywhere, its own median."""
    style = grating(13.0)
    weak = 0.5 + strength * (style - 0.5)
    assert bald(weak, FLAT, style) == pytest.approx(expected, abs=0.05)
    assert bald(weak, FLAT, style, rule=Baldness(fraction=0.05)) == pytest.approx(0, abs=0.05)


def test_texture_that_lacks_a_scale_is_bald_there() -> None:
    style = texture(512, 768)
    fine = 0.5 + style - blurred(style, 2)
    rule = Baldness()
    shares = rule.by_level(fine, rule.reference(at_level(FLAT, 1), style, 1))
    assert shares[0] > 0.9, "level 0 sees nothing of what is finer than its pixels"
    assert 0.2 < shares[1] < 0.8, "level 1 has its finest band only"


def test_only_flat_regions_of_the_content_count() -> None:
    content = np.where(np.arange(W)[:, None] < W / 2, grating(12.0), FLAT)
    flat = Baldness().flatness(content)
    assert not flat[:, : W // 2].any() and flat[:, W // 2 + 32 :].all()
    bald_where_busy = np.where(np.arange(W)[:, None] < W / 2 - 60, FLAT, texture())
    assert bald(bald_where_busy, content, texture(seed=1)) < 0.03
    assert math.isnan(bald(texture(), grating(12.0), texture()))


# ── Edges ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shift", [0, 1, 3, 5])
@pytest.mark.parametrize("scale", [1, 2])
def test_an_edge_that_moved_by_k_pixels_says_k(shift: int, scale: int) -> None:
    content, moved = (each.repeat(scale, 0).repeat(scale, 1) for each in (step(), step(W / 2 - shift)))
    found = Edges().measure(moved, content)
    assert found.points >= H - 20
    assert found.moved == pytest.approx(shift, abs=0.02)
    assert found.rang == pytest.approx(0, abs=0.02)


def test_contrast_sign_and_colour_of_an_edge_are_free() -> None:
    content = step()
    recoloured = content * [1.0, 0.2, 0.0]
    for other in (1 - content, step(height=0.1), recoloured):
        assert Edges().measure(other, content).total == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("amplitude", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("distance", [5, 6])
def test_ringing_of_known_amplitude(amplitude: float, distance: int) -> None:
    """Echoes of the edge at ±d, each `amplitude` a as high, hold the share 2a²/(1 + 2a²) of the energy.

    It is carried there from where it was, which is the nearer half of the blurred edge.
    """
    content = step()
    echoes = [step(W / 2 + sign * distance) - 0.5 for sign in (-1, 1)]
    ringing = 0.5 + 0.5 * (content - 0.5 + amplitude * sum(echoes))
    half = math.sqrt(2 / math.pi) * Edges().deviation / math.sqrt(2)
    expected = (distance - half) * 2 * amplitude**2 / (1 + 2 * amplitude**2)
    found = Edges().measure(ringing, content)
    assert found.rang == pytest.approx(expected, rel=0.03)
    assert found.moved == pytest.approx(0, abs=0.02)


def test_an_echo_on_one_side_moves_the_edge() -> None:
    ringing = 0.5 + 0.5 * (step() - 0.5 + 0.5 * (step(W / 2 + 6) - 0.5))
    found = Edges().measure(ringing, step())
    assert found.moved == pytest.approx(6 * 0.25 / 1.25, rel=0.05)
    assert found.rang == pytest.approx(0, abs=0.02)


def test_where_nothing_is_left_of_an_edge_half_the_reach_is_carried() -> None:
    found = Edges().measure(FLAT, step())
    assert found.total == pytest.approx(Edges().reach / 2, rel=0.15)


def test_edges_are_found_in_every_direction_and_only_if_strong() -> None:
    y, x = np.indices((H, W))
    radius = np.hypot(y - H / 2, x - W / 2)
    disc = np.repeat((0.25 + 0.5 * (radius < 80))[..., None], 3, -1)
    points, normals = Edges().points(disc)
    assert points.shape[1] == pytest.approx(2 * np.pi * 80, rel=0.3)
    outward = (points - [[H / 2], [W / 2]]) / np.hypot(*(points - [[H / 2], [W / 2]]))
    assert np.abs((outward * normals).sum(0)).min() > 0.9
    assert math.isnan(Edges().measure(disc, step(height=0.2)).total)
    assert replace(Edges(), step=0.1).measure(step(height=0.2), step(height=0.2)).total == 0


# ── Sizes of features ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("period", [8, 16, 32, 48])
def test_the_size_of_a_grating_is_its_period(period: int) -> None:
    everywhere: Mask = np.ones((H, W), bool)
    assert Features().measure(grating(period), everywhere) == pytest.approx([100 * period / H], rel=0.1)


def test_features_do_not_depend_on_contrast() -> None:
    everywhere: Mask = np.ones((H, W), bool)
    picture = texture()
    faint = 0.5 + 0.2 * (picture - 0.5)
    assert Features().measure(faint, everywhere) == pytest.approx(Features().measure(picture, everywhere))


def test_larger_features_in_the_centre_make_a_ratio_above_one() -> None:
    inside = centre((H, W))[..., None]
    assert centre((H, W)).mean() == pytest.approx(np.pi / 16, rel=0.01)
    picture = np.where(inside, grating(32.0), grating(16.0))
    assert centre_against_background(picture) == pytest.approx(2, rel=0.25)
    assert centre_against_background(grating(16.0)) == pytest.approx(1, abs=0.02)
