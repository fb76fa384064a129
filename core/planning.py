"""What a run will need, before it starts: how its levels are computed, how much memory and how much time.

The plan depends on the settings, the sizes and the machine, never on what happens to be free at the moment: pieces of
another size sum in another order, and the same seed on the same machine should give the same picture.

All counts are bytes, all sizes (height, width). A *vector* is a float32 picture of the finest level, 12 bytes a pixel.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter

from core import devices, weights
from core.config import MAX_LEVEL, Settings
from core.errors import MemoryLimitError
from core.features import NAMES, block_of, layers_of, name_of_layer
from core.images import Size
from core.pyramid import choose_layers, level_size, style_size
from core.tiles import BlockTiling, Tiling

GIB = 2**30

_RUNTIME_BYTES = {"cpu": 0.81 * GIB, "mps": 0.81 * GIB, "cuda": 0.4 * GIB}
"""PyTorch itself, its libraries, and the compiled convolutions."""
_LEVEL_BYTES = {"cpu": 0.03 * GIB, "mps": 0.03 * GIB, "cuda": 0.0}
"""What every further level adds: convolutions are compiled for each size."""
_FREED_BYTES = {"cpu": 0.2 * GIB, "mps": 0.2 * GIB, "cuda": 0.0}
"""What the allocator keeps of bands that were freed; GPU memory is given back."""
_WEIGHT_COPIES = 5.5
"""The weights, flipped ones for the way back, and what the compiled convolutions make of both, for several sizes."""
_BAND_BYTES = {"cpu": 8 * 2**20, "mps": 256 * 2**20, "cuda": 1024 * 2**20}
"""Size of one activation of a band: on a CPU small enough for the caches, on a GPU large enough to fill it."""
_BAND_ROWS = 16
"""Least rows of a band for every convolution of its block. Each reads a row more on either side, and those rows are
computed twice: an eighth of the work at this height."""
_HELD_VECTORS = 9
"""While the network is evaluated: point, gradient, trial, its picture, the start in 16 bit, and what the allocator has
not given back of others (fitted to `benchmarks.memory`)."""
_GUIDED_VECTORS = 7 / 3
"""Besides, where regions are guided: the protected content, the share of the picture that is free, and the mixture."""
_PASSING_VECTORS = 3
"""Besides, when the optimiser remembers a step: the new gradient, the step and the change."""
_SHARE_OF_MACHINE = 0.6
"""Without a limit of the user's, a run plans to use this share of the device's memory at most."""
_SECOND_SHARE, _LATER_SHARE, _LAST_SHARE = 0.85, 0.7, 0.45
"""Of the default iterations, how many a stage takes until it has settled: the last of two, one between others, and the
last of more (fitted to `benchmarks.duration`)."""
_WHOLE = 1 << 30
_SPEEDS = TypeAdapter(dict[str, dict[int, Annotated[float, Field(gt=0, allow_inf_nan=False)]]])


@dataclass(frozen=True)
class Plan:
    """How a run is computed.

    Attributes:
        tilings: Of each level, from 0 up.
        history: Pairs that L-BFGS remembers.
        half_history: Whether it remembers them in 16 bit.
        memory_bytes: The peak to expect: of the process on a CPU, of the device on a GPU.
    """

    tilings: tuple[Tiling, ...]
    history: int
    half_history: bool
    memory_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a job would need; `seconds` is None until a first run on the device has been measured."""

    width: int
    height: int
    memory_bytes: int
    seconds: float | None
    largest_level: int | None


