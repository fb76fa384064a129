"""The command line's grammar: every command with its options, and the function that runs it.

No option has a default here: what is not given stays as the settings (`core.config`) or the called function have it.
"""

import argparse
import re
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from core import __version__, dials
from core.config import DEFAULT_PRESET, MAX_LEVEL, Settings
from core.errors import UserError

COLOURS = {
    "style": "the style's (default)",
    "content": "the photograph's own, only its luminance is painted",
    "matched": "the style recoloured to the photograph's mean and covariance",
    "histogram": "the style recoloured to the photograph's whole distribution",
    "palette": "no colours but the style's",
}
"""Whose colours the result has, each way in a line."""

_Commands = Any  # argparse keeps the type of what add_subparsers returns to itself


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments as a namespace; its `run` takes the namespace, does what is asked and returns the exit code.

    Raises:
        UserError: They can't be understood.
        SystemExit: After `--help` and `--version`.
    """
    arguments = _parser().parse_args(argv)
    arguments.argv = list(argv)
    return arguments


def program() -> str:
    """What the user typed to start this program."""
    return "python -m core" if Path(sys.argv[0]).name == "__main__.py" else "pyramid-style"


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like any other of a user's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"See {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog=program(),
        description="Paints a photograph in the style of a painting, at any size.",
        epilog=f"A first picture, without any file:  {program()} stylize sample:chelsea sample:swirls -o cat.png",
    )
    parser.add_argument("--version", action="version", version=f"pyramid-style {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_stylize, _add_noise, _add_networks, _add_fetch, _add_presets, _add_samples, _add_recipe):
        add(commands)
    return parser


# ── stylize ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_stylize(commands: _Commands) -> None:
    command = commands.add_parser(
        "stylize",
        help="paint a photograph in the style of one painting or several",
        description="Paints CONTENT in the style of STYLE. Ctrl-C writes the picture so far, and a checkpoint.",
    )
    command.set_defaults(run=_stylize)
    command.add_argument(
        "content", metavar="CONTENT", type=Path, help="the photograph: a file, or a sample such as sample:chelsea"
    )
    command.add_argument(
        "styles",
        metavar="STYLE",
        type=Path,
        nargs="+",
        help="the painting; of several, the picture has something of each",
    )
    output = "the picture to write: .png, .jpg, .webp or .tiff"
    command.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help=output)
    _add_look(command.add_argument_group("the look"))
    _add_dials(command.add_argument_group("three plain dials, from 0 to 10; 5 is as the preset has it"))
    _add_styles(command.add_argument_group("styles, colours and regions"))
    _add_trials(command.add_argument_group("trials: OUT becomes a sheet of small pictures, each also a file beside it"))
    _add_computing(command.add_argument_group("the computation"))
    _add_writing(command.add_argument_group("what is written"))


def _add_look(group: argparse._ArgumentGroup) -> None:
    defaults = Settings()
    levels = f"the finest level, 0 to {MAX_LEVEL}: the shorter side gets 256·2^L pixels (default: {defaults.levels})"
    iterations = f"iterations of every stage (default: {defaults.optimizer.iterations})"
    group.add_argument("--levels", metavar="L", type=int, help=levels)
    group.add_argument("--iterations", metavar="N", type=int, help=iterations)
    origin = group.add_mutually_exclusive_group()
    _add_preset(origin)
    origin.add_argument(
        "--recipe",
        metavar="PICTURE",
        type=Path,
        help="take all settings and the seed from a picture that was made here",
    )
    _add_set(group)
    start = group.add_mutually_exclusive_group()
    start.add_argument("--start", metavar="START", help=f"what to start from: {_choices('start')}")
    start.add_argument("--start-image", metavar="FILE", type=Path, help="start from this picture")
    _add_seed(group)


def _add_dials(group: argparse._ArgumentGroup) -> None:
    for dial in dials.DIALS:
        group.add_argument(f"--{dial.name}-strength", metavar="0…10", type=float, help=dial.description)


def _add_styles(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--style-weight", metavar="W", type=float, action="append", help="of a style against the others; once for each"
    )
    group.add_argument(
        "--style-scale",
        metavar="F",
        type=float,
        action="append",
        help="how much larger the style's features become, 0.25 to 4; once for each style",
    )
    group.add_argument("--colour", "--color", metavar="WAY", help="; ".join(f"{k}: {v}" for k, v in COLOURS.items()))
    group.add_argument(
        "--mask",
        metavar="FILE",
        action="append",
        type=Path,
        help="where a style paints: a grey picture, white inside, stretched over CONTENT; once for each style in their "
        "order, 'none' for everywhere. Where masks overlap, styles mix by weight; where none is, nothing is painted",
    )
    group.add_argument(
        "--protect",
        metavar="FILE",
        type=Path,
        help="where the photograph stays: white keeps it as it is, grey keeps its shapes",
    )


def _add_trials(group: argparse._ArgumentGroup) -> None:
    example = "content-strength=3,5,7 or loss.content_weight=0.01,0.02"
    group.add_argument(
        "--sweep",
        metavar="KEY=a,b,c",
        action="append",
        default=[],
        help=f"one picture for every value, at level 0 unless --levels is given: {example}; twice for a grid",
    )
    group.add_argument(
        "--interpolate",
        metavar="N",
        type=_whole("number", 2),
        help="N pictures from the first of two styles to the second",
    )


def _add_computing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--network", metavar="NAME", help=f"{_choices('network')}; see the command networks")
    group.add_argument("--weights", metavar="FILE", type=Path, help="the network's weights, .safetensors or .pth")
    group.add_argument("--optimizer", metavar="NAME", help="lbfgs or adam")
    group.add_argument("--device", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:1 or mps")
    group.add_argument("--max-memory", metavar="GIB", type=float, help="memory that the run may use")
    group.add_argument("--resume", metavar="CHECKPOINT", type=Path, help="go on with an interrupted run")
    _add_limit(group)


def _add_writing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--bits", type=int, choices=(8, 16), help="bits per channel; 16 for PNG and TIFF")
    group.add_argument("--quality", metavar="Q", type=_whole("quality", 1, 100), help="of JPEG and WebP, 1 to 100")
    group.add_argument("--every", metavar="K", type=_whole("number", 1), help="write a frame every K iterations …")
    group.add_argument("--frames", metavar="DIR", type=Path, help="… into this folder, numbered, all of one size")
    group.add_argument(
        "--film", metavar="FILE", type=Path, help="a film of how it forms: .mp4 (with PyAV), .webp or .gif"
    )
    group.add_argument(
        "--film-every",
        metavar="K",
        type=_whole("number", 1),
        help="a frame of the film every K iterations (default: 1)",
    )
    group.add_argument(
        "--film-size",
        metavar="PIXELS",
        type=_whole("number", 16),
        help="longer side of the film at most (default: by format)",
    )
    group.add_argument("--json", action="store_true", help="print the figures of the run as one JSON object, last")
    group.add_argument("--quiet", action="store_true", help="show no progress and no notices")


def _stylize(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    if (arguments.every is None) != (arguments.frames is None):
        raise UserError("--every and --frames go together", "Give both or neither")
    _check_trials(arguments)
    from core.cli.settings import for_stylize  # noqa: PLC0415  (every command imports only what it needs)

    asked = for_stylize(arguments)
    from core.cli import stylize  # noqa: PLC0415  (now PyTorch)

    return stylize.run(arguments, asked, began)


def _check_trials(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that don't go together."""
    if arguments.film is None and (arguments.film_every or arguments.film_size):
        raise UserError("--film-every and --film-size are about a film", "Add --film FILE")
    if arguments.interpolate is not None and len(arguments.styles) != 2:
        raise UserError("--interpolate goes from one style to another", "Name two styles")
    single = {"--film": arguments.film, "--frames": arguments.frames, "--resume": arguments.resume}
    for name, value in single.items():
        if value is not None and (arguments.sweep or arguments.interpolate):
            raise UserError(f"{name} is about one picture, and a sweep makes many", "Leave one of both out")


