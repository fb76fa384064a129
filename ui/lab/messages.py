"""What the JSON interface takes and gives: models in which nothing undeclared gets in or out."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from core import config
from core.config import NetworkName, Settings
from core.errors import SettingsError
from core.studio.jobs import LossPoint, Notice, Transition
from ui.lab.shown import LARGEST_LEVEL, CellView, JobView, Model

_ID = "[0-9a-f]{24}"
_MOST_PICTURES = 16

Title = Annotated[str, Field(max_length=60)]


# ── What comes in ────────────────────────────────────────────────────────────────────────────────────────────────────


class PictureRef(Model):
    """A picture: one that was uploaded, or one of the samples and of the operator's folder."""

    id: Annotated[str, Field(pattern=rf"^{_ID}$")] | None = None
    """From `POST /api/pictures`."""
    sample: str | None = None
    """From `GET /api/samples`."""
    title: Title = ""


class WantedSettings(Model):
    """A preset, and the few dials that most people turn."""

    preset: str = config.DEFAULT_PRESET
    settings: dict[str, Any] | None = None
    """Complete settings in place of a preset's, as from a picture that was made here."""
    level: Annotated[int, Field(ge=0, le=LARGEST_LEVEL)] = 1
    """Finest level: the shorter side has 256·2^level pixels."""
    strength: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """How strongly the style wins over the content; the content's weight is divided by it."""
    noise: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much of the starting picture is noise; none: as the preset says."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    network: NetworkName | None = None

    def resolved(self) -> Settings:
        """The settings that this stands for.

        Raises:
            SettingsError: No such preset, or a value that isn't allowed.
        """
        if re.fullmatch(r"[a-z0-9-]+", self.preset) is None:  # a name, never a path
            raise SettingsError("there is no such preset", "GET /api/presets lists them")
        base = config.load(self.preset) if self.settings is None else config.parse(self.settings)
        changes: dict[str, Any] = {
            "levels": self.level,
            "loss": {"content_weight": base.loss.content_weight / self.strength},
        }
        if self.noise is not None:
            changes["noise"] = {"strength": self.noise}
        if self.seed is not None:
            changes["seed"] = self.seed
        if self.network is not None:
            changes["network"] = self.network
        return base.changed(changes)


class JobRequest(Model):
    """One picture, please."""

    content: PictureRef
    style: PictureRef
    wanted: WantedSettings = WantedSettings()


class TableRequest(Model):
    """Every content in every style."""

    contents: Annotated[tuple[PictureRef, ...], Field(min_length=1, max_length=_MOST_PICTURES)]
    styles: Annotated[tuple[PictureRef, ...], Field(min_length=1, max_length=_MOST_PICTURES)]
    wanted: WantedSettings = WantedSettings()


class Attempt(Model):
    """Which attempt of a job is meant, so that a late click can't reach a later one."""

    attempt: Annotated[int, Field(ge=1)]


class QueueRequest(Model):
    """Whether further jobs are to be started."""

    paused: bool


class Nothing(Model):
    """An empty object."""


# ── What goes out ────────────────────────────────────────────────────────────────────────────────────────────────────


class Problem(Model):
    """Why something was refused, and what to do about it."""

    cause: str
    remedy: str = ""


class JobList(Model):
    """Jobs, the newest first."""

    jobs: tuple[JobView, ...]


class JobDetail(Model):
    """All of a job."""

    job: JobView
    settings: Settings
    notices: tuple[Notice, ...]
    error: Problem | None
    losses: tuple[LossPoint, ...]
    log: tuple[Transition, ...]


class UploadView(Model):
    """A picture that was taken in."""

    id: str
    title: str
    width: int
    height: int
    thumbnail: str
    notices: tuple[str, ...]
    settings: Settings | None
    """Of the job that made it, if it was made here."""


class UploadList(Model):
    """Pictures, in the order in which they were sent."""

    pictures: tuple[UploadView, ...]


class EstimateView(Model):
    """What pictures would need."""

    pictures: int
    width: int
    height: int
    memory_bytes: int
    free_bytes: int
    seconds: float | None
    """For all of them, without waiting for others; none where nothing like it was ever measured here."""
    network: str
    text: str


class SampleView(Model):
    """A picture to choose from."""

    key: str
    title: str
    kind: str
    """`content` or `style`."""
    thumbnail: str | None
    """None until it has been painted."""


class SampleList(Model):
    """Pictures to choose from."""

    samples: tuple[SampleView, ...]


class PresetView(Model):
    """A preset."""

    name: str
    title: str
    description: str


class PresetList(Model):
    """The presets."""

    presets: tuple[PresetView, ...]


class TableView(Model):
    """A table with what is in its cells."""

    name: str
    title: str
    page: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[CellView, ...]


class TableName(Model):
    """A table by its name."""

    name: str
    title: str
    page: str


class TableList(Model):
    """The tables."""

    tables: tuple[TableName, ...]


class CsrfToken(Model):
    """What a change has to carry in its `X-CSRF-Token` header, together with the cookie that comes with it."""

    token: str


class Health(Model):
    """Whether the lab works."""

    status: Literal["ok", "failing"]
    version: str
