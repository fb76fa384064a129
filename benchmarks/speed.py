"""How fast the product is, beside a textbook implementation of the same method: `python -m benchmarks.speed`.

Side by side in one run: the race to the textbook's best picture (`benchmarks.race`), the time of one evaluation against
the machine's arithmetic (`benchmarks.evaluation`), and how soon a first picture is seen. Prints tables, and writes
`benchmarks/results/speed.json`. Finished races are kept in a folder, where the next call finds them.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import evaluation, machine, race
from core import devices, process, weights
from core.cli import pictures

RESULTS = Path(__file__).parent / "results"
PAIRS = (
    ("sample:astronaut", "sample:swirls"),
    ("sample:chelsea", "sample:mosaic"),
    ("sample:coffee", "sample:waves"),
    ("sample:rocket", "sample:lilies"),
)
MARKS = {"written": "textbook's best written picture", "float": "textbook's lowest float loss"}


class Bench:
    """What is measured, as the command line says it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.network = options.network
        self.pairs: Sequence[tuple[str, str]] = options.pair or PAIRS

    def setting(self, pair: tuple[str, str], network: str, levels: int, file: Path | None = None) -> race.Setting:
        """One pair of pictures for one network, with the product's defaults."""
        content, style = (pictures.read(Path(name)).pixels for name in pair)
        chosen = race.settings(network, levels)
        return race.Setting(content, style, chosen, file, self.options.device)

    def races(self) -> list[race.Race]:
        """The race of every pair: run now, or found where an earlier call kept it."""
        return [self._race(pair) for pair in self.pairs]

    def _race(self, pair: tuple[str, str]) -> race.Race:
        options = self.options
        names = (Path(pair[0]).stem, Path(pair[1]).stem)
        vgg, compact = (
            self._endless(self.setting(pair, network, options.levels, file))
            for network, file in ((self.network, options.weights), ("compact", None))
        )
        # A race under other settings is another race.
        asked = [*pair, str(options.weights), options.evaluations, vgg.settings.model_dump_json()]
        kept = (
            options.folder / f"{names[0]}-{names[1]}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}.json"
        )
        if kept.exists():
            found = json.loads(kept.read_text())
            return race.Race(names, found["textbook"], found["products"])
        result = race.race(names, vgg, compact, options.evaluations)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(result), indent=1))
        return result

    def _endless(self, setting: race.Setting) -> race.Setting:
        # Neither runner stops by itself; the product's coarse stage is about as long as its tolerance makes it.
        changes = {"iterations": self.options.evaluations, "coarse_iterations": 50, "tolerance": 0.0}
        optimizer = setting.settings.optimizer.model_copy(update=changes)
        settings = setting.settings.model_copy(update={"optimizer": optimizer})
        return race.Setting(setting.content, setting.style, settings, setting.weights_file, setting.device)

    def evaluations(self) -> list[evaluation.Evaluation]:
        """One evaluation at the race's level: the whole of VGG-19, the layers that the file has, and compact."""
        options, pair = self.options, self.pairs[0]
        whole = evaluation.completed(options.weights, self.network, options.folder)
        cases = {(self.network, whole), (self.network, options.weights), ("compact", None)}
        ordered = sorted(cases, key=lambda case: (case[0] == "compact", str(case[1]) != str(whole)))
        return [evaluation.evaluation(self.setting(pair, *_at(case, options.levels))) for case in ordered]

    def first_sight(self) -> evaluation.FirstSight:
        """The first picture with the compact network."""
        return evaluation.first_sight(self.setting(self.pairs[0], "compact", 0))


def _at(case: tuple[str, Path | None], levels: int) -> tuple[str, int, Path | None]:
    return case[0], levels, case[1]


def summary(races: Sequence[race.Race]) -> dict[str, Any]:
    """The headline: medians over pairs of how many times sooner each product is at each mark."""
    found: dict[str, Any] = {}
    for product in ("VGG-19", "compact"):
        for mark in MARKS:
            reached = [ratio for one in races if (ratio := one.ratio(product, mark)) is not None]
            ratios = sorted([*reached, *[0.0] * (len(races) - len(reached))])  # never there counts as 0
            found[f"{product} {mark}"] = {
                "median": round(statistics.median(ratios), 2),
                "lowest": round(ratios[0], 2),
                "highest": round(ratios[-1], 2),
                "reached": f"{len(reached)} of {len(races)}",
            }
    return found


