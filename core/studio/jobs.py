"""A job: its states and which may follow which, its progress, and the words in which executors speak of a run.

    submit ─▶ queued ⇄ running ─▶ done
                ▲ │       │ ├───▶ failed ────▶ (retry: queued, the next attempt)
         resume │ ▼ pause ▼ └───▶ cancelled ─▶ (retry: queued, the next attempt)
                paused ◀──┘

A *job* is what a person asked for; an *attempt* counts how often they asked (a retry is the next one); a *run* is one
stretch of computing, from a start to an end, a pause or a crash. A job that resumes after a pause or a crash is still
the same attempt, so a cancel that was sent before the crash still means it.

Everything here is a frozen value. Times are seconds since 1970 (UTC), durations seconds, sizes pixels.
"""

import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.config import MAX_LEVEL, Settings
from core.errors import UserError
from core.steering import steered


class QueueFullError(UserError):
    """A job that can't be taken because too many are pending already."""


class JobStateError(UserError):
    """Something asked of a job that its state, or its attempt, doesn't allow."""


class NoSuchJobError(UserError):
    """A job, an input or a result that isn't there (any more)."""


class StorageError(UserError):
    """A data directory that can't be read or written: no space, no permission, damaged, or of a newer version."""


class PoisonedDeviceError(Exception):
    """A device that nothing but a new process brings back, such as a GPU after an illegal memory access.

    Raised by executors out of a run. The scheduler puts its jobs back and asks the process to exit (`Studio.fatal`).
    """


class LostRunError(Exception):
    """A run that ended without a result and without an error of its own; it is queued again.

    Args:
        message: What happened.
        machine: Whether a whole machine went away, which is rarely its job's fault; else the process that computed it.
    """

    def __init__(self, message: str, *, machine: bool = False) -> None:
        super().__init__(message)
        self.machine = machine


def new_id() -> str:
    """A random name of 24 hexadecimal digits (96 bits): safe in URLs and on every file system."""
    return secrets.token_hex(12)


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings", validate_default=False
    )


Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class RaySettings(_Frozen):
    """How jobs are computed on a Ray cluster."""

    address: str | None = None
    """Of the cluster, such as `10.0.0.1:6379`; `auto`: the one that this machine is a node of; none: a cluster of this
    machine alone is started, and ends with the studio."""
    gpus: Literal[0, 1] | None = None
    """GPUs of one job; none: one where the cluster has any when the studio opens, else 0."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs of one job; none: one beside a GPU, else all of a node's."""
    most_jobs: Count = 64
    """How many jobs compute at the same time at most; no more are asked of an autoscaler."""
    idle_seconds: Seconds = 20.0
    """How long a worker that has nothing to do is kept: the next job needn't wait until everything is loaded."""
    poll_seconds: Annotated[float, Field(gt=0)] = 1.0
    """How often to look which nodes have come and gone."""
    progress_per_second: Annotated[float, Field(gt=0)] = 50.0
    """How often all running jobs together tell their progress; each does so more rarely, the more there are."""
    previews_per_second: Annotated[float, Field(gt=0)] = 20.0
    """Likewise how often they show their pictures."""
    spread_level: Annotated[int, Field(ge=0, le=MAX_LEVEL)] | None = None
    """From this level on, one picture is computed by several workers together; none: never."""
    spread_workers: Annotated[int, Field(ge=2, le=64)] = 4
    """By how many; where fewer are free when it begins, the same picture takes longer."""
    store_bytes: Annotated[int, Field(ge=80 * 2**20)] | None = None
    """Memory for pictures on their way, where Ray is started here; none: Ray's own choice, a third of the machine's."""


