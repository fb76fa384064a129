"""Each stage of the noise by what defines it: its pixels, its spots, its envelope, where it stays away, its seed."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core import config, noise
from core.config import NoiseLevel, NoiseSettings
from core.noise import amplitudes, blend, envelope, gradient_weight, noise_alone, noise_map, spot_grid, spots
from tests import miniatures, reference

STYLE = miniatures.picture(70, 95, seed=1, dtype=torch.float32)
CONTENT = miniatures.picture(120, 160, seed=2, dtype=torch.float32)
GREY = torch.full((1, 3, 1, 1), 0.5)
STAGES = ["pixel-noise", "spots-16", "spots-128", "style-noise", "final", "light"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(*levels: NoiseLevel, **others: Any) -> NoiseSettings:
    return NoiseSettings(levels=levels, **others)


def flat(value: float = 0.5, size: tuple[int, int] = (96, 144)) -> Tensor:
    return torch.full((1, 3, *size), value)


# ── Spots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("level", "size", "grid"),
    [
        (NoiseLevel(spots=16), (256, 384), (16, 24)),
        (NoiseLevel(spots=16), (2048, 3072), (16, 24)),
        (NoiseLevel(spots=9), (384, 256), (14, 9)),
        (NoiseLevel(grain=1), (30, 50), (30, 50)),
        (NoiseLevel(grain=4), (256, 384), (64, 96)),
        (NoiseLevel(grain=4), (512, 768), (128, 192)),
        (NoiseLevel(constant=True), (256, 384), (1, 1)),
        (NoiseLevel(spots=0.5), (256, 384), (1, 1)),
        (NoiseLevel(grain=4000), (256, 384), (1, 1)),
    ],
)
def test_spots_lie_along_the_shorter_side_and_grain_in_pixels(
    level: NoiseLevel, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert spot_grid(level, size) == grid
    assert spots(level, size, STYLE, GREY, seeded()).shape[2:] == grid


@pytest.mark.parametrize("level", [NoiseLevel(spots=9), NoiseLevel(spots=36), NoiseLevel(grain=2), NoiseLevel(grain=1)])
def test_permuting_keeps_the_multiset_of_the_styles_pixels(level: NoiseLevel) -> None:
    size = (96, 144)
    found = spots(level, size, STYLE, GREY, seeded())
    resized = reference.resize(STYLE, spot_grid(level, size)).clamp(0, 1)
    pixels = sorted(map(tuple, found[0].flatten(1).T.tolist()))
    assert pixels == sorted(map(tuple, resized[0].flatten(1).T.tolist()))
    assert not torch.equal(found, resized), "it should be permuted"


def test_a_constant_is_one_pixel_of_the_style_everywhere() -> None:
    colours = {tuple(pixel) for pixel in STYLE[0].flatten(1).T.tolist()}
    chosen = set()
    for seed in range(8):
        found = noise_map(NoiseLevel(constant=True), (20, 30), STYLE, GREY, seeded(seed))
        assert found.shape == (1, 3, 20, 30)
        assert torch.equal(found, found[..., :1, :1].expand_as(found))
        chosen.add(tuple(found[0, :, 0, 0].tolist()))
    assert chosen <= colours
    assert len(chosen) > 4, "it should be a random one"


def test_normal_colours_have_the_mean_asked_for_and_vary() -> None:
    mean = torch.tensor([0.2, 0.5, 0.7])[None, :, None, None]
    cells = spots(NoiseLevel(grain=1, source="normal"), (200, 300), STYLE, mean, seeded())
    torch.testing.assert_close(cells.mean((2, 3), keepdim=True), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(cells.std((2, 3)), torch.full((1, 3), 0.5), rtol=0.02, atol=0)
    correlation = torch.corrcoef(cells[0].flatten(1))
    torch.testing.assert_close(correlation, torch.eye(3), rtol=0, atol=0.02)


def autocorrelation_length(plane: Tensor, along: int) -> float:
    """The lag in pixels at which a plane's correlation with itself falls to one half."""
    centred = plane - plane.mean()
    variance = float(centred.square().mean())
    previous = 1.0
    for lag in range(1, plane.shape[along] // 2):
        length = plane.shape[along] - lag
        product = centred.narrow(along, 0, length) * centred.narrow(along, lag, length)
        current = float(product.mean()) / variance
        if current < 0.5:
            return lag - 1 + (previous - 0.5) / (previous - current)
        previous = current
    raise AssertionError("the plane is correlated over more than half of its length")


# Independent spots smoothed by a bicubic kernel are half correlated at two thirds of the distance between them: from
# the autocorrelation of the kernel (Keys 1981, a = −0.5), integrated numerically.
HALF = 0.667


@pytest.mark.parametrize("source", ["style", "normal"])
@pytest.mark.parametrize(("count", "size"), [(18, (288, 432)), (36, (288, 432)), (36, (576, 432)), (48, (240, 960))])
def test_the_number_of_spots_shows_in_the_autocorrelation(source: str, count: int, size: tuple[int, int]) -> None:
    level = NoiseLevel.model_validate({"spots": count, "source": source})
    spot = min(size) / count
    lengths = []
    for seed in range(4):
        plane = noise_map(level, size, STYLE, GREY, seeded(seed)).mean((0, 1))
        lengths += [autocorrelation_length(plane, along=0), autocorrelation_length(plane, along=1)]
    assert sum(lengths) / len(lengths) == pytest.approx(HALF * spot, rel=0.1)


@pytest.mark.parametrize("grain", [4, 8])
@pytest.mark.parametrize("size", [(256, 384), (512, 384)])
def test_grain_is_the_same_in_pixels_at_every_size(grain: int, size: tuple[int, int]) -> None:
    plane = noise_map(NoiseLevel(grain=grain, source="normal"), size, STYLE, GREY, seeded()).mean((0, 1))
    lengths = autocorrelation_length(plane, along=0), autocorrelation_length(plane, along=1)
    assert sum(lengths) / 2 == pytest.approx(HALF * grain, rel=0.1)


# ── The envelope ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [(101, 151), (151, 101), (65, 65), (33, 301)])
@pytest.mark.parametrize(
    ("centre", "edge", "spread"), [(0.3, 0.2, 0.2), (0.1, 0.4, 0.4), (0.2, 0.0, 0.05), (0, 1, 0.3)]
)
def test_the_envelope_goes_from_centre_to_edge(
    size: tuple[int, int], centre: float, edge: float, spread: float
) -> None:
    found = envelope(NoiseLevel(spots=9, centre=centre, edge=edge, spread=spread), size)[0, 0]
    assert found.shape == size
    middle = size[0] // 2, size[1] // 2
    assert float(found[middle]) == pytest.approx(centre)
    # A corner lies half a side away from the centre in both directions (its pixel's centre half a pixel less).
    y, x = (0.5 - 0.5 / n for n in size)
    corner = edge + (centre - edge) * math.exp(-(x**2 + y**2) / (2 * spread**2))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert float(found[row, column]) == pytest.approx(corner, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [(400, 200), (200, 400)])
def test_the_spread_is_a_share_of_each_side(size: tuple[int, int]) -> None:
    found = envelope(NoiseLevel(spots=9, centre=1, edge=0, spread=0.25), size)[0, 0]
    y, x = size[0] // 2, size[1] // 2
    assert float(found[y + size[0] // 4, x]) == pytest.approx(math.exp(-0.5), rel=0.03)
    assert float(found[y, x + size[1] // 4]) == pytest.approx(math.exp(-0.5), rel=0.03)


def test_the_amplitude_is_the_share_of_the_content_that_is_replaced() -> None:
    level = NoiseLevel(constant=True, centre=0.4, edge=0.1, spread=0.3)
    content, style = flat(0.2), flat(0.9, (16, 16))
    found = blend(settings(level, strength=1.0, gradient_weight=0.0), content, style, seeded())
    share = envelope(level, (96, 144))
    torch.testing.assert_close(found, (1 - share) * content + share * 0.9)


def test_strength_multiplies_every_level() -> None:
    levels = NoiseLevel(spots=9, centre=0.3, edge=0.2), NoiseLevel(grain=1, centre=0.2, edge=0.1)
    full, half = (amplitudes(settings(*levels, strength=s, gradient_weight=0.0), CONTENT) for s in (1.0, 0.5))
    assert full.shape == (2, 1, 120, 160)
    torch.testing.assert_close(half, full / 2)


@given(
    shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 2)), min_size=1, max_size=5),
    strength=st.floats(0, 1),
    weight=st.floats(0, 1),
)
def test_amplitudes_never_exceed_the_whole(
    shares: Sequence[tuple[float, float, float]], strength: float, weight: float
) -> None:
    levels = [NoiseLevel(spots=4, centre=c, edge=e, spread=s) for c, e, s in shares]
    found = amplitudes(settings(*levels, strength=strength, gradient_weight=weight), CONTENT[..., :40, :50])
    assert float(found.min()) >= 0
    assert float(found.sum(0).max()) <= 1 + 1e-6


# ── Where the noise stays away ───────────────────────────────────────────────────────────────────────────────────────


def edge_picture(contrast: float = 1.0) -> Tensor:
    """Flat on the left, stripes in the middle, flat on the right; 256 × 384."""
    stripes = (torch.arange(384) // 8 % 2).float()
    stripes[:128], stripes[256:] = 0.5, 0.5
    return (0.5 + contrast * (stripes - 0.5)).expand(1, 3, 256, 384)


def test_noise_stays_away_from_edges() -> None:
    weight = gradient_weight(edge_picture(), radius=2)[0, 0]
    assert weight.shape == (256, 384)
    assert float(weight[:, :100].min()) > 0.98 and float(weight[:, 300:].min()) > 0.98
    assert float(weight[:, 140:240].mean()) < 0.6


def test_the_larger_the_gradient_the_less_noise() -> None:
    ramps = torch.cat([torch.linspace(0, slope, 64) for slope in (0, 0.1, 0.3, 0.9)])
    weight = gradient_weight(ramps.expand(1, 3, 64, 256), radius=4)[0, 0]
    inside = [float(weight[:, start + 16 : start + 48].mean()) for start in (0, 64, 128, 192)]
    assert inside == sorted(inside, reverse=True)
    assert inside[0] > 0.99 and inside[-1] < inside[0] - 0.05


def test_the_contrast_of_the_whole_picture_does_not_matter() -> None:
    torch.testing.assert_close(
        gradient_weight(edge_picture(0.2), radius=2), gradient_weight(edge_picture(), radius=2), rtol=1e-3, atol=1e-4
    )


def test_noise_is_welcome_everywhere_on_a_flat_picture() -> None:
    torch.testing.assert_close(gradient_weight(flat(), radius=2), torch.ones(1, 1, 96, 144))


def test_the_gradient_can_be_left_out_or_half_counted() -> None:
    level, content = NoiseLevel(spots=9, centre=0.3, edge=0.3), edge_picture()
    none, half, full = (
        amplitudes(settings(level, strength=1.0, gradient_weight=weight), content) for weight in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(none, torch.full_like(none, 0.3))
    torch.testing.assert_close(half, (none + full) / 2)
    assert float(full[..., 140:240].mean()) < 0.6 * float(none[..., 140:240].mean())


def test_a_blend_leaves_edges_and_fills_flat_parts() -> None:
    content = edge_picture(0.1)
    level = NoiseLevel(grain=2, centre=0.4, edge=0.4, source="normal")
    changed = (blend(settings(level), content, STYLE, seeded()) - content).abs().mean((0, 1, 2))
    assert float(changed[140:240].mean()) < 0.75 * float(changed[:100].mean())


# ── The whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preset", STAGES)
def test_every_stage_is_a_preset_of_the_same_description(preset: str) -> None:
    described = config.load(preset).noise
    found = blend(described, CONTENT, STYLE, seeded())
    assert found.shape == CONTENT.shape and found.dtype == CONTENT.dtype
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert float((found - CONTENT).abs().mean()) > 0.01


@pytest.mark.parametrize("preset", STAGES)
def test_the_seed_reproduces_the_noise_and_nothing_else_does(preset: str) -> None:
    described = config.load(preset).noise
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = blend(described, CONTENT, STYLE, seeded(7))
    assert torch.equal(torch.get_rng_state(), state), "the global generator should be left alone"
    torch.manual_seed(2)
    assert torch.equal(blend(described, CONTENT, STYLE, seeded(7)), first)
    assert not torch.equal(blend(described, CONTENT, STYLE, seeded(8)), first)


def test_noise_is_drawn_on_as_it_is_asked_for() -> None:
    described, generator = config.load("final").noise, seeded(7)
    first, second = (blend(described, CONTENT, STYLE, generator) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("preset", ["pixel-noise", "spots-16", "spots-128"])
@pytest.mark.parametrize("brightness", [0.35, 0.5, 0.65])
def test_normal_noise_keeps_the_mean_brightness(preset: str, brightness: float) -> None:
    content = flat(brightness, (256, 384))
    means = [float(blend(config.load(preset).noise, content, STYLE, seeded(seed)).mean()) for seed in range(4)]
    assert sum(means) / 4 == pytest.approx(brightness, abs=0.02)


def clipped_mean(mean: float, deviation: float) -> float:
    """The mean of a normal variable that is clipped to [0, 1]."""
    normal = NormalDist(mean, deviation)
    inside = normal.cdf(1) - normal.cdf(0)
    return mean * inside + deviation**2 * (normal.pdf(0) - normal.pdf(1)) + 1 - normal.cdf(1)


@pytest.mark.parametrize("brightness", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_only_what_black_and_white_cut_off_moves_the_mean_brightness(brightness: float) -> None:
    described = config.load("pixel-noise").noise
    content = flat(brightness, (256, 384))
    # Amplitude 0.5 of colours that deviate by 0.5 from the content's mean.
    expected = clipped_mean(brightness, 0.5 * described.strength * 0.5)
    means = [float(blend(described, content, STYLE, seeded(seed)).mean()) for seed in range(4)]
    assert sum(means) / 4 == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("brightness", [0.1, 0.5, 0.9])
def test_style_noise_moves_the_mean_towards_the_styles_and_no_further(brightness: float) -> None:
    content, described = flat(brightness, (256, 384)), config.load("style-noise").noise
    share = float(amplitudes(described, content).sum(0).mean())
    expected = (1 - share) * content.mean((2, 3)) + share * STYLE.mean((2, 3))
    found = torch.stack([blend(described, content, STYLE, seeded(seed)).mean((2, 3)) for seed in range(4)]).mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_without_levels_the_content_comes_back() -> None:
    found = blend(NoiseSettings(), CONTENT, STYLE, seeded())
    assert torch.equal(found, CONTENT)
    found.zero_()
    assert float(CONTENT.abs().sum()) > 0, "it should be a copy"


def test_strength_0_leaves_the_content() -> None:
    nothing = config.load("final").noise.model_copy(update={"strength": 0.0})
    torch.testing.assert_close(blend(nothing, CONTENT, STYLE, seeded()), CONTENT)


@pytest.mark.parametrize("size", [(64, 96), (200, 50)])
def test_noise_alone_is_a_picture_of_the_styles_colours(size: tuple[int, int]) -> None:
    found = noise_alone(config.load("final").noise, size, STYLE, seeded())
    assert found.shape == (1, 3, *size)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert float(found.std((2, 3)).mean()) > 0.02
    torch.testing.assert_close(found.mean((2, 3)), STYLE.mean((2, 3)), rtol=0, atol=0.15)


def test_content_and_style_are_left_alone() -> None:
    content, style = CONTENT.clone(), STYLE.clone()
    noise.blend(config.load("final").noise, content, style, seeded())
    assert torch.equal(content, CONTENT) and torch.equal(style, STYLE)


# ── The same pattern at every size, and several styles ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preset", ["final", "style-noise", "spots-16"])
def test_a_seed_gives_the_same_spots_at_every_size(preset: str) -> None:
    """A small trial shows the pattern that the large picture will have; only the grain is as fine as the pixels."""
    chosen = config.load(preset).noise
    found = []
    for side in (128, 512):
        seeds = noise._generators(seeded(5), len(chosen.levels))
        maps = [
            noise_map(level, (side, side * 3 // 2), STYLE, GREY, own)
            for level, own in zip(chosen.levels, seeds, strict=True)
            if level.grain is None
        ]
        found.append(torch.cat([reference.resize(one, (64, 96)) for one in maps]))
    assert float((found[0] - found[1]).abs().mean()) < 0.01
    assert float(found[0].std()) > 0.1


def test_levels_do_not_disturb_each_other() -> None:
    """What one level draws does not depend on how much another draws: a grain of other size leaves the spots alone."""
    fine, coarse = (
        blend(
            settings(NoiseLevel(grain=g, centre=0, edge=0), NoiseLevel(spots=9), gradient_weight=0),
            flat(),
            STYLE,
            seeded(),
        )
        for g in (1, 7)
    )
    assert torch.equal(fine, coarse)


RED, BLUE = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
RED[:, 0], BLUE[:, 2] = 1, 1


@pytest.mark.parametrize("level", [NoiseLevel(spots=9), NoiseLevel(grain=1), NoiseLevel(constant=True)])
def test_no_spot_reaches_into_a_region_of_another_style(level: NoiseLevel) -> None:
    left = torch.zeros(1, 1, 60, 90)
    left[..., :45] = 1
    found = noise_map(level, (60, 90), noise.Mixture((RED, BLUE), torch.cat([left, 1 - left])), GREY, seeded())
    torch.testing.assert_close(found[..., :45], RED[..., :1, :1].expand(1, 3, 60, 45))
    torch.testing.assert_close(found[..., 45:], BLUE[..., :1, :1].expand(1, 3, 60, 45))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_spots_are_shared_out_by_the_styles_shares(weight: float) -> None:
    shares = torch.cat([torch.full((1, 1, 200, 300), weight), torch.full((1, 1, 200, 300), 1 - weight)])
    found = noise_map(NoiseLevel(grain=2), (200, 300), noise.Mixture((RED, BLUE), shares), GREY, seeded())
    assert float(found[:, 0].mean()) == pytest.approx(weight, abs=0.02)
    assert float(found.sum(1).mean()) == pytest.approx(1, abs=1e-5)
    pure = float(((found[:, 0] - 0.5).abs() > 0.4).float().mean())
    assert pure > 0.3, "a spot should be of one style, not of a mixture of both"


def test_where_no_style_is_there_is_no_noise() -> None:
    left = torch.zeros(1, 1, 120, 160)
    left[..., :80] = 1
    found = blend(config.load("final").noise, CONTENT, noise.Mixture((STYLE,), left), seeded())
    assert torch.equal(found[..., 80:], CONTENT[..., 80:])
    assert float((found[..., :80] - CONTENT[..., :80]).abs().mean()) > 0.05


def test_a_mixture_of_one_style_everywhere_is_that_style() -> None:
    chosen = config.load("final").noise
    mixture = noise.Mixture((STYLE,), torch.ones(1, 1, 120, 160))
    torch.testing.assert_close(blend(chosen, CONTENT, mixture, seeded()), blend(chosen, CONTENT, STYLE, seeded()))


def test_noise_alone_lies_on_the_mean_colours_of_the_regions() -> None:
    left = torch.zeros(1, 1, 60, 90)
    left[..., :45] = 1
    nothing = settings(NoiseLevel(spots=9, centre=0, edge=0))
    found = noise_alone(nothing, (60, 90), noise.Mixture((RED, BLUE), torch.cat([left, 1 - left])), seeded())
    assert torch.equal(found[..., 0, 0], torch.tensor([[1.0, 0, 0]]))
    assert torch.equal(found[..., 0, -1], torch.tensor([[0.0, 0, 1]]))
