"""The optimisation of one picture, as a plain generator of steps.

Coarse first: stage k optimises a picture of level k's size under the summed loss of the levels 0…k, and the next stage
begins with that picture, grown, plus the fine detail of the starting picture that the smaller size could not hold. The
last stage minimises the whole objective, so the schedule changes the way there, not what is asked for.
"""

import hashlib
import math
import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import __version__, colours, devices, guides, images, noise, optimizers, planning, weights
from core import checkpoint as checkpoints
from core.checkpoint import Checkpoint
from core.colours import Colours
from core.config import Precision, Settings
from core.errors import DivergenceError, MemoryLimitError, SettingsError
from core.features import Network
from core.guides import Guidance, Protected
from core.images import Size, resize
from core.noise import Mixture
from core.optimizers import Iterate
from core.parametrisation import Parametrisation, packed, parametrise
from core.pyramid import LevelLoss, Pyramid, choose_layers, level_size
from core.shards import Shards
from core.steering import Steer, Steering, same_targets

_PATIENCE = 10
"""Iterations over which the tolerance is measured."""


@dataclass(frozen=True, eq=False)
class Step:
    """Where the optimisation stands after an evaluation: at a stage's start, a step taken, or still at the last one.

    Attributes:
        stage: From 0, of `stages`.
        iteration: Over all stages; `iterations` is how many there will be at most.
        evaluations: Of loss and gradient, over all stages.
        loss: The weighted sum that this stage minimises.
        levels: Its terms, level by level, unweighted.
        seconds: Spent so far, earlier runs of a resumed optimisation included.
        height: Of the current picture, in pixels; earlier stages are smaller.
        width: Likewise.
        picture: Computes the current picture when called: float32 [1, 3, H, W] in [0, 1] on the CPU.
        checkpoint: Gathers, when called, everything that `Transfer.steps` needs to go on from here; to be called
            before the next step is asked for.
    """

    stage: int
    stages: int
    iteration: int
    iterations: int
    evaluations: int
    loss: float
    levels: tuple[LevelLoss, ...]
    seconds: float
    height: int
    width: int
    picture: Callable[[], Tensor] = field(repr=False)
    checkpoint: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True)
class _Spent:
    """What the stages took so far."""

    iterations: int = 0
    evaluations: int = 0
    seconds: float = 0.0

    def plus(self, iterations: int, evaluations: int, seconds: float) -> "_Spent":
        return _Spent(self.iterations + iterations, self.evaluations + evaluations, self.seconds + seconds)


def network_of(settings: Settings, loaded: weights.Weights, device: torch.device) -> Network:
    """The network of a run, in the settings' precision where the device has it."""
    dtype = devices.dtype(settings.precision, device)
    return Network(loaded, pooling=settings.pooling, padding=settings.padding, device=device, dtype=dtype)


