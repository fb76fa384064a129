"""The command line, from arguments to exit codes: small networks, real files, and real signals to a real process."""

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from core import __version__, config, images, transfer, weights
from core.__main__ import main
from core.cli import display
from core.cli.arguments import parse
from core.cli.interruption import Interruption
from core.cli.settings import for_stylize
from core.config import Settings
from core.errors import DivergenceError, UserError
from core.transfer import Step, Transfer
from tests.miniatures import picture, save, vgg

ROOT = Path(__file__).resolve().parents[1]


class Ran(NamedTuple):
    """A command that has run."""

    code: int
    out: str
    err: str

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Command = Callable[..., Ran]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and none of this machine's own weights, proxies or terminal."""
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    for name in (weights.URL_VARIABLE, "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in a folder of its own, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A photograph of 3:2, two paintings, and a network."""
    folder = tmp_path_factory.mktemp("given")
    pictures = {"content": (40, 60, 1), "style": (48, 36, 2), "style_2": (36, 36, 3)}
    for name, (height, width, seed) in pictures.items():
        images.save(folder / f"{name}.png", picture(height, width, seed))
    network = save(vgg(8), folder)
    return SimpleNamespace(**{name: folder / f"{name}.png" for name in pictures}, network=network)


@pytest.fixture
def stylize(command: Command, given: SimpleNamespace) -> Command:
    """`stylize` at level 0 with the small network, four iterations unless told otherwise; writes out.png."""

    def run(*options: object, output: str = "out.png") -> Ran:
        own = ("--weights", given.network, "--network", "vgg19-oxford", "--levels", 0, "--iterations", 4)
        return command("stylize", given.content, given.style, "-o", output, *own, *options)

    return run


def pixels(path: str | Path) -> NDArray[np.generic]:
    with Image.open(path) as opened:
        return np.asarray(opened)


def recipe(path: str | Path) -> dict[str, Any]:
    return images.read_recipe(path)


# ── What a run says and writes ───────────────────────────────────────────────────────────────────────────────────────


def test_a_run_writes_the_picture_and_says_so_in_one_line(stylize: Command) -> None:
    ran = stylize()
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    assert ran.out.startswith("out.png: 384 × 256, 4 iterations, ")
    assert pixels("out.png").shape == (256, 384, 3)


def test_json_is_one_object_with_the_figures_of_the_run(stylize: Command, given: SimpleNamespace) -> None:
    ran = stylize("--json", "--seed", 5, "--levels", 1, "--iterations", 2)
    assert ran.out.count("\n") == 1
    figures = ran.figures
    expected = {
        "output": "out.png",
        "width": 768,
        "height": 512,
        "levels": 1,
        "iterations": 2 + 2,
        "network": "vgg19-oxford",
        "network_sha256": hashlib.sha256(given.network.read_bytes()).hexdigest(),
        "seed": 5,
        "resumed": False,
        "interrupted": False,
        "checkpoint": None,
    }
    assert expected.items() <= figures.items()
    assert figures["evaluations"] >= 4 + 2  # each stage also evaluates its start
    assert figures["peak_memory_bytes"] > 50e6  # PyTorch alone takes more
    assert [term["level"] for term in figures["terms"]] == [0, 1]
    assert 0 < figures["optimisation_seconds"] < figures["seconds"]
    assert 0 < figures["preparation_seconds"] < figures["seconds"]
    assert figures["device"] in ("cpu", "cuda:0", "mps")
    assert figures["precision"] in ("float32", "bfloat16")
    assert figures["device_name"]


def test_the_reported_loss_is_the_weighted_sum_of_the_reported_terms(stylize: Command) -> None:
    figures = stylize("--json", "--set", "loss.content_weight=0.1", "--set", "loss.tv_weight=0.5").figures
    (term,) = figures["terms"]
    assert figures["loss"] == pytest.approx(0.1 * term["content"] + term["style"] + 0.5 * term["tv"], rel=1e-5)


def test_notices_go_to_stderr(stylize: Command, given: SimpleNamespace, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((40, 60, 3), shade, np.uint8)) for shade in (50, 200)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    ran = stylize("--start-image", "film.gif", "--json")
    assert "film.gif: animated: only the first of 2 frames is used\n" in ran.err
    assert "network vgg19-oxford on" in ran.err
    assert "stage 1 of 1, 384 × 256: iteration 0 of 4, loss " in ran.err
    assert ran.figures["width"] == 384


def test_a_classical_run_says_where_the_network_falls_short_of_the_papers(stylize: Command) -> None:
    ran = stylize("--preset", "classical", "--start", "white-noise")
    assert ran.code == 0
    assert "relu5_1" in ran.err, "the network of these tests ends at conv3_4"


def test_a_run_foretells_its_memory_and_by_the_run_before_its_time(stylize: Command) -> None:
    first = stylize("--json")
    assert first.figures["expected_seconds"] is None
    assert " × 256 will take about " in first.err
    second = stylize("--json", "--iterations", 8)
    # Twice the iterations take twice the time.
    assert second.figures["expected_seconds"] == pytest.approx(2 * first.figures["optimisation_seconds"], rel=0.01)
    assert re.search(r"384 × 256 will take about \d\.\d GiB of memory and \d+ s\n", second.err)


def test_quiet_says_nothing(stylize: Command) -> None:
    assert stylize("--quiet") == (0, "", "")


def test_on_a_terminal_a_bar_shows_the_losses_of_every_level(stylize: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    ran = stylize("--levels", 1, "--iterations", 2)
    for text in ("stage 2 of 2, 768 × 512", "4 of 4, loss", "level 1 style", "level 0 style"):
        assert text in ran.err, text
    assert ran.err.index("level 1 style") < ran.err.rindex("level 0 style")


def test_auto_without_vgg_is_the_compact_network_and_says_how_to_get_vgg(
    command: Command, given: SimpleNamespace
) -> None:
    ran = command("stylize", given.content, given.style, "-o", "out.png", "--levels", 0, "--iterations", 1, "--json")
    assert ran.figures["network"] == "compact"
    assert "VGG-19 itself is not on this machine; to get it: " in ran.err
    assert " fetch vgg19\n" in ran.err


@pytest.mark.parametrize(
    ("output", "options", "mode"),
    [
        ("out.jpg", ["--quality", "30"], "JPEG"),
        ("out.webp", ["--quality", "30"], "WEBP"),
        ("out.tiff", ["--bits", "16"], "TIFF"),
    ],
)
def test_the_suffix_chooses_the_format(stylize: Command, output: str, options: list[str], mode: str) -> None:
    assert stylize(*options, output=output).code == 0
    assert images.probe(output).format == mode
    assert recipe(output)["settings"]["levels"] == 0


def test_16_bits_and_quality_are_passed_on(stylize: Command) -> None:
    stylize("--bits", 16)
    assert Path("out.png").read_bytes()[24] == 16  # bit depth in the header chunk, PNG specification 11.2.2
    sizes = []
    for quality in (20, 95):
        stylize("--quality", quality, output="out.jpg")
        sizes.append(Path("out.jpg").stat().st_size)
    assert sizes[0] < sizes[1] / 2


def test_transparency_of_the_content_comes_back(stylize: Command, given: SimpleNamespace, command: Command) -> None:
    cut = np.concatenate([pixels(given.content), np.full((40, 60, 1), 255, np.uint8)], axis=2)
    cut[:, 30:, 3] = 0
    Image.fromarray(cut).save("cut.png")
    own = ("--weights", given.network, "--network", "vgg19-oxford", "--levels", 0, "--iterations", 1)
    assert command("stylize", "cut.png", given.style, "-o", "out.png", *own).code == 0
    alpha = pixels("out.png")[:, :, 3]
    assert alpha[:, :180].min() == 255
    assert alpha[:, 204:].max() == 0


def test_several_styles_all_count(command: Command, given: SimpleNamespace) -> None:
    own = ("--weights", given.network, "--network", "vgg19-oxford", "--levels", 0, "--iterations", 1, "--quiet")
    assert command("stylize", given.content, given.style, given.style_2, "-o", "both.png", *own).code == 0
    assert recipe("both.png")["sizes"]["styles"] == [[36, 48], [36, 36]]


def test_frames_are_numbered_and_of_one_size(stylize: Command) -> None:
    assert stylize("--levels", 1, "--iterations", 3, "--every", 2, "--frames", "way/frames").code == 0
    frames = sorted(Path("way/frames").iterdir())
    assert [frame.name for frame in frames] == [f"frame-{number:05d}.png" for number in range(4)]  # 0, 2, 4, 6 of 6
    assert {pixels(frame).shape for frame in frames} == {(512, 768, 3)}
    np.testing.assert_array_equal(pixels(frames[-1]), pixels("out.png"))


def test_frames_repeated_by_a_new_stage_are_written_once(stylize: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration 2 ends the first stage and begins the second; the frame shows the end, which is the better picture."""
    options = ("--levels", 1, "--iterations", 2)
    stylize(*options, "--every", 2, "--frames", "frames")
    interrupt_at_step(monkeypatch, 3)
    stylize(*options)
    end = images.read("out.png").pixels
    assert end.shape == (1, 3, 256, 384)
    frame = images.read("frames/frame-00001.png").pixels
    assert float((frame - images.resize(end, (512, 768)).clamp(0, 1)).abs().max()) < 0.02  # both are rounded to 8 bits


# ── Settings from arguments ──────────────────────────────────────────────────────────────────────────────────────────


def settings(*options: object) -> Settings:
    argv = ["stylize", "a.png", "b.png", "-o", "c.png", *(str(option) for option in options)]
    return for_stylize(parse(argv)).settings


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        ([], lambda s: s, config.load("final")),
        (["--levels", 3], lambda s: s.levels, 3),
        (["--iterations", 7], lambda s: (s.optimizer.iterations, s.optimizer.coarse_iterations), (7, 7)),
        (["--preset", "classical"], lambda s: s, config.load("classical")),
        (["--optimizer", "adam"], lambda s: s.optimizer.name, "adam"),
        (["--network", "vgg19"], lambda s: s.network, "vgg19"),
        (["--seed", 9], lambda s: s.seed, 9),
        (["--max-memory", 3.5], lambda s: s.max_memory, 3.5),
        (["--start", "style"], lambda s: s.start, "style"),
        (["--start-image", "d.png"], lambda s: s.start, "image"),
        (["--set", "loss.content_weight=0.5", "--set", "pooling=average"], lambda s: s.loss.content_weight, 0.5),
        (["--set", "loss.content_weight=0.5", "--set", "pooling=average"], lambda s: s.pooling, "average"),
        (["--set", "levels=4", "--levels", 2], lambda s: s.levels, 2),
        (["--preset", "light", "--set", "noise.strength=0.25"], lambda s: s.noise.strength, 0.25),
    ],
)
def test_options_reach_the_settings(
    options: list[object], found: Callable[[Settings], object], expected: object
) -> None:
    assert found(settings(*options)) == expected


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "light"\nlevels = 2\n')
    assert settings("--preset", file) == config.load("light", {"levels": 2, "title": "", "description": ""})


def test_nothing_given_leaves_every_default_to_the_settings(stylize: Command, given: SimpleNamespace) -> None:
    stylize()
    expected = config.load(changes={"levels": 0, "network": "vgg19-oxford"}).changed(
        {"optimizer": {"iterations": 4, "coarse_iterations": 4}}
    )
    assert config.parse(recipe("out.png")["settings"]) == expected


# ── A recipe repeats the run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_recipe_repeats_the_picture(stylize: Command, command: Command, given: SimpleNamespace) -> None:
    stylize("--seed", 3, "--preset", "style-noise", "--optimizer", "adam")
    again = ("--recipe", "out.png", "--weights", given.network)
    ran = command("stylize", given.content, given.style, "-o", "again.png", *again)
    assert "warning" not in ran.err
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()


def test_what_departs_from_the_recipe_is_told(command: Command, stylize: Command, given: SimpleNamespace) -> None:
    stylize()
    other = save(vgg(8, seed=1), given.network.parent)
    again = ("--recipe", "out.png", "--weights", other, "--iterations", 1)
    ran = command("stylize", given.style_2, given.style, given.style_2, "-o", "again.png", *again)
    assert ran.code == 0
    theirs, ours = (hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in (given.network, other))
    warnings = [line for line in ran.err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: the content has another size than the recipe says: [36, 36] instead of [60, 40]",
        "warning: the styles have other sizes than the recipe says: [[36, 48], [36, 36]] instead of [[36, 48]]",
        f"warning: the network's weights are others than the recipe says: {ours}… instead of {theirs}…",
    ]


def test_a_recipe_of_auto_stays_with_the_network_that_it_had(
    command: Command, given: SimpleNamespace, cache: Path, tmp_path: Path
) -> None:
    own = (given.content, given.style, "--levels", 0, "--iterations", 1, "--json")
    command("stylize", *own, "-o", "out.png")
    cache.mkdir(exist_ok=True)
    (cache / "vgg19.safetensors").write_bytes(given.network.read_bytes())
    assert command("stylize", *own, "-o", "new.png").figures["network"] == "vgg19"
    assert command("stylize", *own, "-o", "again.png", "--recipe", "out.png").figures["network"] == "compact"


def test_the_recipe_is_printed(stylize: Command, command: Command) -> None:
    stylize("--seed", 8)
    shown = command("recipe", "out.png").figures
    assert shown == recipe("out.png")
    assert shown["seed"] == 8


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"settings": {"levels": 0, "sparkle": 1}}, "unknown setting 'sparkle'"),
        ({"settings": "all of them"}, "has no settings"),
        ({"settings": {}, "network": {"name": "resnet"}}, "setting 'network'"),
    ],
)
def test_a_recipe_that_cannot_be_repeated_is_refused(
    command: Command, given: SimpleNamespace, made: dict[str, Any], complaint: str
) -> None:
    images.save("made.png", picture(40, 40), recipe=made)
    ran = command("stylize", given.content, given.style, "-o", "out.png", "--recipe", "made.png")
    assert_refused(ran, complaint, "made.png")


# ── Mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_refused(ran: Ran, *phrases: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    line = ran.err.splitlines()[-1]
    assert line.startswith("pyramid-style: ")
    for phrase in phrases:
        assert phrase in line, line


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no command": ([], "COMMAND"),
    "unknown command": (["paint"], "invalid choice: 'paint'"),
    "no output": (["stylize", "c", "s"], "-o/--output"),
    "no style": (["stylize", "c", "-o", "out.png"], "STYLE"),
    "unknown option": (["stylize", "c", "s", "-o", "out.png", "--sparkle"], "--sparkle"),
    "abbreviated option": (["stylize", "c", "s", "-o", "out.png", "--lev", "1"], "--lev"),
    "level that is no number": (["stylize", "c", "s", "-o", "out.png", "--levels", "high"], "--levels"),
    "level too high": (["stylize", "c", "s", "-o", "out.png", "--levels", "99"], "setting 'levels'"),
    "no iterations": (["stylize", "c", "s", "-o", "out.png", "--iterations", "0"], "setting 'optimizer.iterations'"),
    "negative seed": (["stylize", "c", "s", "-o", "out.png", "--seed", "-1"], "setting 'seed'"),
    "no memory": (["stylize", "c", "s", "-o", "out.png", "--max-memory", "0"], "setting 'max_memory'"),
    "preset misspelt": (["stylize", "c", "s", "-o", "out.png", "--preset", "classica"], "Did you mean 'classical'?"),
    "no preset file": (["stylize", "c", "s", "-o", "out.png", "--preset", "my.toml"], "no preset file 'my.toml'"),
    "preset and recipe": (
        ["stylize", "c", "s", "-o", "o.png", "--preset", "light", "--recipe", "c"],
        "not allowed with",
    ),
    "setting misspelt": (["stylize", "c", "s", "-o", "out.png", "--set", "poling=max"], "Did you mean 'pooling'?"),
    "setting without value": (["stylize", "c", "s", "-o", "out.png", "--set", "pooling"], "key=value"),
    "unknown network": (["stylize", "c", "s", "-o", "out.png", "--network", "vgg"], "'vgg19-oxford'"),
    "unknown optimizer": (["stylize", "c", "s", "-o", "out.png", "--optimizer", "sgd"], "'lbfgs' or 'adam'"),
    "unknown start": (["stylize", "c", "s", "-o", "out.png", "--start", "here"], "setting 'start'"),
    "two starts": (["stylize", "c", "s", "-o", "o.png", "--start", "noise", "--start-image", "c"], "not allowed with"),
    "image without a file": (["stylize", "c", "s", "-o", "out.png", "--start", "image"], 'start = "image"'),
    "weights of what": (["stylize", "c", "s", "-o", "out.png", "--weights", "w.pth"], "--network vgg19"),
    "no weights": (["stylize", "c", "s", "-o", "o.png", "--network", "vgg19", "--weights", "w.pth"], "no file w.pth"),
    "VGG not here": (["stylize", "c", "s", "-o", "out.png", "--network", "vgg19"], "fetch vgg19"),
    "every alone": (["stylize", "c", "s", "-o", "out.png", "--every", "3"], "--every and --frames"),
    "frames alone": (["stylize", "c", "s", "-o", "out.png", "--frames", "f"], "--every and --frames"),
    "every 0": (["stylize", "c", "s", "-o", "out.png", "--every", "0", "--frames", "f"], "'0' is not a whole number"),
    "frames on a file": (["stylize", "c", "s", "-o", "out.png", "--every", "1", "--frames", "text"], "folder text"),
    "quality 101": (["stylize", "c", "s", "-o", "out.jpg", "--quality", "101"], "from 1 to 100"),
    "12 bits": (["stylize", "c", "s", "-o", "out.png", "--bits", "12"], "--bits"),
    "16 bits of JPEG": (["stylize", "c", "s", "-o", "out.jpg", "--bits", "16"], "JPEG holds 8 bits"),
    "no device": (["stylize", "c", "s", "-o", "out.png", "--device", "abacus"], "'abacus' is not a device"),
    "device far off": (["stylize", "c", "s", "-o", "out.png", "--device", "cuda:77"], "no CUDA device 77"),
    "no content": (["stylize", "nowhere.jpg", "s", "-o", "out.png"], "nowhere.jpg does not exist"),
    "no picture": (["stylize", "c", "text", "-o", "out.png"], "text is not an image"),
    "too many megapixels": (["stylize", "c", "s", "-o", "out.png", "--max-megapixels", "0.001"], "the limit is 0.001"),
    "no megapixels": (["stylize", "c", "s", "-o", "out.png", "--max-megapixels", "many"], "'many' is not a number"),
    "no suffix": (["stylize", "c", "s", "-o", "out"], "no suffix"),
    "unknown suffix": (["stylize", "c", "s", "-o", "out.docx"], ".docx"),
    "no folder": (["stylize", "c", "s", "-o", "no/where/out.png"], "folder does not exist"),
    "output is a folder": (["stylize", "c", "s", "-o", "folder.png"], "folder.png is a folder"),
    "output is the content": (["stylize", "c.png", "s", "-o", "c.png"], "also one of the pictures to read"),
    "output is the style by a link": (["stylize", "c", "s", "-o", "link.png"], "also one of the pictures to read"),
    "no checkpoint": (["stylize", "c", "s", "-o", "out.png", "--resume", "gone"], "checkpoint gone cannot be read"),
    "broken checkpoint": (["stylize", "c", "s", "-o", "out.png", "--resume", "text"], "checkpoint can't be read"),
    "recipe of a photograph": (["stylize", "c", "s", "-o", "out.png", "--recipe", "c"], "carries no recipe"),
    "recipe of nothing": (["recipe", "nowhere.png"], "nowhere.png does not exist"),
    "noise of no size": (["noise", "s", "out.png"], "--size 768x512"),
    "noise of a strange size": (["noise", "s", "out.png", "--size", "big"], "'big' is not a size such as 768x512"),
    "noise too thin": (["noise", "s", "out.png", "--size", "1000x9"], "not longer than 20:1"),
    "noise too large": (["noise", "s", "out.png", "--size", "50000x50000"], "at most 100 megapixels"),
    "noise of none": (["noise", "s", "out.png", "--size", "90x60", "--preset", "classical"], "have no noise"),
    "noise over its style": (["noise", "c.png", "c.png", "--size", "90x60"], "also one of the pictures to read"),
    "fetch the unknown": (["fetch", "resnet"], "Choose one of vgg19"),
    "fetch what is not fetched": (["fetch", "compact"], "not one to download"),
    "show an unknown preset": (["presets", "finale"], "Did you mean 'final'?"),
}


@pytest.mark.parametrize(("argv", "complaint"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    command: Command, given: SimpleNamespace, tmp_path: Path, argv: list[str], complaint: str
) -> None:
    for name, source in {"c": given.content, "c.png": given.content, "s": given.style}.items():
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "text").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("s")
    before = sorted(tmp_path.iterdir())
    assert_refused(command(*argv), complaint)
    assert sorted(tmp_path.iterdir()) == before, "something was written"


def test_a_picture_too_long_for_its_format_is_refused_before_the_work(
    stylize: Command, command: Command, given: SimpleNamespace
) -> None:
    images.save("long.png", picture(16, 320))
    own = ("--weights", given.network, "--network", "vgg19-oxford", "--levels", 2)
    ran = command("stylize", "long.png", given.style, "-o", "out.webp", *own)
    assert_refused(ran, "20480 × 1", "WEBP")
    assert "stage" not in ran.err


def test_a_bug_keeps_its_traceback_and_the_last_picture(stylize: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    break_after(monkeypatch, 3, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        stylize()
    assert recipe("out.png")["iterations"] == 2


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (DivergenceError("the loss is not a finite number", "Try smaller weights"), "Try smaller weights."),
        (torch.OutOfMemoryError("CUDA out of memory"), "has not enough memory"),
    ],
    ids=["divergence", "memory"],
)
def test_an_error_on_the_way_leaves_the_last_good_picture(
    stylize: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, complaint: str
) -> None:
    break_after(monkeypatch, 3, error)
    ran = stylize()
    assert_refused(ran, complaint)
    assert "the last good picture is in out.png\n" in ran.err
    assert recipe("out.png")["iterations"] == 2


def break_after(monkeypatch: pytest.MonkeyPatch, count: int, error: Exception) -> None:
    """Lets every run fail after so many accepted steps (the first of which is the start)."""
    whole = transfer.Transfer.steps

    def steps(self: Transfer, checkpoint: bytes | None = None) -> Iterator[Step]:
        for step in whole(self, checkpoint):
            yield step
            if step.iteration == count - 1:
                raise error

    monkeypatch.setattr(transfer.Transfer, "steps", steps)


# ── Start-up ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_presets_and_mistakes_do_not_wait_for_pytorch(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('extends = "light"')
    cases = [
        ["--help"],
        ["stylize", "--help"],
        ["--version"],
        ["presets"],
        ["presets", "my.toml"],
        ["stylize", "c", "s", "-o", "out.png", "--bits", "3"],
        ["stylize", "c", "s", "-o", "out.png", "--preset", "finall"],
        ["stylize", "c", "s", "-o", "out.png", "--levels", "9"],
        ["noise", "s", "out.png"],
    ]
    script = (
        "import contextlib, json, sys\n"
        "from core.__main__ import main\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(argv)\n"
        "    assert 'torch' not in sys.modules, argv\n"
        "    assert 'numpy' not in sys.modules, argv\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", script, json.dumps(cases)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert f"pyramid-style {__version__}\n" in ran.stdout


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"    {name} " in shown for name in ("stylize", "noise", "networks", "fetch", "presets", "recipe"))


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "core", "presets"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, b"")


# ── Interruption ─────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = ("--levels", 1, "--iterations", 8, "--json")


@pytest.fixture(scope="module")
def uninterrupted(given: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The picture of a run that nobody interrupts."""
    output = tmp_path_factory.mktemp("whole") / "out.png"
    torch.set_num_threads(1)  # as in the tests themselves, which this comes before
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([str(part) for part in long_run(given, output)]) == 0
    return output.read_bytes()


def long_run(given: SimpleNamespace, output: Path) -> list[object]:
    own = ("--weights", given.network, "--network", "vgg19-oxford")
    return ["stylize", given.content, given.style, "-o", output, *own, *LONG]


def interrupted(argv: Sequence[object], number: signal.Signals, *, at: str) -> Ran:
    """Runs a command in a process of its own, which gets a signal as soon as it has said `at`."""

    def accept_signals() -> None:  # a process in the background may have inherited that they are ignored
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, "-m", "core", *(str(part) for part in argv)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_signals,  # noqa: PLW1509  (no thread of this process holds a lock that it needs)
    ) as child:
        assert child.stderr is not None
        said = ""
        for line in child.stderr:
            said += line
            if line.startswith(at):
                child.send_signal(number)
                break
        out, err = child.communicate(timeout=120)
    return Ran(child.returncode, out, said + err)


@pytest.mark.parametrize(
    ("number", "at", "size"),
    [
        (signal.SIGINT, "stage 1 of 2", (384, 256)),
        (signal.SIGTERM, "stage 2 of 2", (768, 512)),
    ],
    ids=["Ctrl-C in the first stage", "SIGTERM in the last"],
)
def test_an_interrupted_run_leaves_picture_and_checkpoint_and_can_be_resumed(
    given: SimpleNamespace,
    tmp_path: Path,
    uninterrupted: bytes,
    number: signal.Signals,
    at: str,
    size: tuple[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, checkpoint = tmp_path / "out.png", tmp_path / "out.checkpoint"
    ran = interrupted(long_run(given, output), number, at=at)
    assert ran.code == 130, ran.err
    head = images.probe(output)
    assert (head.width, head.height) == size
    assert ran.figures["interrupted"] is True
    assert ran.figures["checkpoint"] == str(checkpoint)
    done = ran.figures["iterations"]
    assert 0 <= done < 16
    assert recipe(output)["iterations"] == done
    assert (
        f"interrupted after {done} of 16 iterations: the picture so far is in {output} ({size[0]} × {size[1]}"
        in ran.err
    )
    assert ran.err.splitlines()[-1].endswith(f"--json --resume {checkpoint}")

    capsys.readouterr()
    assert main([str(part) for part in (*long_run(given, output), "--resume", checkpoint)]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["resumed"] is True
    assert resumed["iterations"] == 16
    assert output.read_bytes() == uninterrupted


def test_a_checkpoint_of_other_settings_is_refused(stylize: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_at_step(patched, 2)
        assert stylize().code == 130
    ran = stylize("--resume", "out.checkpoint", "--seed", 1)
    assert_refused(ran, "belongs to a run with other pictures, settings or weights")


def test_an_interruption_on_the_first_step_writes_the_start(stylize: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at_step(monkeypatch, 1)
    ran = stylize("--quiet")
    assert ran.code == 130
    assert recipe("out.png")["iterations"] == 0
    assert Path("out.checkpoint").is_file()
    assert "interrupted after 0 of 4" in ran.err, "said even to those who want quiet"


def interrupt_at_step(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Lets Ctrl-C come while the accepted step that counts from 1 is shown."""
    show = display.Display.show
    shown: set[tuple[int, int]] = set()

    def show_and_interrupt(self: display.Display, step: Step) -> None:
        show(self, step)
        known = len(shown)
        shown.add((step.stage, step.iteration))
        if known < count == len(shown):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(display.Display, "show", show_and_interrupt)


def test_an_interruption_before_the_first_step_leaves_nothing(
    stylize: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transfer, "steps", lambda *_: signal.raise_signal(signal.SIGTERM))
    ran = stylize()
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-1] == "pyramid-style: interrupted"
    assert not Path("out.png").exists()


def test_the_first_signal_asks_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        interruption.patient = True
        before_any = interruption.asked
        signal.raise_signal(signal.SIGINT)
        assert (before_any, interruption.asked) == (False, True)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_quits_at_once_even_in_the_middle_of_an_operation() -> None:
    """Between two operations Python looks at signals; this one goes on for minutes."""
    script = (
        "import hashlib, signal\n"
        "from core.cli.interruption import Interruption\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with Interruption() as interruption:\n"
        "    interruption.patient = True\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for _ in range(100):  # two signals may melt into one before they arrive; so many don't
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
                break
        else:
            child.kill()
    assert child.returncode == 130


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert not interruption.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_work_is_measured_in_pixels() -> None:
    """Level 1 has four times the pixels of level 0, and its stage computes both: 1 + 4 for each iteration."""
    both = settings("--levels", 1, "--iterations", 60)
    start, middle, end = (SimpleNamespace(stage=1, stages=2, iteration=i, iterations=120) for i in (60, 90, 120))
    assert display.work(both, start) == (60, 60 + 60 * 5)  # type: ignore[arg-type]
    assert display.work(both, middle) == (60 + 30 * 5, 360)  # type: ignore[arg-type]
    assert display.work(both, end) == (360, 360)  # type: ignore[arg-type]
    # A first stage that ended early leaves as much to do as any other.
    early = SimpleNamespace(stage=1, stages=2, iteration=20, iterations=80)
    assert display.work(both, early) == (60, 360)  # type: ignore[arg-type]


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        images.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


# ── noise ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_noise_has_the_size_and_the_mean_colour_of_the_style(command: Command, given: SimpleNamespace) -> None:
    ran = command("noise", given.style, "noise.png", "--size", "90x60")
    assert ran == (0, "noise.png: 90 × 60\n", "")
    found = pixels("noise.png")
    assert found.shape == (60, 90, 3)
    assert found.std() > 10
    np.testing.assert_allclose(found.mean((0, 1)), pixels(given.style).mean((0, 1)), atol=25)
    assert recipe("noise.png")["settings"]["noise"] == config.load("final").model_dump(mode="json")["noise"]


def test_noise_follows_seed_preset_and_settings(command: Command, given: SimpleNamespace) -> None:
    variants: list[list[object]] = [[], ["--seed", 1], ["--preset", "spots-16"], ["--set", "noise.strength=0.3"]]
    made = []
    for options in (*variants, []):
        assert command("noise", given.style, "noise.png", "--size", "90×60", *options).code == 0
        made.append(pixels("noise.png").tobytes())
    assert made[0] == made[-1]
    assert len(set(made)) == len(variants)


def test_noise_over_a_content_is_what_a_run_starts_from(
    command: Command, stylize: Command, given: SimpleNamespace
) -> None:
    command("noise", given.style, "start.png", "--content", given.content, "--seed", 4, "--set", "levels=0")
    stylize("--seed", 4, "--iterations", 1, "--every", 1, "--frames", "frames")
    start, frame = pixels("start.png").astype(float), pixels("frames/frame-00000.png").astype(float)
    assert np.abs(start - frame).max() <= 0.01 * 255 + 1  # a run keeps a hundredth away from black and white


def test_noise_over_a_content_takes_any_size(command: Command, given: SimpleNamespace) -> None:
    command("noise", given.style, "start.jpg", "--content", given.content, "--size", "50x70")
    assert pixels("start.jpg").shape == (70, 50, 3)


# ── networks, fetch, presets ─────────────────────────────────────────────────────────────────────────────────────────


def test_networks_tells_what_is_where(command: Command, given: SimpleNamespace, cache: Path) -> None:
    cache.mkdir(exist_ok=True)
    oxford = cache / "vgg19-oxford.safetensors"
    oxford.write_bytes(given.network.read_bytes())
    digest = hashlib.sha256(oxford.read_bytes()).hexdigest()
    found = {status["network"]: status for status in json.loads(command("networks", "--json").out)}
    assert list(found) == ["vgg19", "vgg19-oxford", "compact"]
    assert found["vgg19"]["present"] is False
    assert "fetch vgg19" in found["vgg19"]["how"]
    expected = {"present": True, "path": str(oxford), "sha256": digest, "size_bytes": oxford.stat().st_size}
    assert expected.items() <= found["vgg19-oxford"].items()

    rows = {row.split()[0]: row for row in command("networks").out.splitlines()}
    assert "fetch vgg19" in rows["vgg19"]
    assert f"{digest[:12]}…" in rows["vgg19-oxford"]
    assert str(oxford) in rows["vgg19-oxford"]
    assert rows["auto"].startswith("auto takes compact.")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, given: SimpleNamespace) -> Iterator[str]:
    """The address of a small VGG-19 with a classifier, on a server in place of torchvision's."""
    buffer = io.BytesIO()
    torch.save(vgg() | {"classifier.0.weight": torch.zeros(3, 3)}, buffer)
    body = buffer.getvalue()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        name = f"vgg19-{hashlib.sha256(body).hexdigest()[:8]}.pth"
        monkeypatch.setenv(weights.URL_VARIABLE, f"http://127.0.0.1:{server.server_port}/{name}")
        yield name
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("terminal", [False, True])
def test_fetch_brings_the_network_and_runs_use_it(
    command: Command, given: SimpleNamespace, cache: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    ran = command("fetch", "vgg19")
    assert (ran.code, ran.out) == (0, f"vgg19: {cache / 'vgg19.safetensors'}\n")
    assert ("fetching vgg19" in ran.err) is terminal
    own = (given.content, given.style, "--levels", 0, "--iterations", 1, "--json")
    assert command("stylize", *own, "-o", "out.png").figures["network"] == "vgg19"


def test_a_failed_fetch_says_what_to_do(command: Command, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = os.environ[weights.URL_VARIABLE].replace(mirror, "vgg19-00000000.pth")
    monkeypatch.setenv(weights.URL_VARIABLE, wrong)
    assert_refused(command("fetch", "vgg19"), "SHA-256", "Try again")


def test_presets_are_listed_with_what_they_say_of_themselves(command: Command) -> None:
    listed = command("presets").out.splitlines()
    as_json = json.loads(command("presets", "--json").out)
    assert [entry["name"] for entry in as_json] == [preset.name for preset in config.presets()]
    for preset in config.presets():
        (line,) = (line for line in listed if line.startswith(f"{preset.name} "))
        assert preset.title in line
        assert preset.description in line


def test_a_preset_is_printed_in_full_and_can_be_used_as_a_file(command: Command, tmp_path: Path) -> None:
    printed = command("presets", "light").out
    assert tomllib.loads(printed)["noise"]["strength"] == 0.5
    (tmp_path / "mine.toml").write_text(printed)
    assert config.load(tmp_path / "mine.toml") == config.load("light")
    assert config.parse(json.loads(command("presets", "light", "--json").out)) == config.load("light")
