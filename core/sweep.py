"""Grids of settings to choose from: one picture for every combination of one or two things that vary.

The cells are whole settings of their own, with one seed and therefore one noise; a cell that is liked is made large by
running its settings again at a higher level.
"""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core import dials
from core.config import Settings, StyleSettings
from core.errors import SettingsError

MOST_CELLS = 100
"""More would take hours, and nobody could look at them side by side."""

_DIALS = {f"{dial.name}-strength": dial.name for dial in dials.DIALS}
"""What the dials are called here: as the options of the command line are."""


@dataclass(frozen=True)
class Entry:
    """One value on an axis: what it is called, and what it does to the settings."""

    label: str
    apply: Callable[[Settings], Settings]


@dataclass(frozen=True)
class Axis:
    """One thing that varies."""

    title: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture of the grid."""

    row: int
    column: int
    label: str
    settings: Settings


def axis(text: str) -> Axis:
    """Reads `KEY=a,b,c`: values of a setting such as `loss.content_weight`, or of a dial such as `content-strength`.

    Raises:
        SettingsError: It isn't of that form.
    """
    key, equals, listed = text.partition("=")
    key = key.strip()
    values = _values(listed)
    if not key or not equals or not values:
        raise SettingsError(f"'{text}' is not of the form KEY=a,b,c", "Write e.g. content-strength=3,5,7")
    if key in _DIALS:
        return Axis(key, tuple(Entry(f"{key} {value}", _turned(_DIALS[key], value)) for value in values))
    return Axis(key, tuple(Entry(f"{key.rpartition('.')[2]} {value}", _changed(key, value)) for value in values))


def interpolation(count: int) -> Axis:
    """From the first of two styles to the second in `count` pictures, both ends among them.

    Raises:
        SettingsError: Fewer than two pictures.
    """
    if count < 2:
        raise SettingsError("an interpolation needs at least two pictures", "Write e.g. --interpolate 5")
    shares = [number / (count - 1) for number in range(count)]
    return Axis("style", tuple(Entry(f"{share:.0%} of the second style", _between(share)) for share in shares))


def grid(settings: Settings, axes: Sequence[Axis]) -> list[list[Cell]]:
    """All combinations, row by row: the last axis runs along the rows, the first of two down the columns.

    Raises:
        SettingsError: No axis or more than two, too many cells, or a value that isn't allowed.
    """
    if not 1 <= len(axes) <= 2:
        raise SettingsError(f"a sweep varies one thing or two, not {len(axes)}", "Leave some out")
    down = axes[0].entries if len(axes) == 2 else (Entry("", lambda unchanged: unchanged),)
    across = axes[-1].entries
    if len(down) * len(across) > MOST_CELLS:
        raise SettingsError(f"a sweep of {len(down) * len(across)} pictures is too large", f"{MOST_CELLS} are the most")
    return [
        [_cell(settings, row, column, first, second) for column, second in enumerate(across)]
        for row, first in enumerate(down)
    ]


def _cell(settings: Settings, row: int, column: int, down: Entry, across: Entry) -> Cell:
    label = ", ".join(entry.label for entry in (down, across) if entry.label)
    return Cell(row, column, label, across.apply(down.apply(settings)))


def _values(listed: str) -> list[Any]:
    """`0.01, 0.02` or `lbfgs,adam`: as TOML values, or else as words."""
    try:
        values: list[Any] = tomllib.loads(f"values = [{listed}]")["values"]
        return values
    except tomllib.TOMLDecodeError:
        return [word.strip() for word in listed.split(",") if word.strip()]


def _turned(dial: str, value: Any) -> Callable[[Settings], Settings]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SettingsError(f"the dial '{dial}' takes numbers, not '{value}'")
    return lambda settings: dials.apply(settings, {dial: value})


def _changed(key: str, value: Any) -> Callable[[Settings], Settings]:
    changes: dict[str, Any] = {key.rpartition(".")[2]: value}
    for table in reversed(key.split(".")[:-1]):
        changes = {table: changes}
    return lambda settings: settings.changed(changes)


def _between(share: float) -> Callable[[Settings], Settings]:
    def apply(settings: Settings) -> Settings:
        weights = (1 - share, share)
        styles = [StyleSettings(weight=w, scale=settings.style(n).scale) for n, w in enumerate(weights)]
        return settings.changed({"styles": [style.model_dump() for style in styles]})

    return apply
