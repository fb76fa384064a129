"""How long a run takes, and what was foretold: `python -m benchmarks.duration`.

Every run is a process of its own with the product's defaults. The first of each network is what the machine is
measured by, in a record that begins empty; the others are foretold from it and from those before them, as the shell,
the lab and the bot foretell them. Writes `benchmarks/results/duration.json`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import child, machine
from core import config, process
from core.cli import pictures
from core.transfer import Transfer
from core.weights import CACHE_VARIABLE

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """One run: the network, L, and the samples that it is made of."""

    network: str
    levels: int
    content: str
    style: str

    def __str__(self) -> str:
        return f"{self.network}, L = {self.levels}, {self.content} + {self.style}"


@dataclass(frozen=True)
class Taken:
    """What became of it: seconds from the targets to the last step, foretold (none: nothing was measured yet) and
    taken, the seconds `before` that for the starting picture, and iterations.
    """

    case: Case
    foretold: float | None
    seconds: float
    before: float
    iterations: int

    @property
    def error(self) -> float | None:
        """How much more was foretold than taken, as a share of what was taken."""
        return None if self.foretold is None else self.foretold / self.seconds - 1


CASES = tuple(
    Case(network, levels, content, style)
    for network in ("compact", "VGG-19")
    for levels, content, style in (
        (1, "rocket", "swirls"),
        (1, "astronaut", "mosaic"),
        (0, "coffee", "lilies"),
        (0, "chelsea", "waves"),
        (2, "coffee", "glass"),
        (2, "chelsea", "mosaic"),
    )
)


def run_here(case: Case, file: Path | None) -> dict[str, Any]:
    """Runs a case in this process, from its starting picture to its last step."""
    process.prepare()
    changes = {"network": "compact" if case.network == "compact" else "vgg19-oxford", "levels": case.levels}
    transfer = Transfer(
        pictures.read(Path(f"sample:{case.content}")).pixels,
        [pictures.read(Path(f"sample:{case.style}")).pixels],
        config.load(changes=changes),
        weights_file=file if case.network != "compact" else None,
    )
    foretold = transfer.expected_seconds
    began = time.perf_counter()
    *_, last = transfer.steps()
    whole = time.perf_counter() - began
    return {"foretold": foretold, "seconds": last.seconds, "before": whole - last.seconds, "iterations": last.iteration}


def measure(case: Case, file: Path | None, cache: Path) -> Taken:
    """Runs a case in a process of its own, whose record of speeds lies in `cache`."""
    arguments = ["--weights", str(file)] if file else []
    answer = child.run("benchmarks.duration", case, arguments, {CACHE_VARIABLE: str(cache)})
    return Taken(case, **answer)


def table(found: Sequence[Taken]) -> Table:
    """For people."""
    made = Table("run", "iterations", "before", "foretold", "taken", "error")
    for one in found:
        foretold = "–" if one.foretold is None else f"{one.foretold:.1f} s"
        error = "–" if one.error is None else f"{one.error:+.0%}"
        made.add_row(str(one.case), str(one.iterations), f"{one.before:.1f} s", foretold, f"{one.seconds:.1f} s", error)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON; with `--one`, is the process that is measured."""
    options = _parser().parse_args(arguments)
    if options.one:
        print(json.dumps(run_here(Case(**json.loads(options.one)), options.weights)))
        return
    cases = [case for case in CASES if (options.weights or case.network == "compact") and case.levels <= options.most]
    with tempfile.TemporaryDirectory() as cache:
        found = [measure(case, options.weights, Path(cache)) for case in cases]
    Console().print(table(found))
    written = [asdict(one) | {"error": None if one.error is None else round(one.error, 3)} for one in found]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"runs": written, "machine": machine.describe()}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duration", description="Time, foretold and taken.")
    parser.add_argument("--weights", type=Path, help="VGG-19's Oxford weights; none: compact alone")
    parser.add_argument("--most", type=int, default=2, help="the largest L (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "duration.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
