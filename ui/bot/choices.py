"""What a person may choose in a chat, and the settings of `core` that it stands for."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, get_args

from core import config, dials
from core.config import Colour, Settings
from ui.bot.records import Choices

MARKS = range(int(dials.LOW), int(dials.HIGH) + 1)
"""Where a dial may stand."""
MIDDLE = int(dials.PRESET)
"""Where it leaves everything as the look has it."""
DIALS = tuple(dial.name for dial in dials.DIALS)
COLOURS: tuple[Colour, ...] = get_args(Colour)
MOST_STYLES = 8
"""In one painting."""

_WEIGHT = re.compile(r"\s*(?:×|x)?\s*(\d{1,3}(?:[.,]\d{1,3})?)\s*", re.IGNORECASE)


def settings_of(choices: Choices, changes: Mapping[str, Any], weights: Sequence[float] = ()) -> Settings:
    """Core's settings for a person's choices.

    Args:
        choices: Of the person.
        changes: The operator's, laid over the preset.
        weights: Of the styles, where there are several.

    Raises:
        SettingsError: The preset is not there any more.
    """
    chosen: dict[str, Any] = {"levels": choices.level, "seed": choices.seed, "colour": choices.colours}
    if len(weights) > 1:
        chosen["styles"] = [{"weight": weight} for weight in weights]
    turned = {"content": choices.content, "style": choices.style, "noise": choices.noise}
    return dials.apply(config.load(choices.preset, changes).changed(chosen), turned)


def weight_in(caption: str | None) -> float:
    """How a style counts, where its caption is nothing but a number."""
    found = _WEIGHT.fullmatch(caption or "")
    return float(found[1].replace(",", ".")) if found else 1.0


@cache
def presets() -> tuple[config.Preset, ...]:
    """The presets to choose from, the usual one first."""
    return tuple(sorted(config.presets(), key=lambda preset: preset.name != config.DEFAULT_PRESET))


def side_of(level: int) -> int:
    """The shorter side of a painting, in pixels."""
    return 256 << level