class StudioSettings(_Frozen):
    """How a studio works; every default of the queue lives here."""

    devices: tuple[str, ...] = ()
    """Computing devices such as `cuda:0`, `mps`, `cpu`; none: every CUDA device, else MPS, else the CPU."""
    executor: Literal["local", "ray"] = "local"
    """Where jobs are computed: in threads of this process, or on a Ray cluster."""
    ray: RaySettings = RaySettings()
    """Of the executor `ray`."""
    slots_per_device: Count = 1
    """How many jobs compute on a device at the same time."""
    weights: Path | None = None
    """A file of network weights to use instead of those that are found or fetched."""
    pending_per_owner: Count = 100
    """How many queued, running and paused jobs one owner may have (`submit` may say otherwise for one owner)."""
    pending_in_all: Count = 1000
    """How many queued, running and paused jobs there may be."""
    crashes_in_a_row: Count = 2
    """A job that was running at so many crashes, without getting any further in between, fails."""
    machines_in_a_row: Count = 5
    """A job from which so many machines of a cluster went away, without getting any further in between, fails."""
    checkpoint_seconds: Seconds = 20.0
    """How often a running job is saved; less often where saving it would take more than a twentieth of its time."""
    preview_seconds: Seconds = 1.0
    """How often a running job shows its picture; less often where that would take more than a tenth of its time."""
    preview_side: Count = 640
    """Longer side of a preview in pixels."""
    progress_seconds: Seconds = 0.1
    """Progress is told at most this often."""
    record_seconds: Seconds = 1.0
    """Progress is written down at most this often; other processes see it then."""
    poll_seconds: Annotated[float, Field(gt=0)] = 0.5
    """How often to look what other processes of the same data directory did, and whether a device is free again."""
    memory_patience_seconds: Seconds = 60.0
    """How long a job waits for memory that other programs use, before it is computed in smaller pieces or refused."""
    keep_seconds: Seconds | None = None
    """How long a finished job is kept with its files (`submit` may say otherwise for one job); none: for ever."""
    keep_unused_seconds: Seconds = 24 * 3600.0
    """How long a picture that no job uses is kept."""
    shutdown_seconds: Seconds = 8.0
    """How long closing waits for running jobs to be saved."""


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def pending(self) -> bool:
        """Whether the job may still come to a result by itself or by `resume`."""
        return self in PENDING


PENDING = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.PAUSED})

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.PAUSED, JobState.QUEUED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.DONE: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""Which state may follow which."""


def check_transition(before: JobState, after: JobState) -> None:
    """Raises:
    JobStateError: `after` may not follow `before`.
    """
    if after not in TRANSITIONS[before]:
        raise JobStateError(f"this job is {before}, so it can't become {after}")


class LevelLoss(_Frozen):
    """The three terms of the loss at one level, not yet multiplied by the level's weight."""

    level: int
    content: float
    style: float
    tv: float


class LossPoint(_Frozen):
    """One point of the chart of losses."""

    iteration: int
    seconds: float
    loss: float
    levels: tuple[LevelLoss, ...]


class Progress(_Frozen):
    """How far a run is."""

    stage: int
    stages: int
    iteration: int
    """Iterations done, over all stages."""
    iterations: int
    """Iterations expected in all; fewer when a stage ends early."""
    evaluations: int
    loss: float
    levels: tuple[LevelLoss, ...] = ()
    seconds: float
    """Time of optimisation so far, in this run."""
    width: int
    """Size of the picture at this stage."""
    height: int
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of the whole work that is done; iterations at finer levels weigh more. Filled in by the scheduler."""


class Result(_Frozen):
    """The finished picture."""

    file: str
    """Name of its file: a random id with the format's suffix."""
    format: str
    """`png`, `jpeg` …, as in `core.images`."""
    width: int
    height: int
    bytes: int
    seconds: float
    """Computing time of the last run."""
    film: str | None = None
    """Name of the file of the film of how it came to be, where one was asked for; its suffix is its format."""


class Failure(_Frozen):
    """Why a job failed: a `UserError` written down."""

    cause: str
    remedy: str = ""

    def __str__(self) -> str:
        return str(UserError(self.cause, self.remedy))


class Wish(_Frozen):
    """Other weights for a job that has been submitted already; it goes on with them from where it is."""

    number: int
    """From 0, in the order in which they were asked for."""
    time: float
    changes: dict[str, Any]
    """A nested mapping, as `Settings.changed` takes it: weights and strengths, never sizes or noise."""
    text: str
    """The same for people, such as `content 5 → 7`."""
    iteration: int | None = None
    """After which they hold, over all stages; none until a run has taken them."""
    evaluation: int | None = None
    """Likewise in evaluations, by which a run that begins again takes them at exactly the same moment."""


