"""Memory and time against the size of the picture: `python -m benchmarks.memory`.

Every case is a process of its own, whose peak the operating system tells: a few iterations at one L, with or
without a limit, next to what was foretold. Also from there: time per evaluation and pixel from level to level, and what
a limit costs. Writes `benchmarks/results/memory.json`.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import child, evaluation, machine
from core import config, process
from core.cli import pictures
from core.transfer import Transfer

GIB = 2**30
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """One run: the network's file (none: its own place), L, the limit in GiB (none: the machine's), iterations."""

    network: str
    levels: int
    limit: float | None
    iterations: int

    def __str__(self) -> str:
        return f"{self.network}, L = {self.levels}, {f'{self.limit} GiB' if self.limit else 'no limit'}"


@dataclass(frozen=True)
class Measured:
    """What became of a case: bytes foretold and taken, and seconds per evaluation (the median).

    `plan` has a word for each level, a letter for each block: kept, or computed again in bands.
    """

    case: Case
    width: int
    height: int
    plan: str
    history: int
    foretold: int
    peak: int
    seconds: float

    @property
    def error(self) -> float:
        """How much more was foretold than taken, as a share of what was taken."""
        return self.foretold / self.peak - 1

    @property
    def nanoseconds_per_pixel(self) -> float:
        """Per pixel of all levels together."""
        pixels = sum(self.width * self.height / 4.0**level for level in range(self.case.levels + 1))
        return 1e9 * self.seconds / pixels


CASES = (
    Case("compact", 0, None, 14),
    Case("compact", 1, None, 14),
    Case("compact", 2, None, 14),
    Case("compact", 2, 2.0, 14),
    Case("compact", 3, 3.0, 12),
    Case("VGG-19", 1, None, 14),
    Case("VGG-19", 2, None, 12),
    Case("VGG-19", 3, None, 12),
    Case("VGG-19", 3, 3.7, 12),
    Case("VGG-19", 4, 7.4, 5),
)
"""3.7 GiB are under 4 GB, 7.4 GiB under 8 GB. Iterations enough to fill the optimiser's history, whatever the plan."""


def run_here(case: Case, content: str, style: str, file: Path | None) -> dict[str, Any]:
    """Runs a case in this process, all its levels from the start, and tells what became of it."""
    process.prepare()
    transfer = _transfer(case, content, style, file)
    finished = [step.seconds for step in transfer.steps()]
    laps = [after - before for before, after in itertools.pairwise(finished)]
    return _planned(transfer) | {
        "seconds": statistics.median(laps),
        "peak": child.own_peak_bytes(),
    }


def _transfer(case: Case, content: str, style: str, file: Path | None) -> Transfer:
    optimizer = {"schedule": "joint", "iterations": case.iterations}
    network = "compact" if case.network == "compact" else "vgg19-oxford"
    changes = {"network": network, "levels": case.levels, "max_memory": case.limit, "optimizer": optimizer}
    return Transfer(
        pictures.read(Path(content)).pixels,
        [pictures.read(Path(style)).pixels],
        config.load(changes=changes),
        weights_file=file if case.network != "compact" else None,
    )


def _planned(transfer: Transfer) -> dict[str, Any]:
    height, width = transfer.size
    plan = transfer.plan
    return {
        "width": width,
        "height": height,
        "plan": " ".join("".join("k" if block.keep else "b" for block in tiling) for tiling in plan.tilings),
        "history": plan.history,
        "foretold": plan.memory_bytes,
    }


def measure(case: Case, options: argparse.Namespace, file: Path | None) -> Measured:
    """Runs a case in a process of its own."""
    arguments = ["--content", options.content, "--style", options.style]
    arguments += ["--weights", str(file)] if file else []
    answer = child.run("benchmarks.memory", case, arguments)
    return Measured(case, **answer)


def known(case: Case, options: argparse.Namespace, file: Path | None) -> Measured | None:
    """What the results say of a case, next to what is foretold now; None where it would run another way now."""
    runs = json.loads(options.output.read_text())["runs"] if options.output.exists() else []
    planned = _planned(_transfer(case, options.content, options.style, file))
    for run in runs:
        if run["case"] == asdict(case) and (run["plan"], run["history"]) == (planned["plan"], planned["history"]):
            return Measured(case, peak=run["peak"], seconds=run["seconds"], **planned)
    return None


def table(found: Sequence[Measured]) -> Table:
    """For people."""
    made = Table("run", "size", "foretold", "peak", "error", "plan", "s per evaluation", "ns per pixel")
    for one in found:
        made.add_row(
            str(one.case),
            f"{one.width}×{one.height}",
            f"{one.foretold / GIB:.2f} GiB",
            f"{one.peak / GIB:.2f} GiB",
            f"{one.error:+.0%}",
            one.plan,
            f"{one.seconds:.2f}",
            f"{one.nanoseconds_per_pixel:.0f}",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON; with `--one`, is the process that is measured."""
    options = _parser().parse_args(arguments)
    if options.one:
        print(json.dumps(run_here(Case(**json.loads(options.one)), options.content, options.style, options.weights)))
        return
    file = evaluation.completed(options.weights, "vgg19-oxford", options.folder) if options.weights else None
    cases = [case for case in CASES if (file or case.network == "compact") and case.levels <= options.most]
    found = [(options.refit and known(case, options, file)) or measure(case, options, file) for case in cases]
    Console().print(table(found))
    written = [
        asdict(one) | {"error": round(one.error, 3), "nanoseconds_per_pixel": round(one.nanoseconds_per_pixel, 1)}
        for one in found
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"runs": written, "machine": machine.describe()}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Peak memory, foretold and taken.")
    parser.add_argument("--weights", type=Path, help="VGG-19's Oxford weights; what they lack is random; none: compact")
    parser.add_argument("--content", default="sample:rocket", help="a photograph (%(default)s)")
    parser.add_argument("--style", default="sample:swirls", help="a painting (%(default)s)")
    parser.add_argument("--most", type=int, default=4, help="the largest L (default: %(default)s)")
    parser.add_argument(
        "--refit", action="store_true", help="measure no case again that the output has under the same plan"
    )
    parser.add_argument("--folder", type=Path, default=Path("out/memory"), help="for the completed weights")
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
