"""How well the compact network stands in for VGG-19: `python -m benchmarks.compact --teacher VGG19.safetensors …`.

Both networks stylise the same pairs of pictures with the same settings and the same number of evaluations; then
VGG-19, in float32, judges the pictures as they are written (8 bit). None of the pictures was trained on. The headline
is the geometric mean over pairs of VGG's loss of the compact network's picture, divided by that of VGG's own picture.

Also measured: the time of one evaluation of loss and gradient, both networks in turns, in the same precision.
"""

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from core import config, images, process
from core.config import Settings
from core.pyramid import Pyramid
from core.transfer import Transfer

RESULTS = Path(__file__).parent / "results"
CONTENTS = ("bird", "car", "athens")
STYLES = ("matisse2", "starry_night", "expressive", "cubism2")
PAIRS = (
    ("bird", "matisse2"),
    ("bird", "starry_night"),
    ("car", "cubism2"),
    ("car", "expressive"),
    ("athens", "matisse2"),
    ("athens", "cubism2"),
)
LEVELS = (0, 1)
# Held fixed, so that figures stay comparable when the product's defaults move.
OPTIMIZER = {"history": 20, "preconditioning": 0.25, "fine_preconditioning": 0.25, "tolerance": 0.0}
CONTENT_WEIGHT = 0.01
VGG, COMPACT = "vgg19-oxford", "compact"
TIMING_ROUNDS = 15


@dataclass(frozen=True)
class Judgement:
    """VGG's terms of one level of a picture, unweighted."""

    level: int
    content: float
    style: float


@dataclass(frozen=True)
class Comparison:
    """One pair at one L: what VGG says of its own picture and of the compact network's, and of what both began with."""

    content: str
    style: str
    levels: int
    start: tuple[Judgement, ...]
    vgg: tuple[Judgement, ...]
    compact: tuple[Judgement, ...]
    content_weight: float

    def total(self, judged: Iterable[Judgement]) -> float:
        """The product's loss: the sum over levels."""
        return sum(self.content_weight * j.content + j.style for j in judged)

    @property
    def ratio(self) -> float:
        """Loss of the compact network's picture, in units of VGG's."""
        return self.total(self.compact) / self.total(self.vgg)

    @property
    def style_ratio(self) -> float:
        """The same of the style terms alone."""
        return sum(j.style for j in self.compact) / sum(j.style for j in self.vgg)

    @property
    def content_ratio(self) -> float:
        """The same of the content terms alone."""
        return sum(j.content for j in self.compact) / sum(j.content for j in self.vgg)


class Bench:
    """The networks' files, the pictures, and a folder for results.

    Args:
        teacher: VGG-19's Oxford weights.
        pictures: A folder with `content` and `style` in it.
        folder: VGG's pictures are kept there and found again; the compact network's too, by the hash of its weights.
        evaluations: Of loss and gradient at the end, for either network; as many before, at the coarser level.
    """

    def __init__(self, teacher: Path, pictures: Path, folder: Path, evaluations: int) -> None:
        self.teacher = teacher
        self.pictures = pictures
        self.folder = folder
        self.evaluations = evaluations
        self.seconds: dict[str, float] = {VGG: 0.0, COMPACT: 0.0}

    def settings(self, network: str, levels: int, **changes: Any) -> Settings:
        """The product's defaults at `levels`, but for what is held fixed, through one network."""
        optimizer = OPTIMIZER | {"iterations": self.evaluations, "coarse_iterations": self.evaluations}
        fixed = {"optimizer": optimizer, "loss": {"content_weight": CONTENT_WEIGHT}}
        return config.load(changes={"network": network, "levels": levels, **fixed, **changes})

    def read(self, kind: str, name: str) -> Tensor:
        """A picture [1, 3, H, W] by its name, without the file's ending."""
        (path,) = (self.pictures / kind).glob(f"{name}.*")
        return images.read(path).pixels

    def transfer(self, network: str, pair: tuple[str, str], levels: int) -> Transfer:
        """The transfer of one pair, ready to be run."""
        content, style = self.read("content", pair[0]), self.read("style", pair[1])
        file = self.teacher if network == VGG else None
        return Transfer(content, [style], self.settings(network, levels), weights_file=file)

    def picture(self, network: str, pair: tuple[str, str], levels: int) -> Tensor:
        """The stylised picture as it is written, made now or found in the folder."""
        transfer = self.transfer(network, pair, levels)
        key = hashlib.sha256(f"{transfer.network.sha256} {transfer.settings.model_dump_json()}".encode()).hexdigest()
        path = self.folder / f"{pair[0]}-{pair[1]}-L{levels}-{network}-{key[:8]}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._made(transfer))
        return images.read(path).pixels

    def _made(self, transfer: Transfer) -> bytes:
        began = time.monotonic()
        allowance = self.evaluations * (1 + transfer.settings.levels)
        step = None
        for step in transfer.steps():
            if step.evaluations >= allowance:
                break
        assert step is not None
        self.seconds[transfer.network.name] += time.monotonic() - began
        return transfer.encode(step)

    def compare(self, pair: tuple[str, str], levels: int) -> Comparison:
        """Both pictures of one pair, and the start, through VGG's eyes."""
        exact = self.settings(VGG, levels, precision="float32")
        judge = Transfer(self.read("content", pair[0]), [self.read("style", pair[1])], exact, weights_file=self.teacher)
        start, vgg, compact = (
            judged(judge.pyramid, picture)
            for picture in (
                images.quantize(judge.starting_picture),
                self.picture(VGG, pair, levels),
                self.picture(COMPACT, pair, levels),
            )
        )
        return Comparison(*pair, levels, start, vgg, compact, exact.loss.content_weight)