@dataclass(frozen=True)
class _Model:
    """What memory and time depend on: the channels of every convolution, block by block, bytes of one feature, and
    block and channels of every content and style layer.
    """

    blocks: tuple[tuple[int, ...], ...]
    item: int
    content: tuple[tuple[int, int], ...]
    style: tuple[tuple[int, int], ...]
    parameters: int

    def kept(self, block: int, size: Size) -> float:
        """What one kept block holds for its backward pass: its outputs, and the pooling's choices."""
        pixels = _pixels(size, block)
        channels = self.blocks[block]
        held = sum(channels)
        choices = 8 / 4 * channels[-1] if block + 1 < len(self.blocks) else 0
        return pixels * (held * self.item + choices)

    def banded(self, block: int, size: Size, rows: int) -> float:
        """What one band of a block that is not kept needs while it is computed and back-propagated."""
        share = min(1.0, (rows + 2 * len(self.blocks[block])) / max(size[0] >> block, 1))
        return 1.6 * self.kept(block, size) * share

    def inputs(self, size: Size) -> list[float]:
        """The inputs of the blocks."""
        channels = [3, *(counts[-1] for counts in self.blocks[:-1])]
        return [count * _pixels(size, block) * self.item for block, count in enumerate(channels)]

    def pooled(self, size: Size, tiling: Tiling) -> float:
        """The inputs of the blocks and the gradients with respect to them, at the block where most live at once.

        While a block is back-propagated, those are the inputs down to its own, the gradient that comes from the next
        block, and its own gradient, unless bands write it over the input.
        """
        inputs = self.inputs(size)
        own = [block == 0 or tiling[block].keep for block in range(len(inputs))]
        return max(sum(inputs[: block + 2]) + own[block] * inputs[block] for block in range(len(inputs)))

    def forward(self, size: Size, tiling: Tiling) -> float:
        """What going forward alone needs: a block's input, a band of it with all its features, and its output."""
        inputs = self.inputs(size)
        shares = [min(1.0, (how.rows + 2 * len(self.blocks[n])) / max(size[0] >> n, 1)) for n, how in enumerate(tiling)]
        bands = [sum(counts) * _pixels(size, n) * self.item * shares[n] for n, counts in enumerate(self.blocks)]
        return max(sum(inputs[block : block + 2]) + band for block, band in enumerate(bands))

    def targets(self, size: Size) -> float:
        """The content features."""
        return sum(channels * _pixels(size, block) * self.item for block, channels in self.content)

    def guides(self, size: Size, regions: int) -> float:
        """The maps of where every style paints, at the layers, and of where the content counts more."""
        if not regions:
            return 0.0
        style = sum(4 * regions * _pixels(size, block) for block, _ in self.style)
        return style + sum(4 * _pixels(size, block) for block, _ in self.content)

    def guided(self, block: int, size: Size, rows: int) -> float:
        """What guided sums of a block's style layers need besides: the weighted features, and their gradients."""
        share = min(1.0, rows / max(size[0] >> block, 1))
        channels = max((count for at, count in self.style if at == block), default=0)
        return 3 * channels * _pixels(size, block) * self.item * share

    def operations(self, size: Size, tiling: Tiling) -> float:
        """Multiplications and additions of one evaluation of a level, forward and backward."""
        total = 0.0
        before = 3
        for block, channels in enumerate(self.blocks):
            pixels = _pixels(size, block)
            passes = 2 if tiling[min(block, len(tiling) - 1)].keep else 3
            for count in channels:
                total += passes * 2 * 9 * before * count * pixels
                before = count
        return total + sum(8 * channels**2 * _pixels(size, block) for block, channels in self.style)