class Notice(_Frozen):
    """Something that the owner should know about a job, such as a second try with less memory."""

    time: float
    text: str


class Transition(_Frozen):
    """One line of a job's log: a change of state."""

    time: float
    attempt: int
    before: JobState | None
    after: JobState
    note: str


class Job(_Frozen):
    """What an owner asked for, and what became of it."""

    id: str
    owner: str
    """An opaque name: `lab`, `tg:12345` …; owners take turns."""
    content: str
    """Id of an input; see `Studio.add_input`."""
    styles: Annotated[tuple[str, ...], Field(min_length=1)]
    start: str | None = None
    """Id of the starting picture, where `settings.start` is `image`."""
    masks: tuple[str | None, ...] = ()
    """Ids of grey pictures over the content: where each style goes, by its position; none, or beyond: everywhere."""
    protect: str | None = None
    """Id of a grey picture over the content: what is to keep its content."""
    film: bool = False
    """Whether a film of the optimisation is wanted too."""
    settings: Settings
    key: str | None = None
    """The owner's own name for the job; submitting the same key again gives the same job."""
    tags: dict[str, str] = {}
    """Anything the owner wants to find again with it."""
    keep_seconds: float | None = None
    width: int
    """Size of the result."""
    height: int
    network: str = ""
    """The network in use, where `auto` has been decided."""

    state: JobState = JobState.QUEUED
    attempt: int = 1
    created: float
    started: float | None = None
    """When the latest run began."""
    finished: float | None = None
    device: str | None = None
    """Kind of device of the latest run."""
    progress: Progress | None = None
    preview: int | None = None
    """Version of the preview (for URLs that never show an old one); none before the first."""
    result: Result | None = None
    error: Failure | None = None
    notices: tuple[Notice, ...] = ()
    steering: tuple[Wish, ...] = ()
    """What was changed on the way; a retry repeats it at the same iterations."""

    # Seen from where the queue stands now; filled in by the scheduler, never stored.
    position: int | None = None
    """Place in the queue, from 1; only while queued."""
    seconds_left: float | None = None
    """Until it is done, measured on earlier jobs; none where nothing like it was ever measured."""
    waiting: str = ""
    """Why a job at the head of the queue doesn't start, such as too little free memory."""

    # The books of store and scheduler.
    rank: int = 0
    """Order among the owner's jobs."""
    interrupted: bool = False
    """It was running when its process ended, and goes first."""
    crashes: int = 0
    """Crashes in a row without getting further."""
    machines_lost: int = 0
    """Machines that went away from it in a row, likewise."""
    crash_iteration: int = 0
    """Where it had been saved at its last crash."""
    checkpoint_iteration: int = 0
    """Where it was saved last; 0 where never."""
    process: str | None = None
    """The process that runs it, or still has to let go of it."""
    version: int = 0
    """Grows with every change of anything in the store."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Ids of all inputs that it uses, each once."""
        wanted = (self.content, *self.styles, self.start, *self.masks, self.protect)
        return tuple(dict.fromkeys(name for name in wanted if name))

    @property
    def steered_settings(self) -> Settings:
        """The settings with all that was changed on the way."""
        return reduce(lambda settings, wish: steered(settings, wish.changes), self.steering, self.settings)

    def public(self) -> dict[str, Any]:
        """What may be shown of the job, as JSON values."""
        return self.model_dump(mode="json", exclude=_BOOKS)


_BOOKS = {
    "rank",
    "interrupted",
    "crashes",
    "crash_iteration",
    "machines_lost",
    "checkpoint_iteration",
    "process",
    "version",
    "key",
}
UNSTORED = {"position", "seconds_left", "waiting"}
"""Fields of a job that depend on the moment."""


_EFFORT_PER_MASK = 0.17


# ── Work: what a job costs, in pixels times iterations ──────────────────────────────────────────────────────────────


def stage_costs(settings: Settings, width: int, height: int) -> list[tuple[int, float]]:
    """Iterations of every stage, and the pixels that one iteration of it looks at.

    Args:
        settings: Of the job.
        width: Width of the result; each coarser level has a quarter of the pixels.
        height: Its height.
    """
    levels = range(settings.levels + 1)
    pixels = [width * height / 4 ** (settings.levels - level) for level in levels]
    looked_at = [sum(pixels[: level + 1]) if settings.all_levels else pixels[level] for level in levels]
    iterations = settings.stage_iterations()
    return list(zip(iterations, looked_at[-len(iterations) :], strict=True))


