"""`python -m benchmarks.figures`: the method's story on any content and style."""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.figures import page, report
from benchmarks.figures.pictures import SAMPLE, Kept, Pair
from benchmarks.figures.report import Judge, Section
from benchmarks.figures.stages import STAGES, TOLD
from benchmarks.figures.story import Story, others
from core.errors import UserError

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAIRS = tuple(
    Pair(f"{SAMPLE}{content}", f"{SAMPLE}{style}")
    for content, style in (
        ("rocket", "swirls"),
        ("astronaut", "mosaic"),
        ("coffee", "lilies"),
        ("chelsea", "mosaic"),
    )
)
_QUICK = {"iterations": 2, "coarse_iterations": 2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the pictures, measures them, writes JSON, sheets and, for the samples, the page."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    kept = Kept(options.folder, options.network, options.weights, _QUICK if options.quick else {})
    judge = Judge("vgg19-oxford", options.judge) if options.judge else None
    pairs = _pairs(options)
    told_apart = options.story != options.levels
    # A judge is several times slower than what it judges: where there are two sections, it looks at the story alone.
    order_judge = None if told_apart else judge
    sections = [report.measure(kept, pairs, STAGES, Section(options.levels, options.seeds), order_judge, _said)]
    if told_apart:
        sections.append(report.measure(kept, pairs[:1], TOLD, Section(options.story, 1), judge, _said))
    first = Story(kept, pairs[0], options.story)
    _said(f"{pairs[0].title} at L = 0 … {options.finest}")
    figures = {
        "settings": report.settings(kept, STAGES),
        "sections": sections,
        "across_levels": first.figures_across(options.finest),
    }
    output = options.output or (RESULTS if _publishes(options) else options.folder / "report")
    report.write(output / "figures.json", figures)
    for pair in pairs:
        levels = options.story if pair == pairs[0] else options.levels
        Story(kept, pair, levels).contact_sheet(output / f"figures-{pair.name}.jpg")
    if _publishes(options):
        _publish(kept, first, pairs, options, figures)


def _publish(
    kept: Kept, first: Story, pairs: Sequence[Pair], options: argparse.Namespace, figures: dict[str, Any]
) -> None:
    """The pictures of the page, and its tables."""
    folder = page.PAGE.with_suffix("")
    first.given(folder / "given.jpg")
    first.noises(folder / "noises.jpg")
    first.stages(folder / "stages.jpg")
    first.details(folder / "details.jpg")
    first.across(folder / "levels.jpg", options.finest)
    others(kept, pairs[1:], options.levels, folder / "others.jpg")
    text = page.PAGE.read_text(encoding="utf-8")
    page.PAGE.write_text(page.updated(text, figures), encoding="utf-8")


def _pairs(options: argparse.Namespace) -> tuple[Pair, ...]:
    if not (options.content or options.style):
        return PAIRS
    contents, styles = options.content or [PAIRS[0].content], options.style or [PAIRS[0].style]
    return tuple(Pair(content, style) for content, style in product(contents, styles))


def _publishes(options: argparse.Namespace) -> bool:
    """Whether this is the run whose results lie in the repository: the samples, whole, to the usual place."""
    return not (options.content or options.style or options.quick or options.output)


def _said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures", description="The figures of the method, on the samples or on any pictures."
    )
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--content", action="append", metavar="PICTURE", help="a file or sample:NAME; may be repeated"
    )
    pictures.add_argument("--style", action="append", metavar="PICTURE", help="likewise; every content in every style")
    sizes = parser.add_argument_group("how much")
    sizes.add_argument("--levels", type=int, default=0, help="L at which the order is measured (default: %(default)s)")
    sizes.add_argument("--seeds", type=int, default=3, help="of every stage with noise (default: %(default)s)")
    sizes.add_argument("--story", type=int, default=1, help="L of the first pair's pictures (default: %(default)s)")
    sizes.add_argument(
        "--finest", type=int, default=3, help="show the first pair at L = 0 … this (default: %(default)s)"
    )
    sizes.add_argument("--quick", action="store_true", help="two iterations in place of all: to try the command")
    networks = parser.add_argument_group("networks")
    networks.add_argument("--network", default="compact", help="that stylises (default: %(default)s)")
    networks.add_argument("--weights", type=Path, metavar="FILE", help="its weights, where they lie elsewhere")
    networks.add_argument(
        "--judge", type=Path, metavar="WEIGHTS", help="Oxford weights of VGG-19, to judge the story by as well"
    )
    places = parser.add_argument_group("places")
    places.add_argument(
        "--folder", type=Path, default=Path("out/figures"), help="keeps pictures (default: %(default)s)"
    )
    places.add_argument("--output", type=Path, help="for JSON and sheets (default: benchmarks/results, with the page)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
