"""What is shown of a job: its numbers in words, the address of its picture, and what may be done with it.

Pages, the stream of events and the JSON interface all show the same view, so that a page that was rendered by the
server and one that was updated by the stream read alike.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from core.config import MAX_LEVEL
from core.steering import steered
from core.studio import Job, JobState
from core.studio.jobs import LevelLoss

Action = Literal["cancel", "pause", "resume", "retry", "enlarge"]

LARGEST_LEVEL = min(3, MAX_LEVEL)
"""The finest level that the page offers: a shorter side of 2048 pixels."""

_ACTIONS: dict[JobState, tuple[Action, ...]] = {
    JobState.QUEUED: ("pause", "cancel"),
    JobState.RUNNING: ("pause", "cancel"),
    JobState.PAUSED: ("resume", "cancel"),
    JobState.DONE: ("enlarge",),
    JobState.FAILED: ("retry",),
    JobState.CANCELLED: ("retry",),
}
_STATES = {
    JobState.QUEUED: "Waiting",
    JobState.RUNNING: "Painting",
    JobState.PAUSED: "Paused",
    JobState.DONE: "Done",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Cancelled",
}


class Model(BaseModel):
    """A value that leaves the house as JSON; what isn't declared doesn't."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Texts(Model):
    """A job in words, ready to be shown."""

    title: str
    state: str
    status: str
    """Percent and time left, or the place in the queue, or what it took: one line."""
    steps: str
    """Iteration, evaluation and loss."""
    size: str
    """W × H in pixels."""
    alt: str
    """What the picture shows, for those who can't see it."""
    note: str
    """Why it failed, or what its owner should know."""


class SteeringView(Model):
    """Other weights that someone asked for while a picture was being painted."""

    iteration: int | None
    """After which they hold; none until they do."""
    text: str
    """Where and what: `At iteration 37: content 5 → 7`."""
    content_weight: float
    """From then on; for the chart."""
    style_weight: float


class JobView(Model):
    """A job as it is now."""

    id: str
    attempt: int
    state: JobState
    fraction: float
    """Share of the work that is done."""
    level: int
    width: int
    height: int
    network: str
    iteration: int
    iterations: int
    evaluations: int
    loss: float | None
    levels: tuple[LevelLoss, ...]
    """The terms of the loss at every level, for the chart."""
    seconds: float
    """Computing time so far."""
    seconds_left: float | None
    position: int | None
    """Place in the queue, from 1."""
    created: float
    finished: float | None
    page: str
    """Address of the job's page."""
    picture: str | None
    """Address of the latest picture, another one for every version."""
    pictures: str
    """Addresses of the same picture in other sizes, as an `srcset`."""
    download: str | None
    """Address of the finished picture."""
    film: str | None
    """Address of the film of how it came to be."""
    steering: tuple[SteeringView, ...]
    """What was changed on the way, in its order."""
    actions: tuple[Action, ...]
    texts: Texts


class CellView(Model):
    """One cell of a table as it is now."""

    table: str
    row: str
    column: str
    job: JobView | None
    """The job that matters most; none before there is one."""
    problem: str
    """Why there can't be one."""


def title(job: Job) -> str:
    """What to call a job."""
    content, style = job.tags.get("content_title"), job.tags.get("style_title")
    return f"{content} × {style}" if content and style else f"Picture {job.id[:6]}"


def job_view(job: Job, earlier: Job | None = None) -> JobView:
    """A job as it is shown.

    Args:
        job: The job.
        earlier: A finished, smaller picture of the same; it is shown until `job` has got further.
    """
    progress = job.progress
    picture, pictures = _picture(job, earlier)
    finished = job if job.result else earlier
    return JobView(
        id=job.id,
        attempt=job.attempt,
        state=job.state,
        fraction=1.0 if job.state is JobState.DONE else progress.fraction if progress else 0.0,
        level=job.settings.levels,
        width=job.width,
        height=job.height,
        network=job.network,
        iteration=progress.iteration if progress else 0,
        iterations=progress.iterations if progress else 0,
        evaluations=progress.evaluations if progress else 0,
        loss=progress.loss if progress else None,
        levels=progress.levels if progress else (),
        seconds=progress.seconds if progress else 0.0,
        seconds_left=job.seconds_left,
        position=job.position,
        created=job.created,
        finished=job.finished,
        page=f"/jobs/{job.id}",
        picture=picture,
        pictures=pictures,
        download=f"/media/jobs/{finished.id}/result.png" if finished else None,
        film=f"/media/jobs/{job.id}/film{Path(job.result.film).suffix}" if job.result and job.result.film else None,
        steering=_steering(job),
        actions=_actions(job),
        texts=_texts(job),
    )