# ── noise ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_noise(commands: _Commands) -> None:
    command = commands.add_parser(
        "noise",
        help="write the structured noise, or the starting picture that it makes of a photograph",
        description="Writes the structured noise in the colours of STYLE, alone or over a photograph.",
    )
    command.set_defaults(run=_noise)
    command.add_argument("style", metavar="STYLE", type=Path, help="where the colours come from")
    command.add_argument("output", metavar="OUT", type=Path, help="the picture to write")
    command.add_argument("--size", metavar="WxH", type=_size, help="in pixels, such as 768x512")
    command.add_argument("--content", metavar="PICTURE", type=Path, help="the photograph to lay the noise over")
    _add_preset(command)
    _add_set(command)
    _add_seed(command)
    _add_limit(command)


def _noise(arguments: argparse.Namespace) -> int:
    if arguments.size is None and arguments.content is None:
        raise UserError("noise alone needs a size", "Add --size 768x512, or --content PICTURE")
    from core.cli.settings import for_noise  # noqa: PLC0415

    settings = for_noise(arguments)
    from core.cli import noise  # noqa: PLC0415

    return noise.run(arguments, settings)


# ── What there is ────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_networks(commands: _Commands) -> None:
    command = commands.add_parser("networks", help="list the networks: which are here, and how to get the others")
    command.set_defaults(run=_networks)
    _add_json(command)


