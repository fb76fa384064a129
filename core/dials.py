"""Three plain dials over the settings: how much content, how much style, how much noise.

Each goes from 0 to 10, and 5 leaves everything as the preset has it. What they mean lives here alone; the command line,
the lab and the bot show them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.config import Settings
from core.errors import SettingsError

LOW, PRESET, HIGH = 0.0, 5.0, 10.0
"""Both ends of every dial, and where it leaves the preset's value."""

_TENFOLD = 2.5
"""So many marks of a dial multiply a weight by ten, so that an end is a hundred times the preset's or a hundredth."""
_MOST_BY_STYLE = 0.6
"""How far the style's dial brings the noise over the edges; all the way would leave no content to be seen."""


@dataclass(frozen=True)
class Dial:
    """One dial: its name, what it is called, and what it does in a line."""

    name: str
    title: str
    description: str


DIALS = (
    Dial("content", "Content", "how much of the photograph's shapes remains"),
    Dial("style", "Style", "how strongly the style paints"),
    Dial("noise", "Noise", "how much structured noise the picture starts with: more of it, freer brushwork"),
)
"""In the order in which they are shown."""


def apply(settings: Settings, dials: Mapping[str, float]) -> Settings:
    """The settings with some dials turned, by name; a dial that isn't named stays at 5.

    Raises:
        SettingsError: No such dial, or a value outside 0 to 10.
    """
    known = {"content": _content, "style": _style, "noise": _noise}
    for name, value in dials.items():
        if name not in known:
            raise SettingsError(f"there is no dial '{name}'", f"Known are: {', '.join(known)}")
        if not LOW <= value <= HIGH:
            raise SettingsError(f"the dial '{name}' goes from {LOW:g} to {HIGH:g} (given: {value:g})")
        if value != PRESET:
            settings = settings.changed(known[name](settings, value))
    return settings


def turn(settings: Settings, before: Mapping[str, float], after: Mapping[str, float]) -> Settings:
    """Settings whose dials stood at `before`, with content and style at `after`: what can be turned on the way.

    Raises:
        SettingsError: A value outside 0 to 10.
    """
    mirrored = {name: LOW + HIGH - before.get(name, PRESET) for name in after}
    return apply(apply(settings, mirrored), after)


def reading(begun: Settings, now: Settings, dials: Mapping[str, float]) -> dict[str, float]:
    """Where content and style stand now, if they stood at `dials` under the weights of `begun`."""
    return {
        "content": _reading(dials.get("content", PRESET), begun.loss.content_weight, now.loss.content_weight),
        "style": _reading(dials.get("style", PRESET), begun.loss.style_weight, now.loss.style_weight),
    }


def _reading(mark: float, before: float, after: float) -> float:
    """Where a dial stands after its weight has changed; no dial changes a weight of 0."""
    turned = _TENFOLD * math.log10(after / before) if before and after else 0.0
    return min(max(round(mark + turned, 6), LOW), HIGH)


def _content(settings: Settings, value: float) -> dict[str, Any]:
    """The content's weight; and below 5 the noise comes over the edges, which else show through from the start."""
    loss = {"content_weight": settings.loss.content_weight * _factor(value)}
    return {"loss": loss, "noise": _over_edges(settings, max(0.0, PRESET - value) / (PRESET - LOW))}


def _style(settings: Settings, value: float) -> dict[str, Any]:
    """The style's weight; and above 5 the noise comes nearer to the edges, which leaves more to be painted anew."""
    loss = {"style_weight": settings.loss.style_weight * _factor(value)}
    return {"loss": loss, "noise": _over_edges(settings, _MOST_BY_STYLE * max(0.0, value - PRESET) / (HIGH - PRESET))}


def _noise(settings: Settings, value: float) -> dict[str, Any]:
    """Below 5 the noise fades; above, it grows to its full strength and comes over the edges."""
    strength = settings.noise.strength
    if value < PRESET:
        return {"noise": {"strength": strength * (value - LOW) / (PRESET - LOW)}}
    beyond = (value - PRESET) / (HIGH - PRESET)
    return {"noise": {"strength": strength + beyond * (1 - strength), **_over_edges(settings, beyond)}}


def _factor(value: float) -> float:
    factor: float = 10 ** ((value - PRESET) / _TENFOLD)
    return factor


def _over_edges(settings: Settings, share: float) -> dict[str, float]:
    """The noise less kept off the edges, by this share."""
    return {"gradient_weight": (1 - share) * settings.noise.gradient_weight}
