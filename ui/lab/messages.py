"""What the JSON interface gives: models in which nothing undeclared gets out."""

from typing import Literal

from core.config import Settings
from core.studio.jobs import LossPoint, Notice, Transition
from ui.lab.shown import CellView, JobView, Model


class Nothing(Model):
    """An empty object."""


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
    """With which it began; `job.steering` says what was changed on the way."""
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


class MaskView(Model):
    """A region that was taken in."""

    id: str
    title: str
    width: int
    height: int
    share: float
    """Of the content that lies in it."""
    thumbnail: str


class MaskList(Model):
    """Regions, in the order in which they were sent."""

    masks: tuple[MaskView, ...]


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
