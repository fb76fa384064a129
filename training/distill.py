"""Trains the compact network: `python -m training.distill --teacher VGG19.safetensors --pictures FOLDER`.

The student begins as a least-squares reduction of its teacher (`training.initialisation`) and then learns, for a given
number of minutes, from batches of three kinds of pictures: crops of photographs and paintings, pictures that it has
itself stylised (`training.episodes`), and the styles of the latter. One thread learns; another makes pictures and asks
the teacher about them.

What is minimised, for each of the layers relu1_1, relu2_1, relu3_1, relu3_2, relu3_4:

- the relative squared error of the mapped features. The error is not evened out between channels: the style loss sees
  strong channels more than weak ones, and so does this;
- for the style layers, the relative error of the Gram matrix of a whole crop; and for stylised pictures, that of the
  *difference* between the picture's Gram matrix and its style's. The latter is what an optimisation drives to zero in
  the student's eyes, so its error is what remains in the teacher's.

The root of the Gram terms is taken: errors that are small already count as much, in proportion, as large ones.
"""

import argparse
import json
import math
import os
import platform
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from core import config, devices
from core.config import Settings
from core.errors import UserError
from training import episodes, pictures
from training.episodes import Task, Terms
from training.initialisation import describe, initialise
from training.pictures import Crops, Library
from training.student import LAYERS, STYLE_LAYERS, Frozen, Student, flat
from training.teacher import Sample, Teacher

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "core" / "data" / "compact.safetensors"
WIDTHS = (32, 32, 64, 64, 128, 96, 96, 128)


@dataclass(frozen=True)
class Plan:
    """Everything that, with the pictures and the teacher, determines a run.

    Attributes:
        minutes: Of learning, over all resumed runs together.
        widths: Channels of the eight convolutions.
        side: Of a training crop, in pixels.
        batch: Pictures per step; a third each of stylised pictures, their styles, and others.
        rate: Adam's learning rate at its highest; it falls to a hundredth of that by a half cosine.
        warm_up: Steps over which the rate rises.
        gram_weight: Of the Gram terms, against 1 for the features.
        averaging: Steps over which the weights that are used are averaged.
        kept: Samples of either kind that are kept to learn from, the newest.
        fresh: New samples of pictures per episode.
        reuse: How often a stylised picture is learnt from; no more episodes are run than that asks for.
        first: Crops from which the student is initialised.
        episodes: How many evaluations an episode has: one of these, drawn anew for each.
        tasks: Tasks of an examination.
        examination: Evaluations for each of them.
        examine_every: Minutes between two examinations.
        seed: Of everything that is random. The two threads meet as the clock has it, so that a second run gives another
            network, of the same quality.
    """

    minutes: float = 90.0
    widths: tuple[int, ...] = WIDTHS
    side: int = 128
    batch: int = 6
    rate: float = 5e-3
    warm_up: int = 150
    gram_weight: float = 1.5
    averaging: int = 250
    kept: int = 320
    fresh: int = 5
    reuse: int = 3
    first: int = 48
    episodes: tuple[int, ...] = (60, 60, 100, 160)
    tasks: int = 4
    examination: int = 60
    examine_every: float = 12.0
    seed: int = 0


# ---------------------------------------------------------------------------------------------------------------- loss


def feature_error(student: Frozen, own: Tensor, theirs: Tensor, layer: str) -> Tensor:
    """Relative squared error of the mapped features, the mean over the batch.

    Args:
        student: Gives the map.
        own: The student's features [B, c, H, W].
        theirs: The teacher's [B, C, H, W], in units of the layer.
        layer: Its name.
    """
    error = (student.mapped(own, layer) - flat(theirs)).float().square().mean((1, 2))
    # A blank picture has next to no features; the constant keeps it from counting more than others.
    return (error / (flat(theirs).float().square().mean((1, 2)) + 0.02)).mean()


def gram_error(difference: Tensor, reference: Tensor) -> Tensor:
    """Root of ‖difference‖² / ‖reference‖² for matrices [B, C, C], bounded, the mean over the batch."""
    ratio = difference.square().sum((1, 2)) / reference.square().sum((1, 2)).clamp_min(1e-12)
    return (ratio + 1e-4).sqrt().clamp_max(2).mean() if len(ratio) else difference.new_zeros(())