def report(
    bench: Bench,
    races: Sequence[race.Race],
    evaluations: Sequence[evaluation.Evaluation],
    sight: evaluation.FirstSight | None,
) -> dict[str, Any]:
    """Everything that was measured, as it is written into `benchmarks/results`."""
    headline = summary(races)
    return {
        "time_to_loss_ratio": headline["VGG-19 written"]["median"] if races else None,
        "summary": headline if races else None,
        "levels": bench.options.levels,
        "evaluations_of_the_textbook": bench.options.evaluations,
        "races": [asdict(one) for one in races],
        "evaluations": [
            asdict(one) | {"floor": one.floor, "over_floor": round(one.over_floor, 3)} for one in evaluations
        ],
        "first_sight": asdict(sight) if sight else None,
        "gpu": "measured" if torch.device(devices.resolve(bench.options.device)).type == "cuda" else "not measured",
        "machine": machine.describe(),
    }


def show(
    console: Console,
    races: Sequence[race.Race],
    evaluations: Sequence[evaluation.Evaluation],
    sight: evaluation.FirstSight | None,
) -> None:
    """Tables for people."""
    if races:
        console.print(_race_table(races))
    if evaluations:
        console.print(_evaluation_table(evaluations))
    if sight:
        console.print(
            f"First sight at level 0 with compact: targets {sight.setup_seconds:.2f} s (the same style again "
            f"{sight.again_seconds:.2f} s), styled after {sight.styled_seconds:.2f} s, "
            f"finished after {sight.finished_seconds:.2f} s"
        )


def _race_table(races: Sequence[race.Race]) -> Table:
    table = Table("pair", "mark", "loss", "textbook", "VGG-19", "", "compact", "")
    for one in races:
        for mark, text in MARKS.items():
            row = [" + ".join(one.pair), text, f"{one.textbook[f'{mark}_loss']:.4f}", f"{one.textbook[mark]:.0f} s"]
            for product in one.products:
                seconds, ratio = one.products[product][mark], one.ratio(product, mark)
                row += ["–", ""] if ratio is None else [f"{seconds:.1f} s", f"{ratio:.1f}×"]
            table.add_row(*row)
    return table


def _evaluation_table(evaluations: Sequence[evaluation.Evaluation]) -> Table:
    table = Table("one evaluation", "precision", "arithmetic", "matrix product", "floor", "product", "", "textbook")
    for one in evaluations:
        table.add_row(
            f"{one.network}, {one.width}×{one.height}, levels 0…{one.levels}",
            one.precision,
            f"{one.operations / 1e12:.3f} T",
            f"{one.rate / 1e12:.2f} T/s",
            f"{one.floor:.3f} s",
            f"{one.seconds['product']:.3f} s",
            f"{one.over_floor:.2f} floors",
            f"{one.seconds['textbook']:.2f} s",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON."""
    process.prepare()
    bench = Bench(_parser().parse_args(arguments))
    only = bench.options.only
    sight = bench.first_sight() if only in (None, "first-sight") else None
    evaluations = bench.evaluations() if only in (None, "evaluation") else []
    races = bench.races() if only in (None, "race") else []
    show(Console(), races, evaluations, sight)
    if only is None:
        bench.options.output.parent.mkdir(parents=True, exist_ok=True)
        bench.options.output.write_text(json.dumps(report(bench, races, evaluations, sight), indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Race a textbook implementation.")
    parser.add_argument("--network", default=weights.choose("auto"), help="the network of the race (%(default)s)")
    parser.add_argument("--weights", type=Path, help="its weights; layers that they lack are left out of the race")
    parser.add_argument(
        "--pair", nargs=2, action="append", metavar=("CONTENT", "STYLE"), help="pictures; default: four of samples"
    )
    parser.add_argument("--levels", type=int, default=1, help="L (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, default=150, help="of the textbook (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: %(default)s)")
    parser.add_argument("--only", choices=("race", "evaluation", "first-sight"), help="a part; writes no results")
    parser.add_argument("--folder", type=Path, default=Path("out/speed"), help="where finished races are kept")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed.json")
    return parser


if __name__ == "__main__":
    main()