def effort(masks: Collection[object]) -> float:
    """How many times longer an iteration takes where styles have regions of their own: their sums are taken apart.

    Measured on a CPU at 512 pixels; what is learnt from finished jobs refers to jobs without masks.
    """
    return 1 + _EFFORT_PER_MASK * sum(mask is not None for mask in masks)


def total_work(settings: Settings, width: int, height: int) -> float:
    """Pixels times iterations of the whole job."""
    return sum(iterations * cost for iterations, cost in stage_costs(settings, width, height))


def remaining_work(settings: Settings, width: int, height: int, progress: Progress | None) -> float:
    """Pixels times iterations still to do; stages that ended early count as done."""
    remaining = 0.0
    left = math.inf if progress is None else max(0, progress.iterations - progress.iteration)
    for iterations, cost in reversed(stage_costs(settings, width, height)):  # the last stages are those still to come
        here = min(iterations, left)
        remaining += here * cost
        left -= here
    return remaining


# ── Runs: what the scheduler hands to an executor, and what it hears from it ────────────────────────────────────────


@dataclass(frozen=True)
class Slot:
    """A place where one job at a time can compute."""

    name: str
    """Unique among the slots of the data directory, such as `cuda:0`, or `cuda:0.1` for the second of a device."""
    device: str
    kind: str
    """What it is, such as `NVIDIA H200`: jobs on devices of one kind take the same time."""


@dataclass(frozen=True)
class Run:
    """All that an executor needs to know of a job."""

    job_id: str
    attempt: int
    settings: Settings
    content: Path
    styles: tuple[Path, ...]
    start: Path | None = None
    masks: tuple[Path | None, ...] = ()
    """By the position of their styles, as in `Job`."""
    protect: Path | None = None
    steering: tuple[Wish, ...] = ()
    """What was asked for until now; more may come while it runs."""
    checkpoint: Path | None = None
    """Where the latest checkpoint is, if there is one."""
    film: bool = False
    frames: Path | None = None
    """Where the film's frames up to the latest checkpoint are, if there are any."""

    @property
    def is_guided(self) -> bool:
        """Whether a style has a region of its own, or one is protected."""
        return self.protect is not None or any(mask is not None for mask in self.masks)


@dataclass(frozen=True)
class Estimate:
    """What a run would need, and what a device has."""

    width: int
    height: int
    memory_bytes: int
    """What the run will take; where it doesn't fit, the least that would do."""
    free_bytes: int
    total_bytes: int
    largest_level: int | None
    """The finest level that fits in what a run may take of the device; none where not even level 0 does."""
    seconds: float | None = None
    network: str = ""

    def holds(self, level: int) -> bool:
        """Whether a picture of this level fits, given that nothing else runs there."""
        fits = self.largest_level is not None and level <= self.largest_level
        return fits and self.memory_bytes <= self.total_bytes


@dataclass(frozen=True)
class Preview:
    """The picture so far."""

    data: bytes
    """A JPEG file."""


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to go on from here."""

    data: bytes
    iteration: int
    frames: bytes | None = None
    """Of the film so far, where one is made."""


@dataclass(frozen=True)
class Steered:
    """The run has taken a `Wish`, after so many iterations and evaluations."""

    number: int
    iteration: int
    evaluation: int


@dataclass(frozen=True)
class Remark:
    """Something to tell the owner; it becomes a `Notice`."""

    text: str


@dataclass(frozen=True)
class Losses:
    """Points of the chart since the last ones."""

    points: tuple[LossPoint, ...]


@dataclass(frozen=True)
class Output:
    """The finished picture as an encoded file; the last update of a run that reached its end."""

    data: bytes
    format: str
    width: int
    height: int
    film: bytes | None = None
    """An encoded film, where one was asked for."""
    film_format: str = ""
    """Its file's suffix, such as `mp4`."""


Update = Progress | Preview | Checkpoint | Steered | Remark | Losses | Output