def loss_of(student: Frozen, teacher: Teacher, batch: "Batch", gram_weight: float) -> dict[str, Tensor]:
    """The terms of the loss, already weighted, by name."""
    picture = batch.pictures
    own = student.features(picture)
    terms = {
        f"features {layer}": feature_error(student, *_thinned(own, teacher, batch, layer), layer) for layer in LAYERS
    }
    for layer in STYLE_LAYERS:
        theirs = torch.cat([sample.grams[layer] for sample in batch.samples])
        error = student.mapped_gram(own[layer], layer) - theirs
        for name, term in _gram_terms(error, theirs, batch.pairs).items():
            terms[f"{name} {layer}"] = gram_weight * term
    return terms


def _thinned(own: Mapping[str, Tensor], teacher: Teacher, batch: "Batch", layer: str) -> tuple[Tensor, Tensor]:
    """Both networks' features of a layer; large layers at a part of their positions, which is enough to learn from."""
    if layer == "relu1_1":
        corner = batch.pictures[:, :, :64, :64]
        theirs = teacher.features(corner, (layer,))[layer]
        return own[layer][:, :, :56, :56], theirs[:, :, :56, :56]
    theirs = torch.cat([sample.features[layer] for sample in batch.samples])
    step = 2 if layer == "relu2_1" else 1
    return own[layer][:, :, ::step, ::step], theirs[:, :, ::step, ::step]


