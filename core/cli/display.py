"""What the user sees while a run goes on, all of it on stderr: a live bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from core.config import Settings
from core.pyramid import LevelLoss
from core.transfer import Step

_PLAIN_LINE_EVERY = 10.0
"""Seconds."""

_STOPPING = "stopping after this evaluation; Ctrl-C again quits at once"


def work(settings: Settings, step: Step) -> tuple[float, float]:
    """How much of a run is done, and how much it is in all, in evaluations of level 0.

    Iterations of a finer stage take longer, in proportion to the pixels of its levels, each four times the last's.
    """
    stages = step.stages
    planned = settings.stage_iterations()
    cost = [sum(4.0**level for level in range(stage + 1)) for stage in range(stages)]
    total = sum(count * each for count, each in zip(planned, cost, strict=True))
    later = slice(step.stage + 1, None)
    left_here = step.iterations - step.iteration - sum(planned[later])
    left = left_here * cost[step.stage] + sum(n * c for n, c in zip(planned[later], cost[later], strict=True))
    return total - left, total


class Display:
    """Progress and notices of one run.

    Args:
        settings: Of the run.
        quiet: Show nothing.
        stopping: Whether the run has been asked to stop.
    """

    def __init__(self, settings: Settings, *, quiet: bool, stopping: Callable[[], bool]) -> None:
        self._settings = settings
        self._console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        live = self._console.is_terminal and not quiet
        self._bar = _Bar(self._console, stopping, live=live)
        self._task = self._bar.add_task("", total=None, figures="")
        self._plain = not live
        self._stage = -1
        self._told = -float("inf")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def follow(self, settings: Settings) -> None:
        """Turns to another run, of these settings."""
        self._settings, self._stage = settings, -1

    def phase(self, text: str) -> None:
        """Says what goes on before the first step."""
        self._bar.update(self._task, description=text)

    def note(self, text: str) -> None:
        """Says something that stays, above the bar."""
        self._console.print(text, soft_wrap=True)

    def show(self, step: Step) -> None:
        """Shows where the run is."""
        done, total = work(self._settings, step)
        stage = f"stage {step.stage + 1} of {step.stages}, {step.width} × {step.height}"
        figures = f"{step.iteration} of {step.iterations}, loss {step.loss:.4g}"
        self._bar.update(self._task, description=stage, completed=done, total=total, figures=figures)
        self._bar.levels = step.levels
        if self._plain and self._is_time_for_a_line(step):
            self.note(f"{stage}: iteration {figures} ({_in_line(step.levels)}); {self._times()}")

    def _is_time_for_a_line(self, step: Step) -> bool:
        now = time.monotonic()
        if step.stage == self._stage and now - self._told < _PLAIN_LINE_EVERY:
            return False
        self._stage, self._told = step.stage, now
        return True

    def _times(self) -> str:
        task = self._bar.tasks[0]
        left = "" if task.time_remaining is None else f", about {task.time_remaining:.0f} s left"
        return f"{task.elapsed or 0:.0f} s{left}"


class _Bar(Progress):
    """Rich's bar, with the losses of every level below it."""

    def __init__(self, console: Console, stopping: Callable[[], bool], *, live: bool) -> None:
        self.levels: tuple[LevelLoss, ...] = ()
        self._stopping = stopping
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not live,
            transient=True,
            speed_estimate_period=600,  # seconds: iterations of a large picture can take a minute each
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for level in reversed(self.levels):
            yield Text(f"  {_in_words(level)}", style="dim")
        if self._stopping():
            yield Text(_STOPPING, style="yellow")


def _in_line(levels: Iterable[LevelLoss]) -> str:
    return "; ".join(_in_words(level) for level in levels)


def _in_words(level: LevelLoss) -> str:
    return f"level {level.level} style {level.style:.4g}, content {level.content:.4g}"
