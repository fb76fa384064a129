"""What one evaluation of loss and gradient takes, against what its arithmetic must take on the machine.

The floor is the number of multiplications and additions that the convolutions and the Gram matrices need, forward and
back to the picture, at the rate that a plain matrix product reaches in the same precision in the same minute.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks import race
from core import weights
from core.features import CONVOLUTIONS_PER_BLOCK
from core.images import Size
from core.pyramid import level_size
from core.transfer import Transfer

ROUNDS = 7
_CHANNELS = (64, 128, 256, 512, 512)
_SIDES = (2048, 4096)


def completed(file: Path | None, network: str, folder: Path) -> Path | None:
    """The whole of VGG-19: weights that end early go on with random ones (He et al. 2015), which compute as fast."""
    loaded = weights.load(network, file)
    tensors = dict(loaded.tensors)
    generator = torch.Generator().manual_seed(0)
    before = 3
    names = [block for block, count in enumerate(CONVOLUTIONS_PER_BLOCK) for _ in range(count)]
    for index, block in zip(weights.conv_indices, names, strict=True):
        after = _CHANNELS[block]
        if f"features.{index}.weight" not in tensors:
            scale = (2 / (9 * before)) ** 0.5
            tensors[f"features.{index}.weight"] = scale * torch.randn(after, before, 3, 3, generator=generator)
            tensors[f"features.{index}.bias"] = torch.zeros(after)
        before = after
    if len(tensors) == len(loaded.tensors):
        return file
    path = folder / "vgg19-completed.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, path)
    return path


def arithmetic(transfer: Transfer, content: Size) -> float:
    """Multiplications and additions of one evaluation, all levels, each product computed once."""
    levels = range(transfer.settings.levels + 1)
    return sum(_of_level(transfer, level_size(content, level)) for level in levels)


def _of_level(transfer: Transfer, size: Size) -> float:
    pyramid = transfer.pyramid
    total, before = 0.0, 3
    for number, block in enumerate(transfer.network.blocks((*pyramid.style_layers, *pyramid.content_layers))):
        pixels = (size[0] >> number) * (size[1] >> number)
        for convolution in block:
            total += 2 * 2 * 9 * before * convolution.channels * pixels
            before = convolution.channels
            if f"relu{convolution.name}" in pyramid.style_layers:
                total += 2 * 2 * before**2 * pixels
    return total


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a square matrix product, of the size that does best."""
    return max(_rate(side, dtype, device) for side in _SIDES)


def _rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    left @ right
    return 2 * side**3 / min(timed(lambda: left @ right, device) for _ in range(3))


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, to its end on the device."""
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Evaluation:
    """Medians over rounds in which all took turns, and the spread: the middle half of the rounds."""

    width: int
    height: int
    levels: int
    network: str
    precision: str
    operations: float
    rate: float
    seconds: Mapping[str, float]
    middle: Mapping[str, tuple[float, float]]

    @property
    def floor(self) -> float:
        """Seconds that the arithmetic takes at the matrix product's rate."""
        return self.operations / self.rate

    @property
    def over_floor(self) -> float:
        """The product's time in floors."""
        return self.seconds["product"] / self.floor


def evaluation(setting: race.Setting, *, with_textbook: bool = True) -> Evaluation:
    """Times the product's evaluation and, where wanted, the textbook's, with the matrix product in between."""
    product = race.Product(setting)
    transfer = product.transfer
    picture = product.begin().to(transfer.device)
    calls: dict[str, Callable[[], Any]] = {"product": lambda: transfer.pyramid.evaluate(picture)}
    if with_textbook:
        loss = race.textbook_loss(setting, transfer)
        leaf = picture.clone().requires_grad_()
        calls["textbook"] = lambda: torch.autograd.grad(loss(leaf), leaf)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rates = []
    for _ in range(1 + ROUNDS):
        rates.append(matrix_rate(transfer.network.dtype, transfer.device))
        for name, call in calls.items():
            seconds[name].append(timed(call, transfer.device))
    content = (setting.content.shape[2], setting.content.shape[3])
    return Evaluation(
        width=transfer.size[1],
        height=transfer.size[0],
        levels=setting.settings.levels,
        network=transfer.network.name,
        precision=str(transfer.network.dtype).removeprefix("torch."),
        operations=arithmetic(transfer, content),
        rate=statistics.median(rates[1:]),
        seconds={name: statistics.median(found[1:]) for name, found in seconds.items()},
        middle={name: _middle(found[1:]) for name, found in seconds.items()},
    )


def _middle(values: list[float]) -> tuple[float, float]:
    lower, _, upper = statistics.quantiles(values, n=4)
    return lower, upper


@dataclass(frozen=True)
class FirstSight:
    """How soon somebody sees something at level 0 with the compact network."""

    setup_seconds: float
    """Weights and targets."""
    again_seconds: float
    """The same with the same style once more."""
    styled_seconds: float
    """From the optimisation's start to the first picture whose style term is under a tenth of the start's."""
    finished_seconds: float
    """From there to the end of the default number of iterations."""
    loss: tuple[float, float, float]
    """Of the start, the styled and the finished picture, by the network itself."""


def first_sight(setting: race.Setting) -> FirstSight:
    """Times a run at level 0 with the defaults."""
    product, again = race.Product(setting), race.Product(setting)
    product.begin()
    transfer, began = product.transfer, time.perf_counter()
    found: list[tuple[float, float, float]] = []
    for step in transfer.steps():
        step.picture()
        found.append((time.perf_counter() - began, step.levels[0].style, step.loss))
    styled = next(entry for entry in found if entry[1] < 0.1 * found[0][1])
    return FirstSight(
        product.run.setup_seconds,
        again.run.setup_seconds,
        styled[0],
        found[-1][0],
        (found[0][2], styled[2], found[-1][2]),
    )
