"""The command `stylize`: read, check, optimise, write; and when it is interrupted, write what there is."""

import contextlib
import json
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from core import devices, images, planning
from core.cli import files, pictures, sweep
from core.cli.arguments import program
from core.cli.display import Display
from core.cli.interruption import INTERRUPTED, Interruption
from core.cli.settings import Asked, Recipe, departures
from core.errors import CheckpointError, MemoryLimitError
from core.film import Film
from core.images import Picture, Size
from core.transfer import Step, Transfer


def run(arguments: Namespace, asked: Asked, began: float) -> int:
    """Makes the picture, or a sheet of them, and returns the exit code.

    Args:
        arguments: Of `stylize`.
        asked: What they ask for.
        began: When the command began, on the monotonic clock.

    Raises:
        UserError: Anything that the user can mend.
    """
    output = _checked_output(arguments)
    with (
        Interruption() as interruption,
        Display(asked.settings, quiet=arguments.quiet, stopping=lambda: interruption.asked) as display,
        _out_of_memory_explained(),
        contextlib.ExitStack() as endings,
    ):
        display.phase("reading the pictures")
        for notice in asked.notices:
            display.note(notice)
        transfer = _transfer(arguments, asked, display)
        output.check_fit(transfer.size)
        if asked.grid:
            return sweep.run(arguments, asked.grid, transfer, display, interruption, output.encode)
        film = _film(arguments, transfer.size)
        if film is not None:
            endings.enter_context(film.film)
        checkpoint = _read_checkpoint(arguments.resume)
        work = _Run(
            transfer,
            output,
            [taker for taker in (_frames(arguments, transfer.size), film) if taker is not None],
            display,
            interruption,
            asked.recipe,
            resumed=checkpoint is not None,
        )
        work.prepare()
        prepared = time.monotonic() - began
        work.optimise(checkpoint)
    seconds = {"seconds": time.monotonic() - began, "preparation_seconds": prepared}
    return _report(arguments, work, seconds)


# ── What goes in ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _transfer(arguments: Namespace, asked: Asked, display: Display) -> Transfer:
    def read(path: Path) -> Picture:
        picture = pictures.read(path, arguments.max_megapixels)
        for notice in picture.notices:
            display.note(f"{path.name}: {notice}")
        return picture

    content = read(arguments.content)
    transfer = Transfer(
        content.pixels,
        [read(style).pixels for style in arguments.styles],
        asked.grid[0][0].settings if asked.grid else asked.settings,
        device=arguments.device or "auto",
        weights_file=arguments.weights,
        start=None if arguments.start_image is None else read(arguments.start_image).pixels,
        alpha=content.alpha,
        masks=[None if str(mask) == "none" else _mask(arguments, mask) for mask in arguments.mask or ()],
        protect=None if arguments.protect is None else _mask(arguments, arguments.protect),
        steering=asked.steering,
    )
    _introduce(transfer, display)
    return transfer


def _mask(arguments: Namespace, path: Path) -> torch.Tensor:
    limit = images.DEFAULT_MAX_PIXELS if arguments.max_megapixels is None else arguments.max_megapixels
    return images.read_mask(path, max_pixels=limit)


def _introduce(transfer: Transfer, display: Display) -> None:
    """Says what computes, and what more there could be."""
    display.note(f"network {transfer.network.name} on {devices.describe(transfer.device)} in {_precision(transfer)}")
    if transfer.settings.network == "auto" and transfer.network.name == "compact":
        display.note(f"VGG-19 itself is not on this machine; to get it: {program()} fetch vgg19")
    for notice in transfer.notices:
        display.note(notice)


def _precision(transfer: Transfer) -> str:
    return str(transfer.network.dtype).removeprefix("torch.")


