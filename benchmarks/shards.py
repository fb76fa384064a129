"""How one picture's evaluation scales from one worker to two: `python -m benchmarks.shards`.

A worker has one thread: the first is this process, the second an actor of a Ray that is started for it. The
arrangements take turns in one run, all on one level of one picture, whose loss and gradient agree. Weights of VGG-19's
shape are random, since time doesn't depend on them.

Beside the time that passes, the processor time of the busier worker is measured, of which other programs on the machine
take nothing: what passes where nothing else runs is about that.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import capacity, machine
from core import config, samples, weights
from core.config import Settings
from core.shards import Answer, Key, Shards, Slab, ThreadWorker, Worker
from core.studio.executors import ray_shards
from core.tiles import Statistics
from core.transfer import Transfer, network_of

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
PARTS = 2
ALONE = "one device"
OWN = "1 worker, here, 2 parts"
OTHER = "1 worker, another process, 2 parts"
BOTH = "2 workers"

T = TypeVar("T")


class Weighed(ThreadWorker):
    """Counts the bytes that a worker elsewhere would be sent, and would send back."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bytes: dict[str, int] = {}

    def hold(self, key: Key, slab: Slab) -> Answer[None]:
        """Content features travel once for all evaluations."""
        self._weigh("content, once", *(target.features for target in slab.objective.content.values()))
        return super().hold(key, slab)

    def statistics(self, key: Key, rows: Tensor) -> Answer[Statistics]:
        """Rows go out, Gram matrices come back."""
        self._weigh("rows out", rows)
        found = super().statistics(key, rows).result()
        self._weigh("Gram matrices back", *found.grams.values())
        return _known(found)

    def gradient(self, key: Key, derivatives: Mapping[str, Tensor], content_weight: float) -> Answer[Tensor]:
        """Derivatives go out, rows come back."""
        self._weigh("derivatives out", *derivatives.values())
        found = super().gradient(key, derivatives, content_weight).result()
        self._weigh("gradient back", found)
        return _known(found)

    def _weigh(self, what: str, *tensors: Tensor) -> None:
        self.bytes[what] = self.bytes.get(what, 0) + sum(tensor.nbytes for tensor in tensors)


def _known(value: T) -> Answer[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


@dataclass(frozen=True)
class Case:
    """One network and one level."""

    settings: Settings
    weights_file: Path | None
    content: Tensor
    style: Tensor

    @property
    def loaded(self) -> weights.Weights:
        """The network's weights."""
        return weights.load(self.settings.network, self.weights_file)

    def run(self, workers: Sequence[Worker] = ()) -> Transfer:
        """A run of this level; spread, where there are workers."""
        shards = Shards(workers, PARTS) if workers else None
        return Transfer(
            self.content, [self.style], self.settings, device="cpu", weights_file=self.weights_file, shards=shards
        )


@contextlib.contextmanager
def arrangements(case: Case) -> Iterator[dict[str, Transfer]]:
    """The same run on one device, and spread in three ways."""
    with ray_shards.workers(
        case.settings, case.loaded, device=CPU, others=1, resources={"CPU": 1}, patience=120
    ) as workers:
        here, there = workers
        yield {ALONE: case.run(), OWN: case.run([here]), OTHER: case.run([there]), BOTH: case.run([here, there])}


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of one evaluation in each arrangement, in turns, after one round to warm up."""
    seconds: dict[str, list[float]] = {}
    busiest: dict[str, list[float]] = {}
    with arrangements(case) as runs:
        picture = runs[ALONE].starting_picture
        expected = runs[ALONE].pyramid.evaluate(picture)
        agreement = {}
        for number in range(1 + rounds):
            for name, run in runs.items():
                before, began = processor_seconds(), time.perf_counter()
                found = run.pyramid.evaluate(picture)
                took, used = time.perf_counter() - began, processor_seconds()
                if number:
                    seconds.setdefault(name, []).append(took)
                    busiest.setdefault(name, []).append(
                        max(after - then for then, after in zip(before, used, strict=True))
                    )
                difference = (found.gradient - expected.gradient).norm() / expected.gradient.norm()
                agreement[name] = [abs(found.total / expected.total - 1), float(difference)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    work = {name: statistics.median(values) for name, values in busiest.items()}
    traffic = weigh(case)
    per_evaluation = sum(count for what, count in traffic.items() if "once" not in what)
    return {
        "network": case.settings.network,
        "level": case.settings.levels,
        "size": [picture.shape[3], picture.shape[2]],
        "precision": str(run.network.dtype).removeprefix("torch."),
        "seconds": {
            name: {"median": medians[name], "processor": work[name], "all": values} for name, values in seconds.items()
        },
        "speedup_of_2_workers": medians[ALONE] / medians[BOTH],
        "speedup_of_2_workers_by_processor_time": work[ALONE] / work[BOTH],
        "overlap_by_processor_time": work[OWN] / work[ALONE],
        "bytes_of_the_second_worker": traffic,
        "bytes_per_evaluation": per_evaluation,
        "relative_difference_of_loss_and_gradient": agreement,
    }


def processor_seconds() -> tuple[float, float]:
    """Spent so far by this process, and by the actor."""
    actors = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{ray_shards.ShardActor.__name__}")
    ]
    spent = [process.cpu_times() for process in actors]
    return time.process_time(), sum(times.user + times.system for times in spent)


def weigh(case: Case) -> dict[str, int]:
    """What travels to and from the second of two workers."""
    network = network_of(case.settings, case.loaded, CPU)
    with contextlib.closing(ThreadWorker(network)) as here, contextlib.closing(Weighed(network)) as there:
        run = case.run([here, there])
        run.pyramid.evaluate(run.starting_picture)
    return there.bytes


def cases(folder: Path, level: int) -> Iterator[Case]:
    """VGG-19's shape, and the compact network."""
    file = folder / "vgg19.safetensors"
    safetensors.torch.save_file(dict(capacity.vgg_19("cpu").tensors), file)
    content, style = samples.load("chelsea"), samples.load("swirls")
    for network, weights_file in (("vgg19-oxford", file), ("compact", None)):
        changes = {"levels": level, "all_levels": False, "network": network}
        yield Case(config.load(changes=changes), weights_file, content, style)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description="Scale one picture's evaluation.")
    parser.add_argument("--level", type=int, default=2, help="whose evaluation is timed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all arrangements (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "shards.json")
    options = parser.parse_args(arguments)
    import ray  # noqa: PLC0415 - its import changes the environment

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = [measure(case, options.rounds) for case in cases(Path(folder), options.level)]
    finally:
        ray.shutdown()
    report(found, Console(width=150))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"cases": found, "machine": machine.describe()}, indent=1) + "\n")


def report(found: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A table for people."""
    console.print("seconds of an evaluation that passed, and processor seconds of the busier worker")
    table = Table("network", "size", ALONE, OWN, OTHER, BOTH, "speed-up", "MB an evaluation")
    for case in found:
        measured = [case["seconds"][name] for name in (ALONE, OWN, OTHER, BOTH)]
        seconds = [f"{one['median']:.2f}, {one['processor']:.2f}" for one in measured]
        speedup = (case["speedup_of_2_workers"], case["speedup_of_2_workers_by_processor_time"])
        size = "×".join(map(str, case["size"]))
        traffic = f"{case['bytes_per_evaluation'] / 1e6:.1f}"
        table.add_row(case["network"], size, *seconds, "{:.2f}, {:.2f}".format(*speedup), traffic)
    console.print(table)


if __name__ == "__main__":
    main()
