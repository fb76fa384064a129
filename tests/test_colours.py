"""Colours by what defines each way: moments, distributions and luminance, against numpy and scikit-image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2yiq
from torch import Tensor

from core import colours
from core.config import OptimizerSettings
from core.parametrisation import parametrise
from tests import miniatures

CONTENT = miniatures.picture(61, 67, seed=4, dtype=torch.float32)
STYLE = miniatures.picture(70, 95, seed=5, dtype=torch.float32)


def pixels(picture: Tensor) -> np.ndarray:
    """[H·W, 3] in float64."""
    found: np.ndarray = picture[0].reshape(3, -1).T.double().numpy()
    return found


def gentle(picture: Tensor, seed: int) -> Tensor:
    """A picture whose colours lie well inside [0, 1] and are correlated, so that no map of them is clamped."""
    draw = torch.Generator().manual_seed(seed)
    mix = 0.1 * torch.rand(3, 3, generator=draw) + 0.1 * torch.eye(3)
    return 0.35 + torch.einsum("dc,nchw->ndhw", mix, picture)


# ── Luminance ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_luminance_is_the_y_of_yiq() -> None:
    expected = rgb2yiq(CONTENT[0].permute(1, 2, 0).double().numpy())[..., 0]
    assert np.abs(colours.luminance(CONTENT.double())[0, 0].numpy() - expected).max() < 1e-6


def test_a_styles_luminance_gets_the_contents_mean_and_deviation() -> None:
    style, content = gentle(STYLE, 1), gentle(CONTENT, 2)
    found = colours.prepare("content", content, [style]).styles[0]
    assert torch.equal(found[:, :1].expand_as(found), found), "it should be grey"
    wanted = rgb2yiq(content[0].permute(1, 2, 0).numpy())[..., 0]
    assert float(found[0, 0].mean()) == pytest.approx(wanted.mean(), abs=1e-5)
    assert float(found[0, 0].std()) == pytest.approx(wanted.std(ddof=1), rel=1e-4)


@given(seed=st.integers(0, 10_000), bright=st.floats(0, 1))
def test_the_result_has_the_painted_luminance_and_the_contents_chroma(seed: int, bright: float) -> None:
    content = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    painted = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    painted = (painted * (1 - bright) + bright).expand(-1, 3, -1, -1)
    found = colours.with_chroma_of(painted, content)
    assert float(found.min()) >= -1e-12 and float(found.max()) <= 1 + 1e-12
    mine, theirs = (rgb2yiq(picture[0].permute(1, 2, 0).numpy()) for picture in (found, content))
    assert np.abs(mine[..., 0] - painted[0, 0].numpy()).max() < 1e-6
    # Paled at most: the same hue, that is, I and Q shrunk by one factor between 0 and 1.
    assert np.abs(mine[..., 1] * theirs[..., 2] - mine[..., 2] * theirs[..., 1]).max() < 1e-6
    assert (np.abs(mine[..., 1:]) <= np.abs(theirs[..., 1:]) + 1e-6).all()


def test_chroma_that_fits_is_the_contents_own() -> None:
    content = gentle(CONTENT, 3).double()
    painted = colours.grey(content) + 0.02
    found = rgb2yiq(colours.with_chroma_of(painted, content)[0].permute(1, 2, 0).numpy())
    expected = rgb2yiq(content[0].permute(1, 2, 0).numpy())
    assert np.abs(found[..., 1:] - expected[..., 1:]).max() < 1e-6


def test_a_grey_pictures_gradient_is_autograds() -> None:
    start = miniatures.picture(9, 12)
    rule = colours.Grey(parametrise(OptimizerSettings(preconditioning=0), start))
    variable = (0.1 * torch.randn(start.shape, dtype=torch.float64)).requires_grad_()
    target = miniatures.picture(9, 12, seed=3)
    picture = rule.picture(variable)
    assert torch.equal(picture[:, 0], picture[:, 1]) and torch.equal(picture[:, 0], picture[:, 2])
    (expected,) = torch.autograd.grad((picture - target).pow(2).sum(), variable)
    found = rule.pull_back(variable.detach(), 2 * (picture.detach() - target))
    torch.testing.assert_close(found, expected)


# ── Mean and covariance ──────────────────────────────────────────────────────────────────────────────────────────────


def test_mean_and_covariance_become_the_contents() -> None:
    style, content = gentle(STYLE, 1), gentle(CONTENT, 2)
    found, wanted = pixels(colours.prepare("matched", content, [style]).styles[0]), pixels(content)
    assert np.abs(found.mean(0) - wanted.mean(0)).max() < 1e-5
    assert np.abs(np.cov(found.T, ddof=0) - np.cov(wanted.T, ddof=0)).max() < 1e-6


def test_a_picture_matched_to_itself_stays() -> None:
    torch.testing.assert_close(colours.with_moments_of(STYLE, STYLE), STYLE, rtol=0, atol=1e-5)


def test_a_style_without_colours_gets_what_fits_and_no_grain() -> None:
    """Along axes in which it doesn't vary there is nothing that could be stretched."""
    dull = colours.grey(STYLE)
    found = pixels(colours.with_moments_of(dull, CONTENT))
    assert np.isfinite(found).all()
    assert np.abs(found.mean(0) - pixels(CONTENT).mean(0)).max() < 1e-4
    assert np.linalg.matrix_rank(np.cov(found.T), tol=1e-6) == 1