def judged(pyramid: Pyramid, picture: Tensor) -> tuple[Judgement, ...]:
    """The terms of `picture` [1, 3, H, W], level by level."""
    return tuple(Judgement(term.level, term.content, term.style) for term in pyramid.evaluate(picture).levels)


@dataclass(frozen=True)
class Timing:
    """Seconds of one evaluation of the loss and its gradient: medians, and the middle halves of all rounds."""

    width: int
    height: int
    levels: int
    medians: Mapping[str, float]
    quartiles: Mapping[str, tuple[float, float]]

    @property
    def ratio(self) -> float:
        """How many times faster the compact network is."""
        return self.medians[VGG] / self.medians[COMPACT]


def timing(bench: Bench, levels: int) -> Timing:
    """Times the product's evaluation with both networks in turns, after one round to warm up."""
    transfers = {network: bench.transfer(network, PAIRS[0], levels) for network in (VGG, COMPACT)}
    pictures = {network: transfer.starting_picture for network, transfer in transfers.items()}
    seconds: dict[str, list[float]] = {network: [] for network in transfers}
    for _ in range(1 + TIMING_ROUNDS):
        for network, transfer in transfers.items():
            pyramid = transfer.pyramid
            began = time.perf_counter()
            pyramid.evaluate(pictures[network])
            seconds[network].append(time.perf_counter() - began)
    height, width = transfers[VGG].size
    kept = {network: values[1:] for network, values in seconds.items()}
    medians = {network: statistics.median(values) for network, values in kept.items()}
    return Timing(width, height, levels, medians, {network: _middle(values) for network, values in kept.items()})


def _middle(values: Sequence[float]) -> tuple[float, float]:
    lower, _, upper = statistics.quantiles(values, n=4)
    return lower, upper


