"""Who is sooner at a good picture: the textbook or the product, from the same noise, by the same loss.

Both minimise the same function, with the same layers of the same network. They take turns, evaluation by evaluation, so
that whatever else the machine does slows both; each one's clock runs only in its turn, and includes its targets. The
pictures are judged as they would be written (8 bit, read again), by the textbook's own loss in float32.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import textbook
from core import images, weights
from core.config import Settings, load
from core.features import CONVENTIONS
from core.pyramid import level_size
from core.transfer import Step, Transfer

STRIDE = 5
"""Every so many pictures are judged; then those around the one that is looked for."""


@dataclass(frozen=True)
class Setting:
    """What both are given: pictures [1, 3, H, W], the network's file, and the settings of the loss."""

    content: Tensor
    style: Tensor
    settings: Settings
    weights_file: Path | None
    device: str


@dataclass
class Run:
    """One runner's way: seconds on its own clock, the loss it knew, and the picture, after every evaluation."""

    setup_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    written: dict[int, float] = field(default_factory=dict)
    """The judge's loss of the written pictures, for those that were judged."""

    def record(self, seconds: float, loss: float, picture: Tensor) -> None:
        """Notes one evaluation."""
        self.seconds.append(seconds)
        self.losses.append(loss)
        self.pictures.append(images.encode(picture.cpu().clamp(0, 1), "png"))


def settings(network: str, levels: int, **changes: Any) -> Settings:
    """The product's defaults, but for the padding: the textbook's network pads with zeros, as the paper's does."""
    return load(changes={"network": network, "levels": levels, "padding": "zeros", **changes})


def textbook_loss(setting: Setting, transfer: Transfer) -> textbook.Loss:
    """The textbook's loss of what the transfer minimises."""
    chosen = setting.settings
    loaded = weights.load(weights.choose(chosen.network), setting.weights_file)
    convention = CONVENTIONS[loaded.network]
    vgg = textbook.Vgg(
        loaded.tensors, convention.mean, convention.deviation, convention.scale, padding=chosen.padding
    ).to(transfer.device)
    levels = range(chosen.levels + 1)
    contents = [_at_level(setting.content, level).to(transfer.device) for level in levels]
    styles = [_without_rim(_at_level(setting.style, level)).to(transfer.device) for level in levels]
    layers = transfer.pyramid.content_layers, transfer.pyramid.style_layers
    return textbook.Loss(vgg, contents, styles, *layers, content_weight=chosen.loss.content_weight)


def _at_level(picture: Tensor, level: int) -> Tensor:
    return textbook.resize(picture, level_size((picture.shape[2], picture.shape[3]), level)).clamp(0, 1)


def _without_rim(style: Tensor) -> Tensor:
    """As the product has it: scans have frames, which are no part of a style."""
    rim = min(style.shape[2:]) // 64
    return style[:, :, rim:-rim, rim:-rim]


class Product:
    """The product's run, one evaluation at a time, through one network."""

    def __init__(self, setting: Setting) -> None:
        began = time.perf_counter()
        self.transfer = Transfer(
            setting.content, [setting.style], setting.settings, weights_file=setting.weights_file, device=setting.device
        )
        _ = self.transfer.pyramid
        self.run = Run(setup_seconds=time.perf_counter() - began)
        self._steps: Iterator[Step] = iter(())
        self._spent = self.run.setup_seconds

    def begin(self) -> Tensor:
        """Makes the starting picture, which both runners begin with."""
        start = self.transfer.starting_picture
        self._steps = self.transfer.steps()
        return start

    def advance(self) -> bool:
        """One evaluation, on the clock; whether there was one left."""
        began = time.perf_counter()
        step = next(self._steps, None)
        self._spent += time.perf_counter() - began
        if step is None:
            return False
        full = images.resize(step.picture(), self.transfer.size)  # an early stage's picture, as the judge can read it
        self.run.record(self._spent, step.loss, full)
        return True


