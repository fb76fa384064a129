"""What GPUs would carry, computed before there are any: `python -m benchmarks.capacity`.

No GPU is measured here. Arithmetic is counted as a run's own estimate counts it (`core.planning`); a GPU's speed is its
maker's figure for dense bfloat16 times `UTILISATION`, an assumption. From these follow the time of a job, jobs an
hour, how many GPUs some number of users needs, and where spreading one picture over several GPUs stops paying.
`docs/scale.md` tells what of it to believe.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from core import config, images, planning, samples, tiles
from core.config import Settings
from core.errors import MemoryLimitError
from core.features import NAMES, Network
from core.images import Size
from core.pyramid import level_size
from core.shards import cut
from core.transfer import Transfer
from core.weights import Weights, conv_indices

RESULTS = Path(__file__).parent / "results"

UTILISATION = 0.4
"""Share of a GPU's peak that the convolutions reach, with all that is done beside them."""
CHANNELS = (64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
"""Of VGG-19's convolutions (Simonyan & Zisserman 2014, table 1, column E)."""
CONTENT: Size = (2048, 3072)
"""Pictures are 3:2."""

MIX: Mapping[int, float] = {0: 0.10, 1: 0.45, 2: 0.30, 3: 0.12, 4: 0.03}
"""Share of each level among the pictures that users ask for; an assumption."""
PICTURES_PER_USER = 4.0
"""A day; an assumption."""
BUSIEST_HOUR = 0.09
"""Share of a day's pictures that are asked for in its busiest hour; `benchmarks.queue` has the curve."""
LOAD = 0.8
"""Share of the time that GPUs may be busy in the busiest hour, so that queues stay short."""

VECTOR_PASSES = 100
"""How often an iteration reads or writes a float32 picture outside of the network: L-BFGS over ten pairs (40), the
picture's variable and its frequencies (40), resizing to all levels and back (20); an estimate."""
GBIT = 1e9 / 8
LINE = 100 * GBIT
"""Bytes a second between any two machines."""
NVLINK = 300e9
"""The same between GPUs of one machine, in practice."""
ROUND_TRIP_SECONDS = 2e-3
"""Of a message to an actor and its answer, of which an evaluation needs two."""
LAUNCH_SECONDS = 4e-3
"""Of one level's evaluation, however small: some 400 kernels of 10 µs."""
BESIDE_SECONDS = 1.0, 0.35
"""Of a job, and of a megapixel: reading pictures, targets, the start, previews, checkpoints, the PNG. Of the latter,
`beside` measures what is the processor's."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: dense bfloat16 operations a second, memory, and its bandwidth in bytes a second."""

    name: str
    operations: float
    gib: float
    bandwidth: float

    @property
    def speed(self) -> float:
        """Operations a second that are counted on."""
        return UTILISATION * self.operations


# NVIDIA's data sheets: L4 (2023), A100 80 GB SXM (2021), H200 SXM (2024); tensor cores without sparsity.
GPUS = (Gpu("L4", 121e12, 24, 0.3e12), Gpu("A100", 312e12, 80, 2.0e12), Gpu("H200", 989e12, 141, 4.8e12))


def vgg_19(device: str = "meta") -> Weights:
    """VGG-19's convolutions with random weights; on the device `meta` they have shapes only."""
    draw = torch.Generator(device="cpu").manual_seed(0) if device != "meta" else None
    tensors, before = {}, 3
    for index, channels in zip(conv_indices, CHANNELS, strict=True):
        shape = (channels, before, 3, 3)
        weight = torch.empty(shape, device=device) if draw is None else torch.randn(shape, generator=draw)
        tensors[f"features.{index}.weight"] = weight * (2 / (9 * before)) ** 0.5
        tensors[f"features.{index}.bias"] = torch.zeros(channels, device=device)
        before = channels
    return Weights("vgg19-oxford", tensors, "0" * 64, {})


# ── Jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


ITERATIONS = {"iterations": 40, "coarse_iterations": 50, "tolerance": 0.0}
"""Of the last stage and of every other: about where the default tolerance ends them."""


@dataclass(frozen=True)
class Job:
    """A job of one level on one kind of GPU: what the product's defaults ask of it."""

    gpu: str
    level: int
    width: int
    height: int
    evaluations: int
    operations: float
    arithmetic_seconds: float
    seconds: float
    jobs_per_hour: float
    memory_gib: float


def job(gpu: Gpu, level: int) -> Job | None:
    """A job of this level; none where it doesn't fit in nine tenths of the GPU's memory."""
    changes: dict[str, Any] = {
        "levels": level,
        "precision": "bfloat16",
        "max_memory": 0.9 * gpu.gib,
        "network": "vgg19-oxford",
        "optimizer": ITERATIONS,
    }
    settings, network, device = config.load(changes=changes), vgg_19(), torch.device("cuda")
    try:
        chosen = planning.plan(settings, CONTENT, [CONTENT], device, network)
    except MemoryLimitError:
        return None
    operations = planning.operations(settings, CONTENT, device, network, chosen)
    height, width = level_size(CONTENT, level)
    arithmetic = operations / gpu.speed
    seconds = arithmetic + _launches(settings) * LAUNCH_SECONDS
    seconds += BESIDE_SECONDS[0] + BESIDE_SECONDS[1] * height * width / 1e6
    return Job(
        gpu=gpu.name,
        level=level,
        width=width,
        height=height,
        evaluations=sum(settings.stage_iterations()),
        operations=operations,
        arithmetic_seconds=arithmetic,
        seconds=seconds,
        jobs_per_hour=3600 / seconds,
        memory_gib=chosen.memory_bytes / 2**30,
    )


def _launches(settings: Settings) -> int:
    """Evaluations of single levels."""
    return sum(count * (stage + 1) for stage, count in enumerate(settings.stage_iterations()))


def beside(level: int = 2) -> float:
    """Measured here, in seconds of one thread a megapixel: the starting picture, and the PNG of a result."""
    torch.set_num_threads(1)
    content, style = samples.load("chelsea", 1024, 1536), samples.load("swirls")
    run = Transfer(content, [style], config.load(changes={"levels": level, "network": "compact"}), device="cpu")
    began = time.process_time()
    picture = run.starting_picture
    images.encode(picture, "png")
    return (time.process_time() - began) / (picture.shape[2] * picture.shape[3] / 1e6)


def gpus_for(users: int, gpu: Gpu) -> float:
    """GPUs of one kind that the busiest hour of so many users a day keeps busy, at `LOAD`."""
    jobs = {level: job(gpu, level) for level in MIX}
    seconds = sum(share * found.seconds for level, share in MIX.items() if (found := jobs[level]))
    return users * PICTURES_PER_USER * BUSIEST_HOUR * seconds / 3600 / LOAD


# ── One picture on several GPUs ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Spread:
    """One evaluation of a pyramid on several GPUs, its finer levels spread as `core.shards` does.

    Attributes:
        gpus: How many.
        level: The finest.
        rows_bytes: Of the picture that leave the run's machine; as many come back as gradient.
        sums_bytes: Of Gram matrices that come back; as many go out as derivatives.
        compute: Seconds of the slowest GPU, the run's own, which computes the coarse levels as well.
        vectors: Seconds of the optimiser's own work, all of it on the run's GPU.
        messages: Seconds of everything that travels, over the run's line.
        total: Their sum: nothing overlaps.
        speedup: Against one GPU.
        resident: Seconds if the optimiser's vectors were spread as well, so that no more than the rows around the cuts
            and the sums travelled. This is arithmetic only: it isn't built.
        resident_speedup: Likewise.
    """

    gpu: str

    gpus: int
    level: int
    rows_bytes: float
    sums_bytes: float
    compute: float
    vectors: float
    messages: float
    total: float
    resident: float
    speedup: float = 1.0
    resident_speedup: float = 1.0


def work_per_cut(layer: str = "relu5_1") -> float:
    """Rows of a picture whose work is done twice at every cut, for VGG-19 down to `layer`."""
    last = NAMES.index(layer.removeprefix("relu"))
    work = extra = 0.0
    margin = 0  # rows beyond the part, on one side, at the resolution of the block
    for number in range(last, -1, -1):
        block = int(NAMES[number][0]) - 1
        cost = CHANNELS[number] * (CHANNELS[number - 1] if number else 3) / 4**block
        work += cost
        extra += cost * margin * 2**block
        margin += 1  # a convolution reads a row more,
        if NAMES[number].endswith("_1"):
            margin *= 2  # and the pooling before it twice as many
    return 2 * extra / work


def operations_of(level: int) -> float:
    """Of one evaluation of one level by VGG-19, forward and back, everything kept in between."""
    optimizer = {"iterations": 1, "schedule": "joint"}
    changes = {"levels": level, "all_levels": False, "precision": "bfloat16", "optimizer": optimizer}
    settings = config.load(changes=changes | {"max_memory": 1e6, "network": "vgg19-oxford"})
    device, network = torch.device("cuda"), vgg_19()
    chosen = planning.plan(settings, CONTENT, [CONTENT], device, network)
    return planning.operations(settings, CONTENT, device, network, chosen)


def spread(gpu: Gpu, level: int, gpus: int, *, line: float = LINE, from_level: int = 3) -> Spread:
    """One evaluation of the levels 0…`level` on several GPUs.

    Args:
        gpu: Of which kind.
        level: The finest.
        gpus: How many; the run's own is one of them.
        line: Bytes a second that the run's machine sends, or receives.
        from_level: The coarsest level that is spread.
    """
    alone = _evaluation(gpu, level, 1, line, from_level)
    found = _evaluation(gpu, level, gpus, line, from_level)
    return replace(found, speedup=alone.total / found.total, resident_speedup=alone.resident / found.resident)


def _evaluation(gpu: Gpu, level: int, gpus: int, line: float, from_level: int) -> Spread:
    network = Network(vgg_19(), device="meta")
    layers = (*network.style_layers, *network.content_layers)
    compute = rows = sums = messages = borders = 0.0
    for each in range(level + 1):
        height, width = level_size(CONTENT, each)
        alone = LAUNCH_SECONDS + operations_of(each) / gpu.speed
        if each < from_level or gpus == 1:
            compute += alone
            continue
        parts = cut(height, gpus, 16)
        needed = [tiles.rows_needed(network, layers, part) for part in parts[1:]]
        compute += alone * (1 / len(parts) + (len(parts) - 1) * work_per_cut() / height / len(parts))
        rows += 12 * width * sum(last - first for first, last in needed)
        sums += 4 * sum(channels**2 for channels in (64, 128, 256, 512, 512)) * len(needed)
        messages += 2 * ROUND_TRIP_SECONDS
        overlap = sum(last - first for first, last in needed) - sum(part.last - part.first for part in parts[1:])
        borders = max(borders, 2 * 12 * width * overlap / len(needed) / line)
    vectors = VECTOR_PASSES * 12 * _pixels(level) / gpu.bandwidth
    rounds = messages
    messages += (2 * rows + 2 * sums) / line
    # Grams of every level are summed along a tree, and the coarse levels' picture is gathered.
    summed = 2 * sums / max(1, gpus - 1) * math.ceil(math.log2(gpus)) / line
    gathered = 2 * 12 * _pixels(from_level - 1) / line if gpus > 1 else 0.0
    resident = compute + vectors / gpus + rounds + 2 * borders + summed + gathered
    return Spread(gpu.name, gpus, level, rows, sums, compute, vectors, messages, compute + vectors + messages, resident)


def _pixels(level: int) -> int:
    height, width = level_size(CONTENT, level)
    return height * width


# ── Report ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def report() -> dict[str, Any]:
    """Everything, as it is written into `benchmarks/results`."""
    jobs = [found for gpu in GPUS for level in range(7) if (found := job(gpu, level))]
    small, *_, large = GPUS
    cases = {
        "100 Gbit/s, H200": (large, 5, LINE),
        "NVLink, H200": (large, 5, NVLINK),
        "100 Gbit/s, L4": (small, 4, LINE),
    }
    counts = (1, 2, 4, 8, 16, 32, 64)
    return {
        "computed": "from operation counts; nothing of a GPU is measured",
        "beside_seconds_per_megapixel_measured": beside(),
        "assumptions": {
            "utilisation": UTILISATION,
            "mix": MIX,
            "pictures_per_user": PICTURES_PER_USER,
            "busiest_hour": BUSIEST_HOUR,
            "load": LOAD,
            "line_bytes_per_second": LINE,
            "round_trip_seconds": ROUND_TRIP_SECONDS,
            "nvlink_bytes_per_second": NVLINK,
            "vector_passes": VECTOR_PASSES,
            "launch_seconds": LAUNCH_SECONDS,
            "beside_seconds": BESIDE_SECONDS,
        },
        "jobs": [asdict(found) for found in jobs],
        "gpus_for_1000_users": {gpu.name: gpus_for(1000, gpu) for gpu in GPUS},
        "work_per_cut_rows": work_per_cut(),
        "spread": {
            name: [asdict(spread(gpu, level, count, line=line)) for count in counts]
            for name, (gpu, level, line) in cases.items()
        },
    }


def _tables(found: dict[str, Any]) -> Iterable[Table]:
    yield _table("jobs of the preset `final`", found["jobs"])
    for name, rows in found["spread"].items():
        yield _table(f"one evaluation, spread: {name}", rows)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes, prints, and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "capacity.json")
    options = parser.parse_args(arguments)
    found = report()
    console = Console(width=180)
    for table in _tables(found):
        console.print(table)
    for gpu, count in found["gpus_for_1000_users"].items():
        console.print(f"1,000 users a day keep {count:.2f} {gpu} busy at a load of {LOAD:.0%} in the busiest hour")
    console.print(f"beside computing, measured: {found['beside_seconds_per_megapixel_measured']:.2f} s a megapixel")
    console.print(f"a cut costs the work of {found['work_per_cut_rows']:.1f} rows")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