def _networks(arguments: argparse.Namespace) -> int:
    from core.cli import networks  # noqa: PLC0415

    return networks.list_them(as_json=arguments.json)


def _add_fetch(commands: _Commands) -> None:
    command = commands.add_parser("fetch", help="bring a network's weights to this machine")
    command.set_defaults(run=_fetch)
    command.add_argument("network", metavar="NETWORK", help="vgg19")


def _fetch(arguments: argparse.Namespace) -> int:
    from core.cli import networks  # noqa: PLC0415

    return networks.fetch(arguments.network)


def _add_presets(commands: _Commands) -> None:
    command = commands.add_parser("presets", help="list the presets, or print one in full")
    command.set_defaults(run=_presets)
    command.add_argument("name", metavar="NAME", nargs="?", help="print this one, as TOML to start one's own from")
    _add_json(command)


def _presets(arguments: argparse.Namespace) -> int:
    from core.cli import presets  # noqa: PLC0415

    if arguments.name is None:
        return presets.list_them(as_json=arguments.json)
    return presets.show(arguments.name, as_json=arguments.json)


def _add_samples(commands: _Commands) -> None:
    command = commands.add_parser("samples", help="list the photographs and styles that need no file")
    command.set_defaults(run=_samples)
    _add_json(command)


def _samples(arguments: argparse.Namespace) -> int:
    from core.cli import samples  # noqa: PLC0415

    return samples.list_them(as_json=arguments.json)


def _add_recipe(commands: _Commands) -> None:
    command = commands.add_parser("recipe", help="print how a picture was made, as JSON")
    command.set_defaults(run=_recipe)
    command.add_argument("picture", metavar="PICTURE", type=Path, help="one that was made here")


def _recipe(arguments: argparse.Namespace) -> int:
    from core.cli import recipe  # noqa: PLC0415

    return recipe.show(arguments.picture)


# ── Options that commands share ──────────────────────────────────────────────────────────────────────────────────────


def _add_preset(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--preset", metavar="NAME|FILE.toml", help=f"see the command presets (default: {DEFAULT_PRESET})"
    )


def _add_set(group: argparse._ActionsContainer) -> None:
    example = "any setting, such as loss.content_weight=0.01; repeatable"
    group.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=example)


def _add_seed(group: argparse._ActionsContainer) -> None:
    group.add_argument("--seed", metavar="S", type=int, help=f"of the noise (default: {Settings().seed})")


def _add_limit(group: argparse._ActionsContainer) -> None:
    text = "refuse larger input pictures, in millions of pixels"
    group.add_argument("--max-megapixels", metavar="MP", type=_megapixels, help=text)


def _add_json(command: argparse._ActionsContainer) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _choices(setting: str) -> str:
    return ", ".join(typing.get_args(Settings.model_fields[setting].annotation))


def _whole(what: str, least: int, most: int | None = None) -> Callable[[str], int]:
    span = f"of at least {least}" if most is None else f"from {least} to {most}"

    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole {what} {span}")
        return int(text)

    return convert


def _megapixels(text: str) -> int:
    """Pixels, from a number of millions of them."""
    try:
        pixels = round(float(text) * 1e6)
    except (ValueError, OverflowError):
        pixels = 0
    if pixels < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of megapixels")
    return pixels


def _size(text: str) -> tuple[int, int]:
    """Height and width, from "width x height" as people write it."""
    found = re.fullmatch(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 768x512")
    return int(found[2]), int(found[1])
