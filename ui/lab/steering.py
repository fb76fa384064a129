"""Turning dials of a picture that is being painted: from where they stand to new weights, and to words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import dials
from core.config import Settings
from core.errors import SettingsError
from core.steering import differences, steered
from core.studio import Job

DIALS = tuple(dial for dial in dials.DIALS if dial.name != "noise")
"""Those that can be turned on the way; noise is in the starting picture."""


@dataclass(frozen=True)
class Wish:
    """What is to change: for the engine, and for people."""

    changes: Mapping[str, Any]
    text: str


def reading(job: Job) -> dict[str, float]:
    """Where the dials of a job stand."""
    return dials.reading(job.settings, job.steered_settings, _begun_at(job))


def weights(job: Job) -> tuple[float, ...]:
    """How its styles count at present, in their order."""
    now = job.steered_settings
    return tuple(now.style(number).weight for number in range(len(job.styles)))


def wish_of(job: Job, turned: Mapping[str, float], weighed: Sequence[float] | None) -> Wish:
    """What to change so that dials and styles stand as they are wanted.

    Args:
        job: Which may have been steered before.
        turned: Dials by name; what isn't named stays.
        weighed: How every style counts; none: as before.

    Raises:
        SettingsError: A dial that can't be turned on the way, a value that isn't allowed, or nothing that would change.
    """
    strange = turned.keys() - {dial.name for dial in DIALS}
    if strange:
        raise SettingsError(
            f"'{min(strange)}' can't be changed while a picture is painted", "Turn content or style, or weigh styles"
        )
    before, now = reading(job), job.steered_settings
    after = dials.turn(now, before, turned)
    if weighed is not None:
        after = _weighed(after, job, weighed)
    changes = differences(now, after)
    if not changes:
        raise SettingsError("nothing would change", "Turn a dial first")
    steered(now, changes)
    return Wish(changes, ", ".join([*_told_dials(before, turned), *_told_weights(job, weighed)]))


def _begun_at(job: Job) -> dict[str, float]:
    """Where the dials stood when the job was submitted."""
    known: dict[str, float] = json.loads(job.tags.get("dials", "{}"))
    return known


def _weighed(settings: Settings, job: Job, weighed: Sequence[float]) -> Settings:
    if len(weighed) != len(job.styles):
        raise SettingsError(f"these are {len(weighed)} weights for {len(job.styles)} styles", "Give one for each")
    scales = [settings.style(number).scale for number in range(len(job.styles))]
    styles = [{"weight": weight, "scale": scale} for weight, scale in zip(weighed, scales, strict=True)]
    return settings.changed({"styles": styles})


def _told_dials(before: Mapping[str, float], turned: Mapping[str, float]) -> list[str]:
    return [
        f"{dial.title.lower()} {before[dial.name]:.3g} → {turned[dial.name]:.3g}"
        for dial in DIALS
        if dial.name in turned and turned[dial.name] != before[dial.name]
    ]


def _told_weights(job: Job, weighed: Sequence[float] | None) -> list[str]:
    names = style_titles(job)
    changed = zip(names, weights(job), weighed or (), strict=False)
    return [f"{name} {before:.3g} → {after:.3g}" for name, before, after in changed if before != after]


def style_titles(job: Job) -> list[str]:
    """What to call the styles of a job."""
    titles = job.tags.get("style_title", "").split(" + ")
    if len(titles) == len(job.styles):
        return titles
    return [f"style {number}" for number in range(1, len(job.styles) + 1)]
