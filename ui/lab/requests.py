"""What the JSON interface takes: models in which nothing undeclared gets in."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from core import config, dials
from core.config import Colour, NetworkName, Settings, StyleSettings
from core.errors import SettingsError
from ui.lab import experts
from ui.lab.shown import LARGEST_LEVEL, Model

M = TypeVar("M", bound=BaseModel)

MOST_PICTURES = 16
MOST_STYLES = 8
"""In one picture."""

Title = Annotated[str, Field(max_length=60)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]


class PictureRef(Model):
    """A picture: one that was uploaded, or one of the samples and of the operator's folder."""

    id: Id | None = None
    """From `POST /api/pictures`."""
    sample: str | None = None
    """From `GET /api/samples`."""
    title: Title = ""


_STYLE = StyleSettings()


class StyleRef(PictureRef):
    """A style, and how it counts."""

    weight: float = _STYLE.weight
    """Against the other styles of the same picture."""
    scale: float = _STYLE.scale
    """How much larger than usual its features become, from 0.25 to 4."""
    mask: Id | None = None
    """Where it goes, from `POST /api/masks`; none: everywhere."""


class WantedSettings(Model):
    """A preset, and what most people change of it."""

    preset: str = config.DEFAULT_PRESET
    settings: dict[str, Any] | None = None
    """Complete settings in place of a preset's, as from a picture that was made here."""
    level: Annotated[int, Field(ge=0, le=LARGEST_LEVEL)] = 1
    """Finest level: the shorter side has 256·2^level pixels."""
    dials: dict[str, float] = Field(default_factory=dict)
    """`content`, `style` and `noise`, each from 0 to 10; 5, and what isn't named, is as the preset has it."""
    colour: Colour | None = None
    """Whose colours the result has; none: as the preset says."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    network: NetworkName | None = None
    experts: dict[str, str] = Field(default_factory=dict)
    """Any other settings by their dotted names, as text: `loss.level_weights` = `1, 0.5`."""

    def resolved(self, styles: Sequence[StyleRef] = ()) -> Settings:
        """The settings that this stands for.

        Args:
            styles: Those of one picture; none leave the weights and scales of styles as they are.

        Raises:
            SettingsError: No such preset, or a value that isn't allowed.
        """
        if re.fullmatch(r"[a-z0-9-]+", self.preset) is None:  # a name, never a path
            raise SettingsError("there is no such preset", "GET /api/presets lists them")
        base = config.load(self.preset) if self.settings is None else config.parse(self.settings)
        given = {"colour": self.colour, "seed": self.seed, "network": self.network}
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if styles:
            changes["styles"] = _style_settings(styles)
        changed = base.changed(experts.parse(self.experts)).changed({"levels": self.level, **changes})
        return dials.apply(changed, self.dials)


def _style_settings(styles: Sequence[StyleRef]) -> list[dict[str, float]]:
    """Up to the last that isn't as by default."""
    settings = [{"weight": style.weight, "scale": style.scale} for style in styles]
    while settings and settings[-1] == _STYLE.model_dump():
        settings.pop()
    return settings


class Commission(Model):
    """What all pictures that are asked for have in common with one."""

    styles: Annotated[tuple[StyleRef, ...], Field(min_length=1, max_length=MOST_STYLES)]
    """All of them in the same picture."""
    protect: Id | None = None
    """What is to keep its content, from `POST /api/masks`."""
    wanted: WantedSettings = WantedSettings()

    def resolved(self) -> Settings:
        """The settings that this stands for.

        Raises:
            SettingsError: As `WantedSettings.resolved`.
        """
        return self.wanted.resolved(self.styles)

    @property
    def masks(self) -> tuple[str | None, ...]:
        """Where each style goes."""
        return tuple(style.mask for style in self.styles)


class JobRequest(Commission):
    """One picture, please."""

    content: PictureRef
    film: bool = False
    """Make a film of how it comes to be, too."""


class Axis(Model):
    """A setting of a sweep, and its values."""

    setting: str
    """A dial (`content`, `style`, `noise`), or a setting by its dotted name."""
    values: Annotated[str, Field(max_length=200)]
    """As text, with commas between them; with semicolons where a value has commas itself."""


class SweepRequest(Commission):
    """The same picture under several values of two settings, small, as a table."""

    content: PictureRef
    rows: Axis
    columns: Axis | None = None


class TableRequest(Model):
    """Every content in every style, or (`mix`) every content in all styles together."""

    contents: Annotated[tuple[PictureRef, ...], Field(min_length=1, max_length=MOST_PICTURES)]
    styles: Annotated[tuple[StyleRef, ...], Field(min_length=1, max_length=MOST_PICTURES)]
    mix: bool = False
    wanted: WantedSettings = WantedSettings()

    @property
    def columns(self) -> tuple[tuple[StyleRef, ...], ...]:
        """The styles of each column."""
        return (self.styles,) if self.mix else tuple((style,) for style in self.styles)


class EstimateRequest(TableRequest):
    """What is to be estimated."""

    protect: Id | None = None
    times: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many pictures there would be of each, as in a sweep."""
    regions: Annotated[int, Field(ge=0, le=MOST_STYLES)] = 0
    """How many of the styles have regions that are painted, but not sent yet."""


class EnlargeRequest(Model):
    """How large the same picture is wanted."""

    level: Annotated[int, Field(ge=0, le=LARGEST_LEVEL)] | None = None
    """None: the next one."""


class SteerRequest(Model):
    """Other weights for a picture that is being painted; what isn't named stays."""

    attempt: Annotated[int, Field(ge=1)]
    dials: dict[str, float] = Field(default_factory=dict)
    """`content` and `style`, each from 0 to 10."""
    weights: tuple[float, ...] | None = None
    """Of every style, in their order."""


class Attempt(Model):
    """Which attempt of a job is meant, so that a late click can't reach a later one."""

    attempt: Annotated[int, Field(ge=1)]


class QueueRequest(Model):
    """Whether further jobs are to be started."""

    paused: bool


# ── Reading them ─────────────────────────────────────────────────────────────────────────────────────────────────────


def understand(model: type[M], data: Any) -> M:
    """What was sent, as bytes of JSON or as values, as a model.

    Raises:
        SettingsError: It isn't one; the cause names the first key that is wrong.
    """
    try:
        return model.model_validate_json(data) if isinstance(data, bytes) else model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the body"
        raise SettingsError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None