# ── The whole distribution ───────────────────────────────────────────────────────────────────────────────────────────


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest 1-Wasserstein distance of the two along 60 directions: 0 only where the joint distributions agree."""
    directions = np.random.default_rng(7).normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    places = np.linspace(0, 1, 400)
    quantiles = [np.quantile(colours @ directions.T, places, axis=0) for colours in (one, other)]
    return float(np.abs(quantiles[0] - quantiles[1]).mean(0).max())


def test_the_joint_distribution_becomes_the_contents() -> None:
    found = pixels(colours.prepare("histogram", CONTENT, [STYLE]).styles[0])
    before, after = distance(pixels(STYLE), pixels(CONTENT)), distance(found, pixels(CONTENT))
    assert before > 0.05
    assert after < 0.012


def test_channels_apart_would_not_do() -> None:
    """The reason for the rotations: what matches red, green and blue apart still misses the joint distribution."""
    from skimage.exposure import match_histograms

    content = torch.cat([CONTENT[:, :1], 1 - CONTENT[:, :1], CONTENT[:, 2:]], 1)
    apart = match_histograms(STYLE[0].permute(1, 2, 0).numpy(), content[0].permute(1, 2, 0).numpy(), channel_axis=2)
    wanted = pixels(content)
    assert distance(apart.reshape(-1, 3), wanted) > 5 * distance(
        pixels(colours.prepare("histogram", content, [STYLE]).styles[0]), wanted
    )


def test_a_palette_is_the_styles_alone() -> None:
    chosen = colours.prepare("palette", CONTENT, [STYLE])
    assert chosen.content is CONTENT and chosen.styles[0] is STYLE
    assert distance(pixels(chosen.finish(CONTENT, [1.0])), pixels(STYLE)) < 0.012


def test_a_palette_of_several_styles_is_mixed_by_their_shares() -> None:
    red, blue = (torch.zeros(1, 3, 40, 40) for _ in range(2))
    red[:, 0], blue[:, 2] = 1, 1
    found = colours.sample([red, blue], [3.0, 1.0])
    assert float(found[:, 0].mean()) == pytest.approx(0.75, abs=1e-3)
    assert float(found[:, 2].mean()) == pytest.approx(0.25, abs=1e-3)


def test_matching_a_distribution_with_itself_changes_little() -> None:
    found = colours.with_distribution_of(STYLE, colours.sample([STYLE], [1.0]))
    assert float((found - STYLE).abs().mean()) < 0.01


@pytest.mark.parametrize("way", ["content", "matched", "histogram", "palette"])
def test_one_colour_alone_breaks_nothing(way: str) -> None:
    flat = torch.full((1, 3, 20, 20), 0.3)
    for content, style in ((flat, STYLE), (CONTENT, flat), (flat, flat)):
        chosen = colours.prepare(way, content, [style])  # type: ignore[arg-type]
        for picture in (chosen.content, *chosen.styles, chosen.finish(flat, [1.0])):
            assert bool(picture.isfinite().all())
            assert float(picture.min()) >= 0 and float(picture.max()) <= 1


def test_by_default_nothing_is_touched() -> None:
    chosen = colours.prepare("style", CONTENT, [STYLE])
    assert chosen.content is CONTENT and chosen.styles[0] is STYLE
    assert chosen.finish(CONTENT, [1.0]) is CONTENT
