"""Styles are the same picture at every size, rich at every scale, and all samples are at hand without a network."""

import functools
import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch import Tensor

from core import samples
from core.errors import SettingsError
from core.samples.canvas import Array, Canvas, along, at, mix, palette, ramp, trace, vary
from core.samples.marks import Paint, lit, relax, stencil, voronoi

STYLES = [sample.name for sample in samples.styles()]
PHOTOGRAPHS = [sample.name for sample in samples.photographs()]

painted = functools.cache(samples.paint)


def python(script: str) -> str:
    """Runs a script in an interpreter of its own and returns what it prints."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def detail(picture: Tensor) -> Tensor:
    """What is finer than 9 px: single marks, without the composition."""
    return picture - F.avg_pool2d(F.pad(picture, (4, 4, 4, 4), mode="reflect"), 9, 1)


def in_srgb(image: Image.Image) -> Image.Image | None:
    """By the picture's own profile, where it has one (a camera's, in the rocket)."""
    profile = image.info.get("icc_profile")
    return ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB")) if profile else image


# ── The catalogue ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_catalogue_names_the_promised_samples_once_each() -> None:
    assert {"swirls", "mosaic", "points", "hatching", "glass", "cutouts"} <= set(STYLES)
    assert set(PHOTOGRAPHS) == {"astronaut", "chelsea", "coffee", "rocket"}
    assert len({*STYLES, *PHOTOGRAPHS}) == len(STYLES) + len(PHOTOGRAPHS)
    assert all(sample.kind == "style" for sample in samples.styles())
    assert all(sample.kind == "photograph" for sample in samples.photographs())
    assert all(s.title and s.description and s.credit for s in samples.styles() + samples.photographs())


def test_importing_the_catalogue_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'torch', 'scipy', 'skimage', 'PIL'}"
    assert python(f"import sys, core.samples; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("swirl", "Did you mean 'swirls'?"), ("rockets", "Did you mean 'rocket'?"), ("zzz", "Known are: swirls, mosaic")],
)
def test_unknown_name_gets_a_suggestion(name: str, remedy: str) -> None:
    with pytest.raises(SettingsError) as caught:
        samples.load(name)
    assert name in caught.value.cause
    assert caught.value.remedy.startswith(remedy)


def test_a_photograph_cannot_be_painted_nor_a_style_photographed() -> None:
    with pytest.raises(SettingsError, match="no style called 'coffee'"):
        samples.paint("coffee", 64, 64)
    with pytest.raises(SettingsError, match="no photograph called 'glass'"):
        samples.photograph("glass")


@pytest.mark.parametrize(
    ("height", "width", "seed", "message"),
    [
        (15, 64, 0, "64 × 15"),
        (64, 5000, 0, "5000 × 64"),
        (0, 64, 0, "64 × 0"),
        (64, 320, 0, "no longer than 4:1"),
        (64, 64, -1, "The seed is -1"),
    ],
)
def test_impossible_sizes_and_seeds_are_refused(height: int, width: int, seed: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        samples.paint("glass", height, width, seed=seed)


# ── The styles ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_style_has_the_size_asked_for() -> None:
    picture = samples.load("glass", 96, 133, seed=2)
    assert picture.shape == (1, 3, 96, 133)
    assert picture.dtype == torch.float32
    assert torch.equal(picture, samples.paint("glass", 96, 133, seed=2))


@pytest.mark.parametrize("name", STYLES)
def test_style_stays_in_range_and_uses_it(name: str) -> None:
    picture = painted(name, 256, 256)
    assert picture.isfinite().all()
    assert 0 <= picture.min() < 0.2
    assert 0.8 < picture.max() <= 1


@pytest.mark.parametrize("name", STYLES)
def test_style_is_one_picture_at_every_size(name: str) -> None:
    """Painted at 256 px (which is painted at 1024 px and averaged) and at 1280 px, then averaged to 256 px.

    Only the smoothing of edges may differ. Pictures that share the composition but not the marks reach about 0.5 in the
    first number and 0.1 in the second; a shift of all marks by half a pixel brings the second below 0.95.
    """
    small, large = painted(name, 256, 256), F.avg_pool2d(painted(name, 1280, 1280), 5)
    assert correlation(small, large) > 0.99
    assert correlation(detail(small), detail(large)) > 0.95


@pytest.mark.parametrize("name", STYLES)
def test_seed_decides_the_picture(name: str) -> None:
    painter = samples._painters()[name]
    first, again, other = (torch.from_numpy(painter(Canvas(160, 200, seed))) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert correlation(detail(first.permute(2, 0, 1)), detail(other.permute(2, 0, 1))) < 0.2


@pytest.mark.parametrize("name", STYLES)
def test_style_is_nowhere_flat(name: str) -> None:
    """Every 80 px square of the 1280 px picture varies by over 1 % of the range, and the squares differ by far more."""
    squares = painted(name, 1280, 1280).unfold(2, 80, 80).unfold(3, 80, 80)
    assert squares.mean(1).std((-1, -2)).min() > 0.01
    colours = squares.mean((-1, -2)).flatten(2)[0]
    assert colours.mean(0).std() > 0.05, "light and dark lie apart"
    assert (colours - colours.mean(0)).std(1).max() > 0.04, "so do the hues"


def test_slightly_different_shapes_show_the_same_picture() -> None:
    """640 × 427 is 3:2 but for rounding: all marks must stay where they are."""
    exact, rounded = samples.paint("points", 256, 384), samples.paint("points", 256, 385)
    assert correlation(detail(exact), detail(rounded[..., :384])) > 0.9


# ── The photographs ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "file", "height", "width"),
    [
        ("astronaut", "astronaut.png", 512, 512),
        ("chelsea", "chelsea.png", 300, 451),
        ("coffee", "coffee.png", 400, 600),
        ("rocket", "rocket.jpg", 427, 640),
    ],
)
def test_photograph_is_the_one_in_scikit_images_package(name: str, file: str, height: int, width: int) -> None:
    picture = samples.load(name)
    assert picture.shape == (1, 3, height, width)
    assert picture.dtype == torch.float32
    with Image.open(Path(skimage.__file__).parent / "data" / file) as bundled:
        expected = torch.from_numpy(np.array(in_srgb(bundled))).permute(2, 0, 1)[None] / 255
    assert (picture - expected).abs().max() < 3 / 255  # profiles may be applied at different precision


def test_photographs_need_neither_network_nor_downloader(tmp_path: Path) -> None:
    script = f"""
        import os, socket, sys
        os.environ.update(HOME={str(tmp_path)!r}, XDG_CACHE_HOME={str(tmp_path)!r})
        sys.modules["pooch"] = None
        def refuse(*arguments): raise AssertionError("a connection was tried")
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        from core import samples
        print(*(tuple(samples.photograph(sample.name).shape) for sample in samples.photographs()))
    """
    assert python(script) == "(1, 3, 512, 512) (1, 3, 300, 451) (1, 3, 400, 600) (1, 3, 427, 640)"
    assert not list(tmp_path.iterdir())


# ── The tools ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_noise_has_the_deviation_it_promises_and_is_the_same_at_every_size() -> None:
    large, small = Canvas(512, 512, 3).noise("n", 12, 2), Canvas(128, 128, 3).noise("n", 12, 2)
    assert np.mean([Canvas(128, 128, seed).noise("n", 12, 2).std() for seed in range(20)]) == pytest.approx(
        1.25, abs=0.05
    )
    assert abs(large.mean()) < 0.2
    averaged = large.reshape(128, 4, 128, 4).mean((1, 3))
    assert np.corrcoef(averaged.ravel(), small.ravel())[0, 1] > 0.995


def test_noise_finer_than_a_pixel_averages_out() -> None:
    assert Canvas(64, 64, 0).noise("n", 4096).std() < 0.1


def test_noise_is_stretched_along_the_axis_asked_for() -> None:
    long_rows = Canvas(256, 256, 0).noise("n", 20, stretch=(1, 8))
    down, across = np.abs(np.diff(long_rows, axis=0)).mean(), np.abs(np.diff(long_rows, axis=1)).mean()
    assert down / across == pytest.approx(8, rel=0.25)


def test_spread_places_keep_apart() -> None:
    canvas = Canvas(300, 450, 1)
    places = canvas.spread("p", 12)
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + 9 * np.eye(12)
    assert (places >= 0).all() and (places <= canvas.extent).all()
    assert apart.min() > 0.5 * (1.5 / 12) ** 0.5  # half the spacing of a square grid of 12


def test_scatter_covers_the_picture_with_the_spacing_asked_for() -> None:
    places = Canvas(100, 100, 0).scatter("p", 0.02)
    inside = ((places > 0) & (places < 1)).all(1).sum()
    assert inside == pytest.approx(2500, rel=0.05)


def test_at_reads_a_field_of_any_resolution_at_places_in_units_of_the_shorter_side() -> None:
    canvas = Canvas(200, 300, 0)
    y, x = canvas.sketch().grid
    places = np.array([[0.25, 0.5], [0.7, 1.2]], np.float32)
    np.testing.assert_allclose(at(y + 10 * x, canvas, places), [5.25, 12.7], atol=1e-3)


def test_ramp_and_mix_pass_through_their_colours() -> None:
    colours = palette("#000000", "#ff0000", "#ffffff")
    expected = np.array([[0, 0, 0], [1, 0, 0], [1, 0.5, 0.5], [1, 1, 1]])
    np.testing.assert_allclose(ramp(colours, [-1, 0.5, 0.75, 2]), expected)
    mixed = mix(colours[0], colours[1], np.array([0, 0.25, 3]))
    np.testing.assert_allclose(mixed, np.array([[0, 0, 0], [0.25, 0, 0], [1, 0, 0]]))


def test_vary_without_strength_changes_nothing() -> None:
    colours = palette("#123456", "#fedcba")
    np.testing.assert_allclose(vary(colours, np.random.default_rng(0), 0, 0), colours)


def test_paths_along_a_round_potential_stay_on_their_circle() -> None:
    canvas = Canvas(400, 400, 0)
    y, x = canvas.sketch().grid
    start = np.array([[0.5, 0.8], [0.3, 0.5]], np.float32)
    paths = trace(along(np.hypot(y - 0.5, x - 0.5)), canvas, start, np.array([0.3, 0.3]))
    radius = np.linalg.norm(paths - 0.5, axis=-1)
    np.testing.assert_allclose(radius, [[0.3] * 12, [0.2] * 12], atol=0.003)
    length = np.linalg.norm(np.diff(paths, axis=1), axis=-1).sum(1)
    np.testing.assert_allclose(length, 0.3, rtol=0.02)


def test_stencil_covers_the_area_of_its_outlines_once() -> None:
    square = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.75], [0.75, 0.25]], np.float32)
    cover = stencil([square, square], 100, 100, 100)
    assert cover.sum() == pytest.approx(2500, rel=0.03)
    assert cover[50, 50] == 1
    assert cover[10, 10] == 0


def test_level_paint_is_lit_evenly_and_a_slope_by_its_side() -> None:
    grey = np.full((32, 32, 3), 0.5, np.float32)
    down_right = np.add.outer(np.arange(32), np.arange(32)) / 32
    np.testing.assert_allclose(lit(grey, np.ones((32, 32)), 32), grey)
    assert (lit(grey, 50 * down_right, 32) < 0.5).all(), "rises away from the light at the top left"
    assert (lit(grey, -50 * down_right, 32) > 0.5).all(), "faces the light"


def test_a_stroke_lies_where_its_path_is_in_its_colour() -> None:
    paint = Paint(Canvas(200, 200, 0), palette("#000000")[0])
    path = np.stack([np.full(12, 0.5), np.linspace(0.2, 0.8, 12)], -1)[None]
    paint.strokes("s", path, np.array([0.2]), palette("#00ff00"))
    picture = paint.finish(0)
    assert picture[95:105, 80:120, 1].mean() > 0.8
    assert picture[:70].max() == picture[130:].max() == 0


def test_voronoi_agrees_with_measuring_all_distances() -> None:
    canvas = Canvas(40, 60, 0)
    seeds = np.random.default_rng(0).random((20, 2)) * canvas.extent
    places = np.stack(np.broadcast_arrays(*canvas.grid), -1)
    distance = np.linalg.norm(places[..., None, :] - seeds, axis=-1)
    cells = voronoi(canvas, seeds)
    nearest_two = np.sort(distance, -1)[..., :2]
    assert (cells.index == distance.argmin(-1)).all()
    np.testing.assert_allclose(cells.border, (nearest_two[..., 1] - nearest_two[..., 0]) / 2, atol=1e-5)


def test_turned_square_cells_on_a_grid_are_its_squares() -> None:
    """Seeds on a grid turned by 30°, with that angle, give the grid's squares: every corner lies on a border."""
    angle = np.pi / 6
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    grid = np.stack(np.meshgrid(*[np.arange(-10, 11) * 0.1] * 2, indexing="ij"), -1).reshape(-1, 2)
    canvas = Canvas(200, 200, 0)
    cells = voronoi(canvas, 0.5 + grid @ turn, np.full(len(grid), angle))
    places = np.stack(np.broadcast_arrays(*canvas.grid), -1)
    in_grid = (places - 0.5) @ turn.T / 0.1
    inside = 0.1 * (0.5 - np.abs(in_grid - np.rint(in_grid)).max(-1))
    border_agrees = np.abs(cells.border - inside) < 0.01
    assert border_agrees.mean() > 0.95


def test_relaxing_evens_the_cells_out() -> None:
    canvas = Canvas(256, 256, 0)
    seeds = np.random.default_rng(0).random((100, 2)).astype(np.float32)

    def unevenness(places: Array) -> float:
        areas = np.bincount(voronoi(canvas, places).index.ravel(), minlength=100)
        return float(areas.std() / areas.mean())

    assert unevenness(relax(canvas, seeds, rounds=8)) < 0.5 * unevenness(seeds)