def _steering(job: Job) -> tuple[SteeringView, ...]:
    views, settings = [], job.settings
    for wish in job.steering:
        settings = steered(settings, wish.changes)
        when = "With the next iteration" if wish.iteration is None else f"At iteration {wish.iteration}"
        views.append(
            SteeringView(
                iteration=wish.iteration,
                text=f"{when}: {wish.text}",
                content_weight=settings.loss.content_weight,
                style_weight=settings.loss.style_weight,
            )
        )
    return tuple(views)


def _actions(job: Job) -> tuple[Action, ...]:
    if job.state is JobState.DONE and job.settings.levels >= LARGEST_LEVEL:
        return ()
    return _ACTIONS[job.state]


def _picture(job: Job, earlier: Job | None) -> tuple[str | None, str]:
    """The address to show, and those of its other sizes."""
    if job.result:
        return _finished_picture(job)
    if earlier and earlier.result and (job.progress is None or job.progress.width <= earlier.width):
        return _finished_picture(earlier)
    if job.preview is not None:
        return f"/media/jobs/{job.id}/preview.jpg?v={job.preview}", ""
    return None, ""


def _finished_picture(job: Job) -> tuple[str, str]:
    addresses = {width: f"/media/jobs/{job.id}/{width}.jpg?v={job.attempt}" for width in (640, 1280)}
    srcset = ", ".join(f"{address} {min(width, job.width)}w" for width, address in addresses.items())
    return addresses[640], srcset if job.width > 640 else ""


def _texts(job: Job) -> Texts:
    status, steps = _status(job), _steps(job)
    return Texts(
        title=title(job),
        state=_STATES[job.state],
        status=status,
        steps=steps,
        size=f"{job.width} × {job.height}",
        alt=_alt(job),
        note=_note(job),
    )


def _alt(job: Job) -> str:
    content, style = job.tags.get("content_title", "The picture"), job.tags.get("style_title", "the style")
    described = f"{content} in the style of {style}"
    return described if job.result else f"{described}, not finished"


def _note(job: Job) -> str:
    if job.error:
        told = str(job.error)
        return told[:1].upper() + told[1:]
    return job.notices[-1].text if job.notices else ""


def _status(job: Job) -> str:
    progress = job.progress
    match job.state:
        case JobState.QUEUED:
            return _in_queue(job)
        case JobState.RUNNING:
            left = f"{duration(job.seconds_left)} left" if job.seconds_left is not None else "starting"
            return f"{percent(progress.fraction)} · {left}" if progress else "starting"
        case JobState.PAUSED:
            return f"Paused at {percent(progress.fraction)}" if progress else "Paused"
        case JobState.DONE:
            return f"{job.width} × {job.height} in {duration(job.result.seconds)}" if job.result else "Done"
        case _:
            return _STATES[job.state]


def _in_queue(job: Job) -> str:
    if job.waiting:
        return job.waiting[:1].upper() + job.waiting[1:]
    place = f"{ordinal(job.position)} in the queue" if job.position else "Waiting"
    return f"{place} · {duration(job.seconds_left)}" if job.seconds_left is not None else place


def _steps(job: Job) -> str:
    progress = job.progress
    if progress is None:
        return ""
    iteration = f"iteration {progress.iteration} of {progress.iterations}"
    return f"{iteration} · {progress.evaluations} evaluations · loss {progress.loss:.3g}"


# ── Numbers in words ─────────────────────────────────────────────────────────────────────────────────────────────────


def percent(fraction: float) -> str:
    """0.426 → "42 %": never 100 before the end."""
    return f"{int(100 * fraction)} %"


def ordinal(number: int) -> str:
    """1 → "1st", 12 → "12th"."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: "8 s", "3 min", "1 h 20 min"; no line breaks inside."""
    if seconds < 100:
        return f"{max(1, round(seconds))}\xa0s"
    minutes = round(seconds / 60)
    return f"{minutes}\xa0min" if minutes < 90 else f"{minutes // 60}\xa0h {minutes % 60:02d}\xa0min"


def memory(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