def _read_checkpoint(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read ({error.strerror})", "Check its path") from error


# ── What comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Output:
    """Where the picture goes, and how it is encoded; `options` are those of `images.encode`."""

    path: Path
    format: str
    options: dict[str, Any]

    @property
    def checkpoint_path(self) -> Path:
        return self.path.with_suffix(".checkpoint")

    def check_fit(self, size: Size) -> None:
        """Encodes a strip as long as the picture, so that what the format can't hold is refused before the work."""
        images.encode(torch.zeros(1, 3, 1, max(size)), self.format, **self.options)

    def encode(self, transfer: Transfer, step: Step) -> bytes:
        return transfer.encode(step, self.format, **self.options)

    def write(self, transfer: Transfer, step: Step) -> None:
        images.write_bytes(self.path, self.encode(transfer, step))


def _checked_output(arguments: Namespace) -> _Output:
    masks = [*(arguments.mask or ()), arguments.protect]
    inputs = [arguments.content, *arguments.styles, arguments.start_image, arguments.recipe, *masks]
    format = images.writable_format(arguments.output)
    files.check_writable(arguments.output, [path for path in inputs if path is not None])
    options = {"bits": arguments.bits, "quality": arguments.quality}
    return _Output(arguments.output, format, {key: value for key, value in options.items() if value is not None})


@dataclass
class _Frames:
    """Numbered pictures of the way, all of the result's size as films want them; frame n shows iteration n·`every`."""

    folder: Path
    every: int
    size: Size
    _written: set[int] = field(default_factory=set)

    def take(self, step: Step) -> None:
        number, rest = divmod(step.iteration, self.every)
        if rest == 0 and number not in self._written:  # a new stage begins with the iteration that the last ended with
            self._written.add(number)
            picture = images.resize(step.picture(), self.size)
            images.write_bytes(self.folder / f"frame-{number:05d}.png", images.encode(picture))

    def end(self, step: Step) -> None:
        """The last picture is written anyway."""


def _frames(arguments: Namespace, size: Size) -> _Frames | None:
    if arguments.frames is None:
        return None
    files.make_folder(arguments.frames)
    return _Frames(arguments.frames, arguments.every, size)


@dataclass
class _FilmFrames:
    """The frames of a film: every so many iterations one, and the picture that is written."""

    film: Film
    every: int
    _latest: int = -1

    def take(self, step: Step) -> None:
        if step.iteration % self.every == 0:
            self.end(step)

    def end(self, step: Step) -> None:
        """Takes the picture, if it isn't the latest frame already."""
        if step.iteration != self._latest:
            self._latest = step.iteration
            self.film.add(step.picture())


def _film(arguments: Namespace, size: Size) -> _FilmFrames | None:
    if arguments.film is None:
        return None
    files.check_writable(arguments.film, [arguments.output])
    return _FilmFrames(Film(arguments.film, size, longest=arguments.film_size), arguments.film_every or 1)


# ── The run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Run:
    """One optimisation, watched; `step` is the last one, `checkpoint` what it left if it was interrupted."""

    transfer: Transfer
    output: _Output
    frames: Sequence[_Frames | _FilmFrames]
    display: Display
    interruption: Interruption
    recipe: Recipe | None
    resumed: bool
    step: Step | None = None
    checkpoint: bytes | None = None

    @cached_property
    def expected_seconds(self) -> float | None:
        """How long the optimisation should take, as far as could be known before it."""
        return self.transfer.expected_seconds

    def prepare(self) -> None:
        """Says what the run will take, and computes the targets, apart from the optimisation."""
        height, width = self.transfer.size
        self.display.phase(f"preparing {width} × {height}")
        memory = f"{self.transfer.plan.memory_bytes / planning.GIB:.1f} GiB of memory"
        duration = "" if self.expected_seconds is None else f" and {self.expected_seconds:.0f} s"
        self.display.note(f"{width} × {height} will take about {memory}{duration}")
        _ = self.transfer.pyramid

    def optimise(self, checkpoint: bytes | None) -> None:
        """Runs to the end, or to an interruption, and writes the picture; an error leaves the last good one there."""
        try:
            self._run(checkpoint)
        except Exception:
            if self.step is not None:
                self._write(self.step)
                self.display.note(f"the last good picture is in {self.output.path}")
            raise
        assert self.step is not None, "a run has at least the step it starts at"
        for frames in self.frames:
            frames.end(self.step)
        self._write(self.step)
        if self.checkpoint is not None:
            images.write_bytes(self.output.checkpoint_path, self.checkpoint)

    def _run(self, checkpoint: bytes | None) -> None:
        with contextlib.closing(self.transfer.steps(checkpoint)) as steps:
            for step in steps:
                if self.step is None:
                    self._warn(step)
                self.step = step
                self.interruption.patient = True
                self.display.show(step)
                for frames in self.frames:
                    frames.take(step)
                if self.interruption.asked:
                    self.checkpoint = step.checkpoint()
                    break

    def _warn(self, step: Step) -> None:
        if self.recipe is not None:
            for departure in departures(self.recipe, now=self.transfer.recipe(step)):
                self.display.note(f"warning: {departure}")

    def _write(self, step: Step) -> None:
        self.output.write(self.transfer, step)


@contextlib.contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = "Choose fewer --levels, or limit the run with --max-memory"
        raise MemoryLimitError("the device has not enough memory for this picture", remedy) from error


# ── What is told at the end ──────────────────────────────────────────────────────────────────────────────────────────


def _report(arguments: Namespace, work: _Run, seconds: dict[str, float]) -> int:
    step, interrupted = work.step, work.checkpoint is not None
    assert step is not None
    if interrupted:
        print(_interrupted(arguments, work, step), file=sys.stderr)
    if arguments.json:
        print(json.dumps(_figures(arguments, work, step, seconds)))
    elif not (interrupted or arguments.quiet):
        size = f"{step.width} × {step.height}"
        print(f"{arguments.output}: {size}, {step.iteration} iterations, {step.seconds:.1f} s, loss {step.loss:.4g}")
    return INTERRUPTED if interrupted else 0


def _interrupted(arguments: Namespace, work: _Run, step: Step) -> str:
    height, width = work.transfer.size
    whole = (width, height) == (step.width, step.height)
    size = f"{step.width} × {step.height}" + ("" if whole else f", to become {width} × {height}")
    checkpoint = work.output.checkpoint_path
    again = arguments.argv if arguments.resume == checkpoint else [*arguments.argv, "--resume", str(checkpoint)]
    return (
        f"interrupted after {step.iteration} of {step.iterations} iterations: "
        f"the picture so far is in {work.output.path} ({size}), a checkpoint in {checkpoint}\n"
        f"to go on: {program()} {shlex.join(again)}"
    )


def _figures(arguments: Namespace, work: _Run, step: Step, seconds: dict[str, float]) -> dict[str, Any]:
    """What `--json` prints.

    `seconds` is the whole command, of which `preparation_seconds` pass before the first evaluation (imports, reading,
    targets); `optimisation_seconds` includes those of earlier runs where this one was resumed.
    """
    transfer, interrupted = work.transfer, work.checkpoint is not None
    return {
        "output": str(work.output.path),
        "width": step.width,
        "height": step.height,
        "levels": transfer.settings.levels,
        "iterations": step.iteration,
        "evaluations": step.evaluations,
        "loss": step.loss,
        "terms": [asdict(level) for level in step.levels],
        **seconds,
        "optimisation_seconds": step.seconds,
        "expected_seconds": work.expected_seconds,
        "peak_memory_bytes": devices.peak_memory_bytes(transfer.device),
        "expected_memory_bytes": transfer.plan.memory_bytes,
        "network": transfer.network.name,
        "network_sha256": transfer.network.sha256,
        "device": str(transfer.device),
        "device_name": devices.describe(transfer.device),
        "precision": _precision(transfer),
        "seed": transfer.settings.seed,
        "resumed": work.resumed,
        "interrupted": interrupted,
        "checkpoint": str(work.output.checkpoint_path) if interrupted else None,
    }