@dataclass(frozen=True)
class _Case:
    """A run to be planned: sizes of its pictures, and what its memory depends on."""

    settings: Settings
    content: Size
    styles: tuple[Size, ...]
    device: torch.device
    model: _Model
    regions: int = 0

    @property
    def levels(self) -> range:
        """The levels that the loss is taken at."""
        return range(0 if self.settings.all_levels else self.settings.levels, self.settings.levels + 1)

    @property
    def limit(self) -> float:
        """What the run may use."""
        if self.settings.max_memory is not None:
            return self.settings.max_memory * GIB
        return _SHARE_OF_MACHINE * devices.total_memory_bytes(self.device)

    def size(self, level: int) -> Size:
        return level_size(self.content, level)

    def fixed_bytes(self, history: int, half: bool) -> float:
        """What is held from the first evaluation to the last, whatever the tiling."""
        vector = 12 * _pixels(self.size(self.settings.levels))
        optimizer = history * (1 if half else 2) * vector if self.settings.optimizer.name == "lbfgs" else 2 * vector
        # Where colours are changed, what the network sees lies beside what was given.
        copies = 1 if self.settings.colour in ("style", "palette") else 2
        inputs = copies * 12 * sum(_pixels(size) for size in (self.content, *self.styles))
        sizes = [self.size(level) for level in self.levels]
        targets = sum(self.model.targets(size) + self.model.guides(size, self.regions) for size in sizes)
        parameters = self.model.parameters * _WEIGHT_COPIES * self.model.item
        kind = self.device.type
        runtime = _RUNTIME_BYTES.get(kind, GIB) + (len(self.levels) - 1) * _LEVEL_BYTES.get(kind, 0.0)
        held = _HELD_VECTORS + (_GUIDED_VECTORS if self.regions else 0)
        return runtime + parameters + inputs + held * vector + optimizer + targets

    def level_bytes(self, level: int, tiling: Tiling) -> float:
        """What evaluating one level needs besides."""
        size = self.size(level)
        blocks = [(block, tiling[block]) for block in range(len(self.model.blocks))]
        kept = sum(self.model.kept(block, size) for block, how in blocks if how.keep)
        banded = max((self.model.banded(block, size, how.rows) for block, how in blocks if not how.keep), default=0.0)
        # While a kept block is back-propagated, the gradients of its largest features live beside it.
        backward = max((self.model.kept(block, size) / 2 for block, how in blocks if how.keep), default=0.0)
        freed = _FREED_BYTES.get(self.device.type, 0.0) if banded else 0.0
        guided = max(self.model.guided(block, size, how.rows) for block, how in blocks) if self.regions else 0.0
        return self.model.pooled(size, tiling) + kept + max(banded + freed, backward) + guided

    def banded(self, level: int) -> Tiling:
        """Every block in bands of about `_BAND_BYTES`, none kept: the least memory."""
        band = _BAND_BYTES.get(self.device.type, _BAND_BYTES["cpu"])
        width = self.size(level)[1]
        tiling = []
        for block, channels in enumerate(self.model.blocks):
            rows = int(band / (max(channels) * max(1, width >> block) * self.model.item))
            tiling.append(BlockTiling(max(_BAND_ROWS * len(channels), rows // 2 * 2), keep=False))
        return tuple(tiling)

    def tiling(self, level: int, available: float) -> Tiling | None:
        """The tiling that keeps as much as fits, the deepest blocks first; None where none fits."""
        chosen = self.banded(level)
        if self.level_bytes(level, chosen) > available:
            return None
        for block in reversed(range(len(chosen))):
            kept = (*chosen[:block], BlockTiling(_WHOLE, keep=True), *chosen[block + 1 :])
            if self.level_bytes(level, kept) <= available:
                chosen = kept
        return chosen

    def plan(self) -> Plan | None:
        """The fastest plan inside the limit: a long history before a short one, as many blocks kept as fit."""
        for history, half in self._histories():
            fixed = self.fixed_bytes(history, half)
            tilings = [self.tiling(level, self.limit - fixed) for level in range(self.settings.levels + 1)]
            found = tuple(tiling for tiling in tilings if tiling is not None)
            if len(found) < len(tilings):
                continue
            # A style may be larger than the picture, and is taken in the same bands.
            for tried in (found, tuple(self.banded(level) for level in range(len(found)))):
                chosen = self._plan(tried, history, half)
                if chosen.memory_bytes <= self.limit:
                    return chosen
        return None

    def least(self) -> Plan:
        """The plan that needs the least memory, whether or not it fits."""
        history, half = self._histories()[-1]
        return self._plan(tuple(self.banded(level) for level in range(self.settings.levels + 1)), history, half)

    def _histories(self) -> tuple[tuple[int, bool], ...]:
        asked = self.settings.optimizer.history
        return ((asked, False), *((min(asked, fewer), True) for fewer in (asked, 10, 7, 5, 3)))

    def _plan(self, tilings: tuple[Tiling, ...], history: int, half: bool) -> Plan:
        vector = 12 * _pixels(self.size(self.settings.levels))
        evaluations = (self.level_bytes(level, tilings[level]) for level in self.levels)
        styles = (self._statistics_bytes(level, tilings[level]) for level in self.levels)
        working = max(_PASSING_VECTORS * vector, *styles, *evaluations)
        return Plan(tilings, history, half, round(self.fixed_bytes(history, half) + working))

    def _statistics_bytes(self, level: int, tiling: Tiling) -> float:
        """What the largest style takes while its statistics at a level are computed, before the first evaluation."""
        sizes = [style_size(size, level, self.settings.style(n).scale) for n, size in enumerate(self.styles)]
        return max((self.model.forward(size, tiling) + 12 * _pixels(size) for size in sizes), default=0.0)

    def largest_level(self) -> int | None:
        """The finest level that fits in the limit; None where not even level 0 does."""
        for level in range(MAX_LEVEL, -1, -1):
            if replace(self, settings=self.settings.model_copy(update={"levels": level})).plan() is not None:
                return level
        return None

    def operations(self, chosen: Plan) -> float:
        """Arithmetic of a whole run: the evaluations to expect of every stage, each of all its levels."""
        per_level = {level: self.model.operations(self.size(level), chosen.tilings[level]) for level in self.levels}
        iterations = _expected_iterations(self.settings)
        finest = range(self.settings.levels + 1 - len(iterations), self.settings.levels + 1)
        per_stage = [sum(cost for level, cost in per_level.items() if level <= last) for last in finest]
        return sum(count * cost for count, cost in zip(iterations, per_stage, strict=True))


def _expected_iterations(settings: Settings) -> list[float]:
    """Of every stage: those that were asked for or, where a stage ends when its loss has settled, as a rule fewer.

    A picture of level 0 takes all of them; what comes after it begins with a picture that is nearly there.
    """
    asked = settings.stage_iterations()
    shares = [1.0] * len(asked)
    if settings.optimizer.tolerance and len(asked) > 1:
        shares[1:] = [_LATER_SHARE] * (len(asked) - 1)
        shares[-1] = _SECOND_SHARE if len(asked) == 2 else _LAST_SHARE
    return [share * count for share, count in zip(shares, asked, strict=True)]


def _case(
    settings: Settings,
    content: Size,
    styles: Sequence[Size],
    device: torch.device,
    network: weights.Weights,
    regions: int = 0,
) -> _Case:
    return _Case(settings, content, tuple(styles), device, _model(settings, device, network), regions)


def plan(
    settings: Settings,
    content: Size,
    styles: Sequence[Size],
    device: torch.device,
    network: weights.Weights,
    regions: int = 0,
) -> Plan:
    """Chooses how to compute a run within the settings' `max_memory`, or else a share of the machine's.

    Args:
        settings: Of the run.
        content: Height and width of the content, as it was given.
        styles: Likewise of the styles.
        device: Where it is computed.
        network: The weights.
        regions: How many regions are guided by masks: one for each style, where there is any mask at all.

    Raises:
        MemoryLimitError: Even the least that does is more; the remedy names the largest level that fits.
    """
    case = _case(settings, content, styles, device, network, regions)
    found = case.plan()
    if found is not None:
        return found
    needed, fits = case.least().memory_bytes, case.largest_level()
    remedy = "Use a smaller network" if fits is None else f"Use --levels {fits}, the largest that fits"
    if settings.max_memory is not None:
        remedy += f", or allow {_gib(needed)}"
    allowed = "you allow" if settings.max_memory is not None else "a run may use on this machine"
    raise MemoryLimitError(
        f"level {settings.levels} needs at least {_gib(needed)}, and {allowed} {_gib(case.limit)}", remedy
    )


def estimate(
    settings: Settings,
    content: Size,
    styles: Sequence[Size],
    device: str = "auto",
    regions: int = 0,
    weights_file: Path | None = None,
) -> Estimate:
    """What a job of these sizes would need on a device, with weights from a file or from their place; see `plan`.

    `memory_bytes` is what its plan needs or, where none fits, the least that would do.

    Raises:
        UserError: The network's weights are missing, or the device doesn't exist.
    """
    place = devices.resolve(device)
    network = weights.load(weights.choose(settings.network), weights_file)
    case = _case(settings, content, styles, place, network, regions)
    chosen = case.plan() or case.least()
    height, width = case.size(settings.levels)
    speed = measured_speed(network.network, settings, place)
    return Estimate(
        width=width,
        height=height,
        memory_bytes=chosen.memory_bytes,
        seconds=None if speed is None else case.operations(chosen) / speed,
        largest_level=case.largest_level(),
    )


def operations(
    settings: Settings, content: Size, device: torch.device, network: weights.Weights, chosen: Plan
) -> float:
    """Arithmetic operations of a whole run, as counted for its estimate of time."""
    return _case(settings, content, (), device, network).operations(chosen)


def _model(settings: Settings, device: torch.device, network: weights.Weights) -> _Model:
    layers = choose_layers(settings.loss, layers_of(network))
    channels = {
        name: int(network.tensors[f"features.{index}.weight"].shape[0])
        for name, index in zip(NAMES, weights.conv_indices, strict=True)
        if f"features.{index}.weight" in network.tensors
    }
    deepest = max(NAMES.index(name_of_layer(layer)) for layer in (*layers.style, *layers.content))
    blocks: dict[int, list[int]] = {}
    for name in NAMES[: deepest + 1]:
        blocks.setdefault(int(name[0]), []).append(channels[name])
    return _Model(
        blocks=tuple(tuple(counts) for counts in blocks.values()),
        item=devices.dtype(settings.precision, device).itemsize,
        content=tuple((block_of(layer), channels[name_of_layer(layer)]) for layer in layers.content),
        style=tuple((block_of(layer), channels[name_of_layer(layer)]) for layer in layers.style),
        parameters=sum(tensor.numel() for tensor in network.tensors.values()),
    )


def _pixels(size: Size, block: int = 0) -> int:
    """Positions of a block (from 0) for a picture of `size`."""
    return (size[0] >> block) * (size[1] >> block)


def _gib(count: float) -> str:
    return f"{math.ceil(count / GIB * 10) / 10:.1f} GiB"


def _speeds_file() -> Path:
    return weights.cache_dir() / "speeds.json"


def _speed_key(network: str, settings: Settings, device: torch.device) -> str:
    return f"{devices.describe(device)}, {devices.dtype(settings.precision, device)}, {network}"


def measured_speed(network: str, settings: Settings, device: torch.device) -> float | None:
    """Operations a second on this device with this network, as measured at this L or the nearest that was; else None.

    Small pictures are slower for their size, and stop sooner or later than large ones: L is what tells most.
    """
    known = _speeds().get(_speed_key(network, settings, device), {})
    return known[min(known, key=lambda level: (abs(level - settings.levels), -level))] if known else None


def remember_speed(network: str, settings: Settings, device: torch.device, operations: float, seconds: float) -> None:
    """Keeps the speed of a run for later estimates; a cache that can't be written is no reason to fail."""
    path, key = _speeds_file(), _speed_key(network, settings, device)
    with contextlib.suppress(OSError, Timeout):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=1):
            known = _speeds()
            known[key] = {**known.get(key, {}), settings.levels: operations / seconds}
            path.write_text(json.dumps(known, indent=1))


def _speeds() -> dict[str, dict[int, float]]:
    """What was measured, by `_speed_key` and L; nothing where that can't be read."""
    with contextlib.suppress(OSError, ValueError):
        return _SPEEDS.validate_json(_speeds_file().read_bytes())
    return {}