def _gram_terms(error: Tensor, theirs: Tensor, pairs: int) -> dict[str, Tensor]:
    """Gram terms of one layer; the last `pairs` pictures are stylised, and those before them their styles."""
    end = len(error) - pairs
    styles, stylised = slice(end - pairs, end), slice(end, None)
    return {
        "gram": 0.3 * gram_error(error[:end], theirs[:end]),
        "difference": gram_error(error[stylised] - error[styles], theirs[styles]),
        "stylised": 0.2 * gram_error(error[stylised], theirs[styles]),
    }


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples in the order: pictures, styles, stylised pictures; the last two, `pairs` each, belong together."""

    samples: Sequence[Sample]
    pairs: int

    @property
    def pictures(self) -> Tensor:
        """[B, 3, N, N]."""
        return torch.cat([sample.picture for sample in self.samples])


# ------------------------------------------------------------------------------------------------------------- samples


class Supply:
    """Samples to learn from, renewed by a thread of its own.

    Args:
        plan: Sizes and the seed.
        teacher: Asked about every new picture.
        library: The pictures.
        settings: The product's, for its noise and its optimiser.
        student: Called for the student of the moment.
    """

    def __init__(self, plan: Plan, teacher: Teacher, library: Library, settings: Settings, student: "Trainee") -> None:
        self.plan = plan
        self.teacher = teacher
        self.settings = settings
        self.student = student
        self.device = teacher.network.device
        self.crops = Crops(library.pictures, settings.noise, np.random.default_rng((plan.seed, 1, student.steps)))
        self.choice = np.random.default_rng((plan.seed, 2, student.steps))
        self.ordinary: deque[Sample] = deque(maxlen=plan.kept)
        self.stylised: deque[Sample] = deque(maxlen=plan.kept)
        self.failure: str | None = None
        self._made, self._used, self._stopped = 0, 0, False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Supply":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._wanted():
                self._renew()
                with self._change:
                    self._change.notify_all()
        except Exception:
            with self._change:
                self.failure = traceback.format_exc()
                self._change.notify_all()

    def _wanted(self) -> bool:
        """Waits until more samples are wanted; False when none will be."""

        def due() -> bool:
            return self._stopped or self._made < self.plan.kept / 4 + self._used / self.plan.reuse

        with self._change:
            self._change.wait_for(due)
            return not self._stopped

    def _renew(self) -> None:
        missing = max(0, 16 * self.plan.batch // 2 - len(self.ordinary))
        for _ in range(max(self.plan.fresh, missing)):
            self.ordinary.append(self.teacher.sample(self.crops.any(self.plan.side).to(self.device)))
        made = self._episode()
        self._made += len(made)
        self.stylised.extend(made)

    def _episode(self) -> list[Sample]:
        task = draw_task(self.crops, self.plan.side, self.device)
        evaluations = int(self.crops.generator.choice(self.plan.episodes))
        style = self.teacher.sample(task.style)
        made = episodes.snapshots(self.student.averaged(), task, self.settings, evaluations)
        return [self.teacher.sample(picture, style) for picture in made]

    def batch(self) -> Batch:
        """Draws a batch; waits for the first samples.

        Raises:
            RuntimeError: Making samples failed.
        """
        pairs = self.plan.batch // 3
        with self._change:
            self._change.wait_for(lambda: self.stylised or self.failure)
            self._used += pairs
            self._change.notify_all()
        if self.failure:
            raise RuntimeError(f"no more samples:\n{self.failure}")
        stylised = self._draw(self.stylised, pairs)
        styles = [sample.style for sample in stylised if sample.style is not None]
        others = self._draw(self.ordinary, self.plan.batch - 2 * pairs)
        return Batch([*others, *styles, *stylised], pairs)

    def _draw(self, samples: deque[Sample], count: int) -> list[Sample]:
        present = list(samples)
        return [present[i] for i in self.choice.integers(len(present), size=count)]


def draw_task(crops: Crops, side: int, device: torch.device) -> Task:
    """A random content, style and start."""
    style, content = crops.style(side), crops.content(side)
    start = crops.start(content, style, float(crops.generator.uniform(0, 1)))
    return Task(content.to(device), style.to(device), start.to(device))


# ------------------------------------------------------------------------------------------------------------ learning


class Trainee:
    """The student, its optimiser and its running average: what a checkpoint holds."""

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        self.plan = plan
        self.device, self.dtype = device, dtype
        self.student = Student(plan.widths)
        self.average = Student(plan.widths)
        self.steps, self.seconds = 0, 0.0
        self.units: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []

    def begin(self, teacher: Teacher, crops: Crops, guide: Mapping[str, Tensor] | None = None) -> None:
        """Makes a new student of the teacher, or of a wider student's weights."""
        initialise(self.student, teacher, torch.cat([crops.any(96) for _ in range(self.plan.first)]), guide)
        self.average.load_state_dict(self.student.state_dict())
        self.units = teacher.units
        self._prepare()

    def _prepare(self) -> None:
        self.student.to(self.device)
        self.average.to(self.device)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.98), weight_decay=1e-4)

    def averaged(self) -> Frozen:
        """The averaged student, ready to be used."""
        with torch.no_grad():
            return self.average.freeze(self.dtype)

    @property
    def rate(self) -> float:
        """The learning rate now."""
        done = min(1.0, self.seconds / (60 * self.plan.minutes))
        rise = min(1.0, (self.steps + 1) / self.plan.warm_up)
        return self.plan.rate * rise * max(0.01, 0.5 + 0.5 * math.cos(math.pi * done))

    def learn(self, teacher: Teacher, batch: Batch) -> dict[str, float]:
        """One step; returns the terms of the loss."""
        terms = loss_of(self.student.freeze(self.dtype), teacher, batch, self.plan.gram_weight)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 2.0)
        self.optimizer.step()
        self.steps += 1
        self._follow()
        return {name: float(term.detach()) for name, term in terms.items()}

    @torch.no_grad()
    def _follow(self) -> None:
        share = 1 / min(self.plan.averaging, 1 + self.steps / 5)
        for average, parameter in zip(self.average.parameters(), self.student.parameters(), strict=True):
            average.lerp_(parameter, share)

    def save(self, file: Path) -> None:
        """Writes a checkpoint, whole or not at all."""
        state = {
            "widths": list(self.plan.widths),
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "seconds": self.seconds,
            "units": self.units,
            "history": self.history,
        }
        part = file.with_suffix(".part")
        torch.save(state, part)
        part.replace(file)

    def restore(self, file: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            UserError: It is of a network of other widths.
        """
        state = torch.load(file, map_location="cpu", weights_only=True)
        if tuple(state["widths"]) != self.plan.widths:
            raise UserError(f"{file} holds a network of other widths", "Give --widths as then, or another --run folder")
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self._prepare()
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.units, self.history = state["units"], state["history"]


def averaged_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged convolutions of another run's student, as `Student.tensors`."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    student = Student(state["widths"])
    student.load_state_dict(state["average"])
    return student.tensors()


def origin(checkpoint: Path | None) -> dict[str, Any]:
    """What is to be known of the student that a run began from."""
    if checkpoint is None:
        return {"teacher": "least squares"}
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return {"widths": state["widths"], "steps": state["steps"], "minutes": round(state["seconds"] / 60, 1)}


# --------------------------------------------------------------------------------------------------------- examination


@dataclass(frozen=True, eq=False)
class Examination:
    """Fixed tasks from the training pictures; the student's pictures are judged by the teacher.

    Args:
        teacher: The judge.
        tasks: What is to be stylised.
        settings: The product's.
        evaluations: Per task.
    """

    teacher: Teacher
    tasks: Sequence[Task]
    settings: Settings
    evaluations: int

    def take(self, student: Frozen) -> list[Terms]:
        """The teacher's terms of the picture that the student makes of each task."""
        return [self._judged(task, student) for task in self.tasks]

    def _judged(self, task: Task, student: Frozen) -> Terms:
        picture = episodes.result(student, task, self.settings, self.evaluations)
        with torch.no_grad():
            style, content, seen = (
                episodes.through_teacher(self.teacher, p) for p in (task.style, task.content, picture)
            )
        return episodes.judge(seen, style.grams, content.content)


def summary(terms: Sequence[Terms]) -> dict[str, float]:
    """Geometric means over tasks: the style term, and its layers."""
    found = {"style": _geometric_mean([term.style for term in terms])}
    return found | {layer: _geometric_mean([term.layers[layer] for term in terms]) for layer in STYLE_LAYERS}


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


# ----------------------------------------------------------------------------------------------------------------- run


@dataclass
class Run:
    """A training run in a folder of its own: checkpoint and log.

    Attributes:
        plan: What is done.
        teacher: Learnt from.
        library: The pictures.
        folder: If there is a checkpoint in it, the run goes on from there.
        settings: The product's.
        dtype: Precision of activations.
        wider: Checkpoint of a wider student to begin from; none: from the teacher.
        console: Where progress is shown.
    """

    plan: Plan
    teacher: Teacher
    library: Library
    folder: Path
    settings: Settings
    dtype: torch.dtype
    wider: Path | None = None
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trainee = Trainee(self.plan, self.teacher.network.device, self.dtype)
        if self.checkpoint.exists():
            self.trainee.restore(self.checkpoint)
            self.teacher.units = self.trainee.units
        else:
            crops = self._crops(3)
            self.teacher.calibrate(
                torch.cat([crops.any(self.plan.side) for _ in range(self.plan.first)]).to(self.trainee.device)
            )
            self.trainee.begin(self.teacher, crops, averaged_tensors(self.wider) if self.wider else None)
        crops = self._crops(4)
        tasks = [draw_task(crops, 3 * self.plan.side // 2, self.trainee.device) for _ in range(self.plan.tasks)]
        self.examination = Examination(self.teacher, tasks, self.settings, self.plan.examination)

    def _crops(self, number: int) -> Crops:
        return Crops(self.library.pictures, self.settings.noise, np.random.default_rng((self.plan.seed, number)))

    @property
    def checkpoint(self) -> Path:
        """Where the run goes on from."""
        return self.folder / "checkpoint.pt"

    def go(self) -> None:
        """Learns until the plan's minutes are over, saving every minute."""
        limit = 60 * self.plan.minutes
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        supply = Supply(self.plan, self.teacher, self.library, self.settings, self.trainee)
        with Progress(*columns, console=self.console) as progress, supply:
            bar = progress.add_task("learning", total=limit, completed=int(self.trainee.seconds))
            while self.trainee.seconds < limit:
                means = self._learn_for(min(60.0, limit - self.trainee.seconds), supply, progress, bar)
                self._note(means)
                self.trainee.save(self.checkpoint)
        if self._last_examined("step") < self.trainee.steps:
            self._examine()
        self.trainee.save(self.checkpoint)

    def _learn_for(self, seconds: float, supply: Supply, progress: Progress, bar: Any) -> dict[str, float]:
        """Learns for a while; returns the means of the loss terms."""
        sums: dict[str, float] = {}
        count, end = 0, self.trainee.seconds + seconds
        while self.trainee.seconds < end:
            began = time.monotonic()
            for name, value in self.trainee.learn(self.teacher, supply.batch()).items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            self.trainee.seconds += time.monotonic() - began
            progress.update(bar, completed=self.trainee.seconds, description=f"step {self.trainee.steps}")
        return {name: value / count for name, value in sums.items()}

    def _note(self, means: Mapping[str, float]) -> None:
        self._log({"loss": sum(means.values()), **means})
        if self.trainee.seconds / 60 - self._last_examined("minutes") >= self.plan.examine_every:
            self._examine()

    def _last_examined(self, key: str) -> float:
        """The "step" or the "minutes" of the last examination; before the first, −∞."""
        return float(self.trainee.history[-1][key]) if self.trainee.history else -math.inf

    def _examine(self) -> None:
        self._log(summary(self.examination.take(self.trainee.averaged())))

    def _log(self, values: Mapping[str, float]) -> None:
        entry = {"step": self.trainee.steps, "minutes": round(self.trainee.seconds / 60, 2)}
        entry |= {name: round(value, 5) for name, value in values.items()}
        if "style" in values:
            self.trainee.history.append(entry)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        line = " ".join(f"{name} {value}" for name, value in entry.items())
        self.console.print(line, highlight=False, soft_wrap=True)

    def export(self, output: Path) -> None:
        """Writes the averaged network with everything that is to be known of its making."""
        tensors = self.trainee.average.export(self.trainee.units)
        output.parent.mkdir(parents=True, exist_ok=True)
        part = output.with_suffix(".part")
        save_file(tensors, part, metadata=self._metadata())
        part.chmod(0o644)
        part.replace(output)

    def _metadata(self) -> dict[str, str]:
        device = self.trainee.device
        facts = {
            "plan": asdict(self.plan),
            "steps": self.trainee.steps,
            "minutes": round(self.trainee.seconds / 60, 1),
            "began_from": origin(self.wider),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
            "precision": str(self.dtype).removeprefix("torch."),
            "teacher_sha256": self.teacher.sha256,
            "pictures": dict(self.library.digests),
            "examinations": self.trainee.history,
            "versions": {name: version(name) for name in ("torch", "numpy", "pillow", "scikit-image")}
            | {"python": platform.python_version()},
        }
        return {
            "network": "compact",
            "architecture": describe(self.plan.widths),
            "input": "RGB in [0, 255] minus (123.68, 116.779, 103.939)",
            "metric": "affine maps from this network's features to those of VGG-19 (Oxford)",
            "training": json.dumps(facts),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, or goes on training, and writes the weights."""
    options = _parser().parse_args(arguments)
    # Learning and making samples are two threads of their own; more within each would only wait for each other.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    device = devices.resolve(options.device)
    dtype = devices.dtype("auto", device)
    plan = Plan(options.minutes, options.widths, rate=options.rate, seed=options.seed)
    teacher = Teacher(options.teacher, device, dtype)
    run = Run(plan, teacher, pictures.load(options.pictures), options.run, config.load(), dtype, options.wider)
    run.go()
    run.export(options.output)
    run.console.print(f"written: {options.output}")


def _parser() -> argparse.ArgumentParser:
    defaults = Plan()
    parser = argparse.ArgumentParser(prog="python -m training.distill", description="Train the compact network.")
    parser.add_argument("--teacher", type=Path, required=True, help="VGG-19's Oxford weights, up to conv3_4 at least")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of photographs and paintings")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="of learning (default: %(default)s)")
    parser.add_argument("--widths", type=_widths, default=defaults.widths, help="of the eight convolutions: 24,32,…")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="of learning, at its highest (%(default)s)")
    parser.add_argument("--wider", type=Path, help="begin as a reduction of this checkpoint's wider student")
    parser.add_argument("--run", type=Path, default=Path("out/distillation"), help="folder of checkpoint and log")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="where the weights are written")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    return parser


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(width) for width in text.split(","))


if __name__ == "__main__":
    main()