def textbook_run(setting: Setting, transfer: Transfer, evaluations: int, others: Sequence[Product]) -> Run:
    """Runs the textbook; after each of its evaluations, off its clock, everybody else takes a turn."""
    began = time.perf_counter()
    loss = textbook_loss(setting, transfer)
    start = transfer.starting_picture.to(transfer.device)
    run = Run(setup_seconds=time.perf_counter() - began)
    clock = [time.perf_counter(), run.setup_seconds]

    def after_evaluation(value: float, picture: Tensor) -> None:
        clock[1] += time.perf_counter() - clock[0]
        run.record(clock[1], value, picture)
        for other in others:
            other.advance()
        clock[0] = time.perf_counter()

    textbook.optimise(loss, start, evaluations, after_evaluation)
    return run


class Judge:
    """The textbook's loss of written pictures."""

    def __init__(self, loss: textbook.Loss, device: torch.device) -> None:
        self._loss = loss
        self._device = device

    def loss(self, run: Run, index: int) -> float:
        """Of the picture after evaluation `index`, from 0."""
        if index not in run.written:
            picture = images.read(run.pictures[index]).pixels.to(self._device)
            with torch.no_grad():
                run.written[index] = float(self._loss(picture))
        return run.written[index]

    def best(self, run: Run) -> int:
        """The evaluation after which the written picture was best."""
        last = len(run.pictures)
        coarse = min(range(0, last, STRIDE), key=lambda index: self.loss(run, index))
        around = range(max(0, coarse - STRIDE + 1), min(last, coarse + STRIDE))
        return min(around, key=lambda index: self.loss(run, index))

    def first_below(self, run: Run, loss: float) -> int | None:
        """The first evaluation after which the written picture was as good as that; None if none was."""
        for index in range(0, len(run.pictures), STRIDE):
            if self.loss(run, index) <= loss:
                earlier = range(max(0, index - STRIDE + 1), index + 1)
                return next(found for found in earlier if self.loss(run, found) <= loss)
        last = len(run.pictures) - 1
        return last if self.loss(run, last) <= loss else None


@dataclass(frozen=True)
class Race:
    """One pair of pictures: the textbook's two marks, and when each product reached them."""

    pair: tuple[str, str]
    textbook: dict[str, float]
    products: dict[str, dict[str, float | None]]

    def ratio(self, product: str, mark: str) -> float | None:
        """How many times sooner a product was at the mark "written" or "float"; None where it never was."""
        seconds = self.products[product][mark]
        return None if seconds is None else self.textbook[mark] / seconds


def race(pair: tuple[str, str], setting: Setting, compact: Setting, evaluations: int) -> Race:
    """Runs all three in turns. The products may take as many evaluations as the textbook."""
    products = {"VGG-19": Product(setting), "compact": Product(compact)}
    for product in products.values():
        product.begin()
    transfer = products["VGG-19"].transfer
    run = textbook_run(setting, transfer, evaluations, list(products.values()))
    judge = Judge(textbook_loss(setting, transfer), transfer.device)
    best, lowest = judge.best(run), min(run.losses)
    marks = {"written": judge.loss(run, best), "float": lowest}
    return Race(
        pair,
        {
            "written": run.seconds[best],
            "float": run.seconds[-1],
            "written_loss": marks["written"],
            "float_loss": lowest,
            "best_evaluation": best + 1,
            "setup": run.setup_seconds,
            "seconds_per_evaluation": (run.seconds[-1] - run.setup_seconds) / len(run.seconds),
        },
        {name: _reached(judge, product.run, marks) for name, product in products.items()},
    )


def _reached(judge: Judge, run: Run, marks: dict[str, float]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for mark, loss in marks.items():
        index = judge.first_below(run, loss)
        found[mark] = None if index is None else run.seconds[index]
        found[f"{mark}_evaluation"] = None if index is None else index + 1
    best = judge.best(run)
    return found | {"best_loss": judge.loss(run, best), "best_seconds": run.seconds[best], "setup": run.setup_seconds}