class Transfer:
    """One run of style transfer: pictures and settings in, steps out.

    Args:
        content: [1, 3, H, W], sRGB in [0, 1], at its original size.
        styles: One or more pictures like it.
        settings: Everything else that determines the result.
        device: auto, cpu, cuda, cuda:1, mps.
        weights_file: Weights that the user gave, else the network's own place is searched.
        start: The starting picture of `start = "image"`, any size.
        alpha: [1, 1, H, W], transparency of the content, which comes back on the result.
        masks: [1, 1, H, W] in [0, 1] at any size, stretched over the content: where each style paints, in their order;
            None, and a style beyond the list, is everywhere.
        protect: Likewise, where the content is kept.
        steering: Changes of weights that an earlier run recorded, to be made again.
        shards: Which levels are computed by other workers, whose networks are `network_of` the same settings.

    Raises:
        UserError: Weights are missing, a layer isn't there, the device doesn't exist, settings contradict each other, a
            mask is empty.
    """

    def __init__(
        self,
        content: Tensor,
        styles: Sequence[Tensor],
        settings: Settings,
        *,
        device: str = "auto",
        weights_file: Path | None = None,
        start: Tensor | None = None,
        alpha: Tensor | None = None,
        masks: Sequence[Tensor | None] = (),
        protect: Tensor | None = None,
        steering: Sequence[Steer] = (),
        shards: Shards | None = None,
    ) -> None:
        if not styles:
            raise SettingsError("a style transfer needs at least one style")
        if (start is None) == (settings.start == "image"):
            raise SettingsError('a starting picture and start = "image" go together', "Give both or neither")
        self.settings = settings
        self.device = devices.resolve(device)
        self.content = content
        self.styles = tuple(styles)
        self.alpha = alpha
        self.guidance = guides.check(_guidance(len(styles), masks, protect))
        self._steering = Steering(settings, steering)
        self._given_start = start
        self._weights_file = weights_file
        self._shards = shards
        loaded = weights.load(weights.choose(settings.network), weights_file)
        self.plan = self._planned(settings, loaded)
        size = content.shape[2], content.shape[3]
        self._operations = planning.operations(settings, size, self.device, loaded, self.plan)
        self.network = network_of(settings, loaded, self.device)
        self._precision: Precision = settings.precision
        self._seconds = 0.0  # spent on steps, without what is done with them

    def _planned(self, settings: Settings, loaded: weights.Weights) -> planning.Plan:
        content = self.content.shape[2], self.content.shape[3]
        styles = [(style.shape[2], style.shape[3]) for style in self.styles]
        regions = 0 if self.guidance.is_plain else len(styles)
        return planning.plan(settings, content, styles, self.device, loaded, regions)

    def varied(self, settings: Settings) -> "Transfer":
        """A run of the same pictures under other settings; what the difference leaves as it is, both share.

        Raises:
            UserError: As for a run of its own.
        """
        other = Transfer(
            self.content,
            self.styles,
            settings,
            device=str(self.device),
            weights_file=self._weights_file,
            start=self._given_start,
            alpha=self.alpha,
            masks=self.guidance.masks,
            protect=self.guidance.protect,
            shards=self._shards,
        )
        if settings.colour == self.settings.colour:
            other._colours = self._colours
        as_planned = self._precision == self.settings.precision and other.plan.tilings == self.plan.tilings
        if as_planned and same_targets(settings, self.settings):
            other.network = self.network
            other.pyramid = self.pyramid.weighted(settings)
        return other

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about this run."""
        return choose_layers(self.settings.loss, self.network.layers).notices

    @property
    def size(self) -> Size:
        """Height and width of the result."""
        return self._size_at(self.settings.levels)

    def _size_at(self, level: int) -> Size:
        return level_size((self.content.shape[2], self.content.shape[3]), level)

    @cached_property
    def pyramid(self) -> Pyramid:
        """The objective; its targets are computed on first use."""
        content = self._colours.content.to(self.device)
        styles = [style.to(self.device) for style in self._colours.styles]
        return Pyramid(
            self.network, self.settings, content, styles, self.plan.tilings, self.guidance, shards=self._shards
        )

    @cached_property
    def _colours(self) -> Colours:
        return colours.prepare(self.settings.colour, self.content, self.styles)

    @cached_property
    def starting_picture(self) -> Tensor:
        """The starting picture at the size of the result: [1, 3, H, W] in [0, 1], on the CPU."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        seen, settings = self._colours, self.settings
        return _starting_picture(settings, seen.content, self._noise_source, self._given_start, self.size, generator)

    @property
    def _noise_source(self) -> Tensor | Mixture:
        """Whose colours the noise has, and where."""
        styles = self._colours.styles
        if len(styles) == 1 and self.guidance.is_plain:
            return styles[0]
        return Mixture(styles, self.guidance.shares(self.size, self._style_weights(self.settings)))

    def _style_weights(self, settings: Settings) -> list[float]:
        return [settings.style(number).weight for number in range(len(self.styles))]

    def finish(self, picture: Tensor) -> Tensor:
        """The picture as it is shown and written, of one [1, 3, H, W] that is optimised; on the CPU, in [0, 1]."""
        finished = self._colours.finish(picture, self._style_weights(self._steering.settings))
        if self.guidance.protect is None:
            return finished
        size = (picture.shape[2], picture.shape[3])
        return torch.lerp(finished, resize(self.content, size).clamp(0, 1), self.guidance.kept(size))

    @property
    def expected_seconds(self) -> float | None:
        """How long the steps should take; None before the first run on the device has been measured."""
        speed = planning.measured_speed(self.network.name, self.settings, self.device)
        return None if speed is None else self._operations / speed

    @property
    def _stage_levels(self) -> tuple[int, ...]:
        """The finest level of each stage."""
        levels = self.settings.levels
        coarse_first = self.settings.all_levels and self.settings.optimizer.schedule == "coarse-first"
        return tuple(range(levels + 1)) if coarse_first else (levels,)

    def steer(self, changes: Mapping[str, Any]) -> None:
        """Gives the run new weights, from the next evaluation on; may be called from any thread.

        Args:
            changes: A nested mapping, as for `Settings.changed`, of weights of the loss and of styles.

        Raises:
            SettingsError: A key or a value is not allowed, or is one that can't change while a run goes on.
        """
        self._steering.ask(changes)

    @property
    def steered(self) -> tuple[Steer, ...]:
        """The changes of weights that took effect so far."""
        return self._steering.made

    def steps(self, checkpoint: bytes | None = None) -> Generator[Step, None, None]:
        """Runs the optimisation; each step is yielded before the next evaluation begins.

        Args:
            checkpoint: From `Step.checkpoint` of a run of the same pictures and settings; the first step is then the
                one that it was taken at.

        Raises:
            CheckpointError: The checkpoint is damaged or of another run.
            DivergenceError: The loss is not finite; the steps yielded before are still good.
        """
        found = checkpoints.decode(checkpoint, self._fingerprint) if checkpoint is not None else None
        resumed = checkpoint is not None
        del checkpoint  # a large picture's is large
        self._steering.begin(() if found is None else found.steering)
        self._take_weights()
        before, picture = _Spent(), None
        for number in range(len(self._stage_levels)):
            if found is not None and number < found.stage:
                continue
            self._compute_in(found.precision if found is not None else self.settings.precision)
            if found is not None:
                stage = _Stage(self, number, found.start.to(self.device), _Spent(*found.before), found)
                found = None
            else:
                stage = _Stage(self, number, packed(self._start_of(number, picture)), before)
            yield from stage.steps()
            before, picture = stage.spent, stage.picture
        if not resumed and self._precision == self.settings.precision:
            self._remember_speed()

    def _remember_speed(self) -> None:
        """Lets later runs foretell their time by this one's, which went from start to end."""
        planning.remember_speed(self.network.name, self.settings, self.device, self._operations, self._seconds)

    def _compute_in(self, precision: Precision) -> None:
        """Has the network compute in another precision from now on; the optimiser's memory stays as planned.

        Raises:
            MemoryLimitError: That doesn't fit.
        """
        if precision == self._precision:
            return
        settings = self.settings.model_copy(update={"precision": precision})
        loaded = weights.load(weights.choose(settings.network), self._weights_file)
        plan = self._planned(settings, loaded)
        self.plan = replace(plan, history=self.plan.history, half_history=self.plan.half_history)
        self.network, self._precision = network_of(settings, loaded, self.device), precision
        self.__dict__.pop("pyramid", None)
        self._take_weights()

    def _refine(self) -> bool:
        """Goes on in float32, where 16 bit can't tell any more which picture is better; whether it does."""
        if self.settings.precision != "auto" or self.network.dtype == torch.float32:
            return False
        try:
            self._compute_in("float32")
        except MemoryLimitError:
            return False
        return True

    def _take_weights(self) -> None:
        """Gives the objective the weights that hold now."""
        if self.pyramid.settings != self._steering.settings:
            self.pyramid = self.pyramid.weighted(self._steering.settings)

    def _changed(self, iterations: int, evaluations: int) -> bool:
        """Makes the changes of weights that are due after so much of the run; whether there were any."""
        if not self._steering.due(iterations, evaluations):
            return False
        self._take_weights()
        return True

    def _rule(self, start: Tensor, *, refines: bool) -> Parametrisation:
        """How a variable becomes the picture that the network sees, beginning at `start`, a packed picture."""
        optimizer = self.settings.optimizer
        if refines:
            optimizer = optimizer.model_copy(update={"preconditioning": optimizer.fine_preconditioning})
        rule = self._colours.rule(parametrise(optimizer, start))
        if self.guidance.protect is None:
            return rule
        size = (start.shape[2], start.shape[3])
        content = resize(self._colours.content, size).clamp(0, 1)
        return Protected(rule, content.to(start.device), self.guidance.kept(size).to(start.device))

    def _start_of(self, stage: int, before: Tensor | None) -> Tensor:
        """The picture that a stage begins with, given the one that the stage before ended with."""
        size = self._size_at(self._stage_levels[stage])
        start = resize(self.starting_picture.to(self.device), size).clamp(0, 1)
        if stage == len(self._stage_levels) - 1:
            del self.starting_picture  # as large as the result, and not needed again
        if before is None:
            return start
        smaller = (before.shape[2], before.shape[3])
        detail = start - resize(resize(start, smaller), size)
        keep = self.settings.optimizer.kept_detail
        return (resize(before, size) + keep * detail).clamp(0, 1)

    @cached_property
    def _fingerprint(self) -> str:
        """Identifies pictures, settings and weights, so that a checkpoint is not resumed with others.

        The memory limit is left out: a run that ran out of memory goes on in smaller pieces.
        """
        digest = hashlib.sha256(self.settings.model_dump_json(exclude={"max_memory"}).encode())
        digest.update(f"{self.network.name} {self.network.sha256}".encode())
        others = (self._given_start, *self.guidance.masks, self.guidance.protect)
        for picture in (self.content, *self.styles, *others):
            if picture is None:
                digest.update(b"none")
                continue
            digest.update(str(tuple(picture.shape)).encode())
            digest.update(images.quantize(picture).mul(255).round().to(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def recipe(self, step: Step) -> dict[str, Any]:
        """What made the picture of `step`: enough to repeat the run, nothing of the user's machine or name."""
        return {
            "software": "pyramid-style",
            "version": __version__,
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.settings.seed,
            "network": {
                "name": self.network.name,
                "sha256": self.network.sha256,
                "style_layers": list(self.pyramid.style_layers),
                "content_layers": list(self.pyramid.content_layers),
            },
            "sizes": {
                "result": [step.width, step.height],
                "content": [self.content.shape[3], self.content.shape[2]],
                "styles": [[style.shape[3], style.shape[2]] for style in self.styles],
            },
            "masks": [mask is not None for mask in self.guidance.masks],
            "protect": self.guidance.protect is not None,
            "steering": [steer.model_dump(mode="json") for steer in self.steered],
            "iterations": step.iteration,
            "evaluations": step.evaluations,
            "loss": step.loss,
            "precision": str(self.network.dtype).removeprefix("torch."),
            "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        }

    def encode(self, step: Step, format: str = "png", *, bits: int = 8, quality: int = 95) -> bytes:
        """The picture of `step` as a file with its recipe and, where the content had it, its transparency."""
        alpha = None if self.alpha is None else resize(self.alpha, (step.height, step.width)).clamp(0, 1)
        recipe = self.recipe(step)
        return images.encode(step.picture(), format, bits=bits, quality=quality, alpha=alpha, recipe=recipe)


def _guidance(styles: int, masks: Sequence[Tensor | None], protect: Tensor | None) -> Guidance:
    if len(masks) > styles:
        raise SettingsError(f"there are {len(masks)} masks for {styles} styles", "Give each style one mask at most")
    return Guidance((*masks, *[None] * (styles - len(masks))), protect)


def _starting_picture(
    settings: Settings,
    content: Tensor,
    style: Tensor | Mixture,
    given: Tensor | None,
    size: Size,
    generator: torch.Generator,
) -> Tensor:
    match settings.start:
        case "content":
            picture = resize(content, size)
        case "content+noise":
            picture = noise.blend(settings.noise, resize(content, size).clamp(0, 1), style, generator)
        case "noise":
            picture = noise.noise_alone(settings.noise, size, style, generator)
        case "white-noise":
            picture = torch.rand(1, 3, *size, generator=generator)
        case "style":
            picture = resize(style.styles[0] if isinstance(style, Mixture) else style, size)
        case "image":
            assert given is not None
            picture = resize(given, size)
    return picture.clamp(0, 1)


class _Stage:
    """One stage: the optimisation of a picture of one size, beginning at `start`, which is packed."""

    def __init__(
        self, transfer: Transfer, number: int, start: Tensor, before: _Spent, resumed: Checkpoint | None = None
    ) -> None:
        self._transfer = transfer
        self._number = number
        self._level = transfer._stage_levels[number]
        self._start = start
        self._before = before
        self._resumed = resumed
        self._rule = transfer._rule(start, refines=number > 0)
        self._levels = () if resumed is None else tuple(LevelLoss(*level) for level in resumed.levels)
        self._losses = {} if resumed is None else dict(resumed.losses)
        self._total = 0.0  # of the latest evaluation, accepted or not
        self._evaluated: tuple[LevelLoss, ...] = ()
        self.spent = before
        self.picture: Tensor  # once its steps are done

    def steps(self) -> Iterator[Step]:
        """Yields the stage's start and every accepted step."""
        began = time.monotonic() - (self._resumed.seconds if self._resumed else 0.0)
        if self._resumed is None:
            self._changed(0, 0)
        losses = self._losses
        asked = time.monotonic()
        for iterate in self._run():
            if not math.isfinite(iterate.loss):
                raise DivergenceError(
                    "the loss is not a finite number", "Try --set precision=float32 or smaller weights"
                )
            if iterate.iteration not in losses and self._evaluated:
                self._levels = self._evaluated
            losses[iterate.iteration] = iterate.loss
            seconds = time.monotonic() - began
            self.spent = self._before.plus(iterate.iteration, iterate.evaluations, seconds)
            self._transfer._seconds += time.monotonic() - asked
            yield self._step(iterate, seconds)
            asked = time.monotonic()
            if iterate.iteration >= self._planned(self._number) or self._settled(list(losses.values())):
                break
        else:
            if not math.isfinite(self._total):
                raise DivergenceError(
                    "every further step led to a loss that is not a finite number",
                    "Try --set precision=float32 or smaller weights",
                )
        self.picture = self._rule.picture(iterate.point)

    def _run(self) -> Iterator[Iterate]:
        plan = self._transfer.plan
        minimise = optimizers.OPTIMIZERS[self._transfer.settings.optimizer.name]
        state = self._resumed.state if self._resumed else None
        self._resumed = None  # the optimiser has its own copy
        start = self._rule.start()
        return minimise(
            self._evaluate,
            start,
            self._step_length,
            history=plan.history,
            half_history=plan.half_history,
            state=state,
            changed=self._changed,
            stalled=self._stalled,
        )

    def _changed(self, iteration: int, evaluations: int) -> bool:
        """Whether the weights change now; losses under the old ones say nothing about those to come."""
        before = self._before
        changed = self._transfer._changed(before.iterations + iteration, before.evaluations + evaluations)
        if changed:
            self._losses.clear()
        return changed

    def _stalled(self) -> bool:
        """Whether the network computes more exactly from now on; losses in 16 bit don't compare with those to come."""
        refined = self._transfer._refine()
        if refined:
            self._losses.clear()
        return refined

    def _evaluate(self, variable: Tensor) -> tuple[float, Tensor]:
        loss = self._transfer.pyramid.evaluate(self._rule.picture(variable), self._level)
        self._evaluated, self._total = loss.levels, loss.total
        return loss.total, self._rule.pull_back(variable, loss.gradient)

    def _step_length(self, point: Tensor, direction: Tensor) -> float:
        moved = self._rule.movement(point, direction)
        return self._transfer.settings.optimizer.step / max(moved, torch.finfo(torch.float32).tiny)

    def _planned(self, number: int) -> int:
        return self._transfer.settings.stage_iterations()[number]

    def _settled(self, losses: Sequence[float]) -> bool:
        tolerance = self._transfer.settings.optimizer.tolerance
        if not tolerance or len(losses) <= _PATIENCE:
            return False
        best = min(losses[:-_PATIENCE])
        fallen = best < losses[0]  # Adam may climb before it falls
        return fallen and min(losses[-_PATIENCE:]) > (1 - tolerance) * best

    def _step(self, iterate: Iterate, seconds: float) -> Step:
        stages = len(self._transfer._stage_levels)
        rule, levels, finish = self._rule, self._levels, self._transfer.finish
        precision = self._transfer._precision

        def picture() -> Tensor:
            return finish(rule.picture(iterate.point).clamp(0, 1).float().cpu())

        def checkpoint() -> bytes:
            return checkpoints.encode(
                Checkpoint(
                    fingerprint=self._transfer._fingerprint,
                    stage=self._number,
                    before=astuple(self._before),
                    seconds=seconds,
                    levels=tuple(astuple(level) for level in levels),
                    start=self._start,
                    losses=tuple(self._losses.items()),
                    state=iterate.state(),
                    precision=precision,
                    steering=self._transfer.steered,
                )
            )

        return Step(
            stage=self._number,
            stages=stages,
            iteration=self.spent.iterations,
            iterations=self._before.iterations + sum(self._planned(number) for number in range(self._number, stages)),
            evaluations=self.spent.evaluations,
            loss=iterate.loss,
            levels=levels,
            seconds=self.spent.seconds,
            height=self._start.shape[2],
            width=self._start.shape[3],
            picture=picture,
            checkpoint=checkpoint,
        )
