"""What a person may choose in a chat, and the settings of `core` that it stands for."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from core import config
from core.config import Settings
from ui.bot.records import Choices

STRENGTHS = range(-2, 3)
"""Steps of strength that can be chosen."""
COLOURS = ("style", "photo")

_CONTENT_PER_STEP = 3.0
"""The photograph's weight is divided by this at each step up."""
_NOISE_PER_STEP = 1.3
"""And the noise, in which styles take root on flat ground, multiplied by this."""


def settings_of(choices: Choices, changes: Mapping[str, Any]) -> Settings:
    """Core's settings for a person's choices.

    Args:
        choices: Of the person.
        changes: The operator's, laid over the preset.

    Raises:
        SettingsError: The preset is not there any more.
    """
    preset = config.load(choices.preset, changes)
    noise = min(1.0, preset.noise.strength * _NOISE_PER_STEP**choices.strength)
    return preset.changed(
        {
            "levels": choices.level,
            "seed": choices.seed,
            "loss": {"content_weight": preset.loss.content_weight / _CONTENT_PER_STEP**choices.strength},
            "noise": {"strength": noise},
        }
    )


@cache
def presets() -> tuple[config.Preset, ...]:
    """The presets to choose from, the usual one first."""
    return tuple(sorted(config.presets(), key=lambda preset: preset.name != config.DEFAULT_PRESET))


def side_of(level: int) -> int:
    """The shorter side of a painting, in pixels."""
    return 256 << level
