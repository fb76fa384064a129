"""Changes of a run's weights while it goes on, and how a recipe remembers them.

A change takes effect between two evaluations. Evaluations are counted from the first of the run, so that their number
says exactly when: a run that is steered likewise at the same numbers gives the same picture, bit for bit.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.config import LossSettings, Settings, StyleSettings
from core.errors import RecipeError, SettingsError

STEERABLE_LOSS = ("content_weight", "style_weight", "tv_weight", "level_weights", "protect_weight")
"""What may change in `loss` while a run goes on; of every style, its weight may."""


class Steer(BaseModel):
    """One change of weights, as it happened."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    evaluation: int = Field(ge=0)
    """How many evaluations of loss and gradient there had been, over all stages, when it took effect."""
    iteration: int = Field(ge=0)
    """Likewise of iterations, for people."""
    changes: dict[str, Any]
    """A nested mapping, as for `Settings.changed`."""


def steered(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings under new weights.

    Raises:
        SettingsError: A key or a value is not allowed, or is one that can't change while a run goes on.
    """
    new = settings.changed(changes)
    if _fixed(new, len(settings.styles)) != _fixed(settings, len(settings.styles)):
        weights = ", ".join(f"loss.{name}" for name in STEERABLE_LOSS)
        raise SettingsError(
            "only weights can change while a picture is painted", f"Change {weights}, or the weight of a style"
        )
    return new


def same_targets(one: Settings, other: Settings) -> bool:
    """Whether runs of the same pictures under both settings aim at the same statistics, whatever these weigh."""
    return _aims(one, len(other.styles)) == _aims(other, len(one.styles))


def _aims(settings: Settings, styles: int) -> dict[str, Any]:
    """Everything of the settings that the statistics depend on."""
    ways = {"title", "description", "start", "seed", "max_memory", "noise", "optimizer"}
    return _fixed(settings, styles).model_dump(exclude=ways)


def differences(before: Settings, after: Settings) -> dict[str, Any]:
    """The `changes` that lead from one setting of the weights to another."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    loss = {name: new["loss"][name] for name in STEERABLE_LOSS if new["loss"][name] != old["loss"][name]}
    changes: dict[str, Any] = {"loss": loss} if loss else {}
    return changes | ({"styles": new["styles"]} if new["styles"] != old["styles"] else {})


def parse(recorded: Any) -> tuple[Steer, ...]:
    """Reads what a recipe or a checkpoint recorded, a list of objects.

    Raises:
        RecipeError: It isn't one.
    """
    try:
        return tuple(Steer.model_validate(entry) for entry in recorded)
    except (TypeError, ValidationError) as error:
        raise RecipeError(f"the recorded changes of weights can't be understood: {error}") from None


class Steering:
    """The changes of one run: those asked for while it goes on, those to be repeated, and those made.

    Args:
        settings: That the run begins with.
        repeated: Changes that an earlier run recorded.
    """

    def __init__(self, settings: Settings, repeated: Sequence[Steer] = ()) -> None:
        self._lock = threading.Lock()
        self._asked: list[dict[str, Any]] = []
        self._latest = self._begun_with = self.settings = settings
        self.made: tuple[Steer, ...] = ()
        self._repeated = tuple(repeated)
        for steer in repeated:
            steered(settings, steer.changes)

    def ask(self, changes: Mapping[str, Any]) -> None:
        """Takes a change that is to be made as soon as can be; may be called from any thread.

        Raises:
            SettingsError: It can't be made.
        """
        with self._lock:
            self._latest = steered(self._latest, changes)
            self._asked.append(dict(changes))

    def begin(self, made: Sequence[Steer] = ()) -> None:
        """Begins a run, with the changes that were made before its checkpoint."""
        with self._lock:
            self.made = ()
            self.settings = self._begun_with
            for steer in made:
                self._make(steer)
            self._latest = self.settings

    def due(self, iteration: int, evaluation: int) -> bool:
        """Makes what is to be made after so many iterations and evaluations; whether there was anything."""
        with self._lock:
            before = len(self.made)
            for steer in self._repeated:
                if steer.evaluation <= evaluation and steer not in self.made:
                    self._make(steer)
            for changes in self._asked:
                self._make(Steer(evaluation=evaluation, iteration=iteration, changes=changes))
            self._asked.clear()
            return len(self.made) > before

    def _make(self, steer: Steer) -> None:
        self.settings = steered(self.settings, steer.changes)
        self.made = (*self.made, steer)


def _fixed(settings: Settings, styles: int) -> Settings:
    """The settings with every weight that may change at its default."""
    plain = {name: LossSettings.model_fields[name].default for name in STEERABLE_LOSS}
    count = max(styles, len(settings.styles))
    unweighted = tuple(StyleSettings(scale=settings.style(number).scale) for number in range(count))
    trimmed = unweighted[: _last_scaled(unweighted)]
    return settings.model_copy(update={"loss": settings.loss.model_copy(update=plain), "styles": trimmed})


def _last_scaled(styles: tuple[StyleSettings, ...]) -> int:
    """How many styles there are up to the last that isn't as by default."""
    return max((number + 1 for number, style in enumerate(styles) if style != StyleSettings()), default=0)