def geometric_mean(values: Iterable[float]) -> float:
    """The number whose logarithm is the mean logarithm of `values`."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


# -------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Report:
    """Everything that was measured."""

    comparisons: tuple[Comparison, ...]
    timings: tuple[Timing, ...]
    bench: Bench
    network: Mapping[str, str]

    @cached_property
    def ratio(self) -> float:
        """The headline: geometric mean over all pairs and L."""
        return geometric_mean(comparison.ratio for comparison in self.comparisons)

    def json(self) -> dict[str, Any]:
        """As it is written into `benchmarks/results`."""
        return {
            "loss_ratio": round(self.ratio, 3),
            "worst_ratio": round(max(comparison.ratio for comparison in self.comparisons), 3),
            "loss_ratio_by_levels": {str(n): round(geometric_mean(self._ratios(n)), 3) for n in LEVELS},
            "style_ratio": round(geometric_mean(c.style_ratio for c in self.comparisons), 3),
            "content_ratio": round(geometric_mean(c.content_ratio for c in self.comparisons), 3),
            "time_ratio": {f"{t.width}x{t.height}": round(t.ratio, 2) for t in self.timings},
            "evaluations_per_stage": self.bench.evaluations,
            "optimizer": dict(OPTIMIZER),
            "network": dict(self.network),
            "pairs": [asdict(comparison) | {"ratio": round(comparison.ratio, 3)} for comparison in self.comparisons],
            "timings": [asdict(measured) for measured in self.timings],
            "machine": machine.describe(),
        }

    def _ratios(self, levels: int) -> list[float]:
        return [comparison.ratio for comparison in self.comparisons if comparison.levels == levels]

    def print(self, console: Console) -> None:
        """A table for people."""
        table = Table("pair", "L", "start", "VGG", "compact", "ratio", "style by level", "content by level")
        for c in self.comparisons:
            numbers = [f"{c.total(judged):.4f}" for judged in (c.start, c.vgg, c.compact)]
            style = " ".join(f"{b.style / a.style:.2f}" for a, b in zip(c.vgg, c.compact, strict=True))
            content = " ".join(f"{b.content / a.content:.2f}" for a, b in zip(c.vgg, c.compact, strict=True))
            table.add_row(f"{c.content} + {c.style}", str(c.levels), *numbers, f"{c.ratio:.2f}", style, content)
        console.print(table)
        found = self.json()
        console.print(
            f"VGG's loss, compact / VGG, geometric means: {found['loss_ratio']:.2f}"
            f" (style alone {found['style_ratio']:.2f}, content alone {found['content_ratio']:.2f})"
        )
        for t in self.timings:
            times = ", ".join(f"{network} {1000 * seconds:.0f} ms" for network, seconds in t.medians.items())
            console.print(f"one evaluation at {t.width}×{t.height}, levels 0…{t.levels}: {times} ({t.ratio:.2f}×)")


def contact_sheet(bench: Bench, pairs: Sequence[tuple[str, str]], levels: int, width: int = 288) -> bytes:
    """A PNG of one row per pair: content, style, VGG's picture, the compact network's."""
    rows = []
    for pair in pairs:
        vgg, compact = (bench.picture(network, pair, levels) for network in (VGG, COMPACT))
        height = round(width * vgg.shape[2] / vgg.shape[3])
        cells = [bench.read("content", pair[0]), bench.read("style", pair[1]), vgg, compact]
        rows.append(torch.cat([_cell(cell, (height, width)) for cell in cells], 3))
    return images.encode(torch.cat(rows, 2), "png")


def _cell(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of a picture in the cell's shape, resized, under a white margin."""
    height, width = picture.shape[2:]
    scale = min(height / size[0], width / size[1])
    tall, wide = int(size[0] * scale), int(size[1] * scale)
    top, left = (height - tall) // 2, (width - wide) // 2
    inner = images.resize(picture[:, :, top : top + tall, left : left + wide], (size[0] - 4, size[1] - 4))
    return torch.nn.functional.pad(inner.clamp(0, 1), (2, 2, 2, 2), value=1.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON and a contact sheet."""
    process.prepare()
    options = _parser().parse_args(arguments)
    bench = Bench(options.teacher, options.pictures, options.folder, options.evaluations)
    pairs = [(content, style) for content in CONTENTS for style in STYLES] if options.all else list(PAIRS)
    work = [(pair, levels) for levels in LEVELS for pair in pairs]
    comparisons = tuple(bench.compare(pair, levels) for pair, levels in track(work, "stylising"))
    timings = tuple(timing(bench, levels) for levels in LEVELS)
    network = bench.transfer(COMPACT, PAIRS[0], 0).network
    report = Report(comparisons, timings, bench, {"name": network.name, "sha256": network.sha256})
    report.print(Console())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report.json(), indent=1) + "\n")
    options.output.with_suffix(".png").write_bytes(contact_sheet(bench, pairs, max(LEVELS)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compact", description="Compare compact with VGG-19.")
    parser.add_argument("--teacher", type=Path, required=True, help="VGG-19's Oxford weights, up to conv3_4 at least")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder with content/ and style/ in it")
    parser.add_argument("--folder", type=Path, default=Path("out/comparison"), help="where stylised pictures are kept")
    parser.add_argument("--evaluations", type=int, default=60, help="per stage (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="all twelve pairs instead of six")
    parser.add_argument("--output", type=Path, default=RESULTS / "compact.json")
    return parser


if __name__ == "__main__":
    main()
