"""The controls at the shell: weights, scales, colours, masks, dials, sheets and films, as a person gives them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from core import config, images, weights
from core.__main__ import main
from core.cli.arguments import parse
from core.cli.settings import Asked, for_stylize
from core.config import Settings
from core.transfer import Step, Transfer
from tests.miniatures import picture, save, vgg

Stylize = Callable[..., int]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A photograph of 3:2, two paintings, a mask of its left half, an empty one, and a network."""
    folder = tmp_path_factory.mktemp("given")
    pictures = {"content": (40, 60, 1), "style": (48, 36, 2), "style_2": (36, 36, 3)}
    for name, (height, width, seed) in pictures.items():
        images.save(folder / f"{name}.png", picture(height, width, seed))
    left = torch.zeros(1, 3, 20, 30)
    images.save(folder / "empty.png", left)
    left[..., :15] = 1
    images.save(folder / "left.png", left)
    names = (*pictures, "left", "empty")
    return SimpleNamespace(**{name: folder / f"{name}.png" for name in names}, network=save(vgg(8), folder))


@pytest.fixture
def stylize(given: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stylize:
    """`stylize` with both styles, the small network, three iterations, at level 0, in a folder of its own."""
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*options: object, output: str = "out.png", styles: int = 2) -> int:
        pictures = [given.content, given.style, given.style_2][: styles + 1]
        own = ["--weights", given.network, "--network", "vgg19-oxford", "--iterations", 3]
        level = [] if "--sweep" in options or "--interpolate" in options else ["--levels", 0]
        return main([str(part) for part in ("stylize", *pictures, "-o", output, *own, *level, *options)])

    return run


def asked(*options: object, styles: int = 2) -> Asked:
    names = ["b.png", "c.png"][:styles]
    return for_stylize(parse(["stylize", "a.png", *names, "-o", "d.png", *(str(option) for option in options)]))


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        (["--style-weight", 2, "--style-weight", 1], lambda s: [x.weight for x in s.styles], [2, 1]),
        (["--style-scale", 0.5], lambda s: [x.scale for x in s.styles], [0.5]),
        (["--style-weight", 3, "--style-scale", 1, "--style-scale", 2], lambda s: s.style(1).scale, 2),
        (["--style-weight", 3, "--style-scale", 1, "--style-scale", 2], lambda s: s.style(0).weight, 3),
        (["--colour", "matched"], lambda s: s.colour, "matched"),
        (["--color", "palette"], lambda s: s.colour, "palette"),
        (["--content-strength", 10], lambda s: s.loss.content_weight, 0.5),
        (["--noise-strength", 0], lambda s: s.noise.strength, 0),
        (["--noise-strength", 5], lambda s: s, config.load("final")),
        (["--sweep", "seed=1,2"], lambda s: s.levels, 0),
        (["--sweep", "seed=1,2", "--levels", 1], lambda s: s.levels, 1),
        (["--set", "optimizer.level_iterations=[9, 8]", "--levels", 2], lambda s: s.stage_iterations(), (9, 8, 8)),
        (["--set", "optimizer.level_iterations=[9, 8]", "--iterations", 3], lambda s: s.stage_iterations(), (3, 3)),
    ],
)
def test_options_reach_the_settings(
    options: list[object], found: Callable[[Settings], object], expected: object
) -> None:
    assert found(asked(*options).settings) == expected


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["--style-weight", 1, "--style-weight", 1, "--style-weight", 1], "3 times for 2 styles"),
        (["--style-scale", 9], "less than or equal to 4"),
        (["--style-weight", -1], "greater than or equal to 0"),
        (["--colour", "sepia"], "'style', 'content', 'matched', 'histogram' or 'palette'"),
        (["--content-strength", 11], "goes from 0 to 10"),
        (["--mask", "left.png", "--mask", "none", "--mask", "none"], "3 masks for 2 styles"),
        (["--mask", "empty.png"], "mask of style 1 is empty"),
        (["--mask", "nowhere.png"], "nowhere.png"),
        (["--film-every", 3], "about a film"),
        (["--film", "film.avi"], "what film"),
        (["--film", "film.webp", "--sweep", "seed=1,2"], "a sweep makes many"),
        (["--sweep", "seed"], "KEY=a,b,c"),
        (["--interpolate", 1], "whole number of at least 2"),
    ],
)
def test_a_mistake_is_one_line(
    stylize: Stylize,
    given: SimpleNamespace,
    options: list[object],
    phrase: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name in ("left", "empty"):
        (tmp_path / f"{name}.png").write_bytes(getattr(given, name).read_bytes())
    assert stylize(*options, "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert phrase in line
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".*"))


def test_an_interpolation_wants_two_styles(stylize: Stylize, capsys: pytest.CaptureFixture[str]) -> None:
    assert stylize("--interpolate", 3, styles=1) == 2
    assert "two styles" in capsys.readouterr().err


# ── Masks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_masks_and_a_protected_region(stylize: Stylize, given: SimpleNamespace) -> None:
    assert stylize("--mask", "none", "--mask", given.left, "--protect", given.left, "--quiet") == 0
    written = images.read("out.png")
    content = images.resize(images.read(given.content).pixels, (256, 384)).clamp(0, 1)
    assert float((written.pixels - content)[..., :170].abs().max()) < 0.005, "what is protected stays"
    assert float((written.pixels - content)[..., 210:].abs().mean()) > 0.05
    assert written.recipe is not None
    assert (written.recipe["masks"], written.recipe["protect"]) == ([False, True], True)


def test_a_recipe_without_its_masks_is_told(
    stylize: Stylize, given: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    stylize("--mask", given.left)
    stylize("--recipe", "out.png", "--mask", given.left, output="again.png")
    assert "masks" not in capsys.readouterr().err
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    stylize("--recipe", "out.png", output="other.png")
    assert "give the same --mask" in capsys.readouterr().err


# ── Sheets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sheet_has_every_cell_and_each_repeats(stylize: Stylize, capsys: pytest.CaptureFixture[str]) -> None:
    assert stylize("--sweep", "content-strength=3,8", "--sweep", "colour=style,content", output="sheet.png") == 0
    assert "--recipe sheet/r2c2.png --levels 2" in capsys.readouterr().out
    names = sorted(path.name for path in Path("sheet").iterdir())
    assert names == ["r1c1.png", "r1c2.png", "r2c1.png", "r2c2.png"]
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 2 * 384 and sheet.height > 2 * 256
    recipe = images.read_recipe("sheet/r2c2.png")
    assert recipe["settings"]["colour"] == "content" and recipe["settings"]["levels"] == 0
    assert stylize("--recipe", "sheet/r2c2.png", output="again.png") == 0
    assert Path("again.png").read_bytes() == Path("sheet/r2c2.png").read_bytes(), "sharing statistics changes nothing"


def test_the_ends_of_an_interpolation_are_the_styles_alone(stylize: Stylize, given: SimpleNamespace) -> None:
    assert stylize("--interpolate", 3, "--quiet", output="row.png") == 0
    assert stylize("--quiet", styles=1, output="first.png") == 0
    first, middle, last = (images.read(f"row/r1c{n}.png").pixels for n in (1, 2, 3))
    alone = images.read("first.png").pixels
    assert (
        float((first - alone).abs().mean()) < float((middle - alone).abs().mean()) < float((last - alone).abs().mean())
    )


def test_an_interrupted_sheet_shows_what_there_is(
    stylize: Stylize, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from core.cli.sweep import _Painter

    paint = _Painter.paint

    def interrupted(painter: Any, cell: Any, what: str) -> tuple[Transfer, Step | None]:
        painter._interruption.asked = cell.column > 0
        return paint(painter, cell, what)

    monkeypatch.setattr(_Painter, "paint", interrupted)
    assert stylize("--sweep", "seed=1,2,3", output="sheet.png") == 130
    assert [path.name for path in Path("sheet").iterdir()] == ["r1c1.png"]
    assert Path("sheet.png").exists()
    assert "1 pictures" in capsys.readouterr().out


# ── Films ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_film_shows_every_iteration_and_ends_with_the_result(stylize: Stylize) -> None:
    assert stylize("--film", "film.webp", "--levels", 1, "--quiet") == 0
    with Image.open("film.webp") as film:
        assert film.size == (640, 426)
        assert getattr(film, "n_frames", 1) == 7  # the start, three iterations, and three of the next stage
        film.seek(6)
        last = images.read("out.png").pixels
        shown = torch.frombuffer(bytearray(film.convert("RGB").tobytes()), dtype=torch.uint8).view(1, 426, 640, 3)
    expected = images.resize(last, (426, 640)).clamp(0, 1)
    assert float((shown.permute(0, 3, 1, 2) / 255 - expected).abs().mean()) < 0.04
    assert [path.name for path in Path().glob(".*")] == []


# ── Steering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_steered_picture_is_repeated_and_a_larger_one_begins_with_its_weights(
    stylize: Stylize, given: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = asked("--levels", 0, "--iterations", 3, "--network", "vgg19-oxford").settings
    pixels = [images.read(path).pixels for path in (given.content, given.style, given.style_2)]
    run = Transfer(pixels[0], pixels[1:], settings, device="auto", weights_file=given.network)
    for step in run.steps():
        if step.iteration == 1 and not run.steered:
            run.steer({"loss": {"content_weight": 2.0}})
    Path("steered.png").write_bytes(run.encode(step))
    assert stylize("--recipe", "steered.png") == 0
    assert Path("out.png").read_bytes() == Path("steered.png").read_bytes()
    capsys.readouterr()
    assert stylize("--recipe", "steered.png", "--levels", 1, output="large.png") == 0
    assert "hold from the beginning" in capsys.readouterr().err
    large = images.read_recipe("large.png")
    assert large["steering"] == [] and large["settings"]["loss"]["content_weight"] == 2.0
