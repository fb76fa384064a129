"""The JSON interface: its handlers, and `OPERATIONS`, of which both the routes and the OpenAPI document are made."""

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import BaseModel

from core import __version__, config
from core.errors import SettingsError, UserError
from core.studio import Job, JobState
from core.studio.jobs import JobStateError, NoSuchJobError, QueueFullError, StorageError
from ui.lab import events, orders, security, steering
from ui.lab.board import BOARD, OWNERS, STUDIO, QueueView
from ui.lab.messages import (
    CsrfToken,
    EstimateView,
    Health,
    JobDetail,
    JobList,
    MaskList,
    Nothing,
    PresetList,
    PresetView,
    Problem,
    SampleList,
    SampleView,
    TableList,
    TableName,
    TableView,
    UploadList,
)
from ui.lab.metrics import METRICS
from ui.lab.networks import NETWORKS, NetworkView
from ui.lab.openapi import FORM, Operation, document
from ui.lab.requests import (
    Attempt,
    EnlargeRequest,
    EstimateRequest,
    JobRequest,
    QueueRequest,
    SteerRequest,
    SweepRequest,
    TableRequest,
    understand,
)
from ui.lab.shelf import SHELF
from ui.lab.shown import LARGEST_LEVEL, JobView, job_view

_BODY_SECONDS = 20.0


# ── Handlers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def list_jobs(request: web.Request) -> JobList:
    """Jobs, the newest first; with `?state=` only those in a state, with `?table=` only those of a table."""
    query = request.query
    tags = {"table": query["table"]} if "table" in query else None
    states = [_state(query["state"])] if "state" in query else []
    limit = min(500, int(_number(query.get("limit", "100"))))
    before = _number(query["before"]) if "before" in query else None
    jobs = await request.app[STUDIO].jobs(states=states, tags=tags, limit=limit, before=before)
    return JobList(jobs=tuple(job_view(job) for job in jobs if job.owner in OWNERS))


async def show_job(request: web.Request) -> JobDetail:
    """All of one job."""
    job, studio = await _job(request), request.app[STUDIO]
    return JobDetail(
        job=job_view(job),
        settings=job.settings,
        notices=job.notices,
        error=Problem(cause=job.error.cause, remedy=job.error.remedy) if job.error else None,
        losses=tuple(await studio.losses(job.id)),
        log=tuple(await studio.transitions(job.id)),
    )


async def delete_job(request: web.Request) -> Nothing:
    """Deletes a job and its picture, whatever its state."""
    await request.app[STUDIO].delete((await _job(request)).id)
    return Nothing()


async def cancel_job(request: web.Request, body: Attempt) -> JobView:
    """Ends a job that is not finished."""
    return job_view(await request.app[STUDIO].cancel((await _job(request)).id, body.attempt))


async def pause_job(request: web.Request) -> JobView:
    """Holds a job."""
    return job_view(await request.app[STUDIO].pause((await _job(request)).id))


async def resume_job(request: web.Request) -> JobView:
    """Lets a paused job go on."""
    return job_view(await request.app[STUDIO].resume((await _job(request)).id))


async def retry_job(request: web.Request) -> JobView:
    """Begins a failed or cancelled job again."""
    return job_view(await request.app[STUDIO].retry((await _job(request)).id))


async def enlarge_job(request: web.Request, body: EnlargeRequest) -> JobView:
    """Asks for the same picture, with the same seed and noise, at the next level or another one above."""
    job = await _job(request)
    level = job.settings.levels + 1 if body.level is None else body.level
    if job.state is not JobState.DONE or not job.settings.levels < level <= LARGEST_LEVEL:
        raise JobStateError("this picture can't be enlarged", "Wait until it is done, and choose a larger size")
    return job_view(await request.app[BOARD].enlarge(job, level))


async def steer_job(request: web.Request, body: SteerRequest) -> JobView:
    """Gives a picture that is being painted other weights; it goes on with them from where it is."""
    job = await _job(request)
    wish = steering.wish_of(job, body.dials, body.weights)
    return job_view(await request.app[STUDIO].steer(job.id, body.attempt, wish.changes, wish.text))


async def list_samples(request: web.Request) -> SampleList:
    """The pictures to choose from."""
    shelf = request.app[SHELF]
    views = []
    for key, picture in shelf.pictures.items():
        input_id = shelf.ready(key)
        thumbnail = f"/media/inputs/{input_id}/320.jpg?v=1" if input_id else None
        views.append(SampleView(key=key, title=picture.head.title, kind=picture.kind, thumbnail=thumbnail))
    return SampleList(samples=tuple(views))


async def list_presets(request: web.Request) -> PresetList:
    """The presets."""
    views = [PresetView(name=p.name, title=p.title, description=p.description) for p in config.presets()]
    return PresetList(presets=tuple(views))


async def list_tables(request: web.Request) -> TableList:
    """The tables."""
    return TableList(tables=tuple(orders.table_name(table) for table in request.app[BOARD].tables.values()))


async def show_table(request: web.Request) -> TableView:
    """One table with what is in its cells."""
    board = request.app[BOARD]
    table = board.tables.get(request.match_info["name"])
    if table is None:
        raise NoSuchJobError("there is no such table")
    return TableView(
        **orders.table_name(table).model_dump(),
        rows=tuple(row.title for row in table.rows),
        columns=tuple(column.head.title for column in table.columns),
        cells=tuple(board.cells(table)),
    )


async def show_queue(request: web.Request) -> QueueView:
    """How busy the studio is."""
    return request.app[BOARD].queue()


async def change_queue(request: web.Request, body: QueueRequest) -> QueueView:
    """Pauses the queue, or lets it go on; running jobs are not touched."""
    studio = request.app[STUDIO]
    await (studio.pause_queue() if body.paused else studio.resume_queue())
    return request.app[BOARD].queue()


async def show_network(request: web.Request) -> NetworkView:
    """The network that new pictures are made with."""
    return request.app[NETWORKS].view


async def fetch_network(request: web.Request) -> NetworkView:
    """Begins to fetch VGG-19; the stream of events says how it goes."""
    request.app[NETWORKS].fetch()
    return request.app[NETWORKS].view


async def csrf(request: web.Request) -> web.Response:
    """The token that changes have to carry."""
    session = security.session_of(request)
    token = CsrfToken(token=request.app[security.ACCESS].csrf_token(session))
    return security.keep_session(json_response(token), session)


@security.public
async def healthz(request: web.Request) -> web.Response:
    """Whether the lab works: 200, or 503 where a device is beyond use and the process should be restarted."""
    failing = request.app[STUDIO].fatal is not None
    health = Health(status="failing" if failing else "ok", version=__version__)
    return json_response(health, status=503 if failing else 200)


async def show_metrics(request: web.Request) -> web.Response:
    """Numbers for Prometheus."""
    return await request.app[METRICS].response(request.app)


async def openapi(request: web.Request) -> web.Response:
    """This document."""
    return web.json_response(document(OPERATIONS))


# ── Pieces of handlers ───────────────────────────────────────────────────────────────────────────────────────────────


async def _job(request: web.Request) -> Job:
    return await request.app[BOARD].job(request.match_info["id"])


def _state(name: str) -> JobState:
    try:
        return JobState(name)
    except ValueError:
        raise SettingsError(f"there is no state '{name}'", f"States are {', '.join(JobState)}") from None


def _number(text: str) -> float:
    if not re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
        raise SettingsError(f"'{text[:20]}' is not a number")
    return float(text)


# ── From handlers to routes ──────────────────────────────────────────────────────────────────────────────────────────

OPERATIONS = (
    Operation("GET", "/api/jobs", list_jobs, JobList, query=("state", "table", "limit", "before")),
    Operation("POST", "/api/jobs", orders.create_job, JobView, JobRequest, 201),
    Operation("GET", "/api/jobs/{id}", show_job, JobDetail),
    Operation("DELETE", "/api/jobs/{id}", delete_job, Nothing),
    Operation("POST", "/api/jobs/{id}/cancel", cancel_job, JobView, Attempt),
    Operation("POST", "/api/jobs/{id}/pause", pause_job, JobView),
    Operation("POST", "/api/jobs/{id}/resume", resume_job, JobView),
    Operation("POST", "/api/jobs/{id}/retry", retry_job, JobView),
    Operation("POST", "/api/jobs/{id}/enlarge", enlarge_job, JobView, EnlargeRequest, 201),
    Operation("POST", "/api/jobs/{id}/steer", steer_job, JobView, SteerRequest),
    Operation("POST", "/api/estimate", orders.estimate, EstimateView, EstimateRequest),
    Operation("POST", "/api/pictures", orders.upload_pictures, UploadList, FORM, 201),
    Operation("POST", "/api/masks", orders.upload_masks, MaskList, FORM, 201),
    Operation("GET", "/api/samples", list_samples, SampleList),
    Operation("GET", "/api/presets", list_presets, PresetList),
    Operation("GET", "/api/tables", list_tables, TableList),
    Operation("POST", "/api/tables", orders.create_table, TableName, TableRequest, 201),
    Operation("GET", "/api/tables/{name}", show_table, TableView),
    Operation("POST", "/api/sweeps", orders.create_sweep, TableName, SweepRequest, 201),
    Operation("GET", "/api/queue", show_queue, QueueView),
    Operation("PUT", "/api/queue", change_queue, QueueView, QueueRequest),
    Operation("GET", "/api/network", show_network, NetworkView),
    Operation("POST", "/api/network", fetch_network, NetworkView, None, 202),
    Operation("GET", "/api/events", events.stream, "text/event-stream", query=("table", "job")),
    Operation("GET", "/api/csrf", csrf, CsrfToken),
    Operation("GET", "/api/openapi.json", openapi, "application/json"),
    Operation("GET", "/healthz", healthz, Health),
    Operation("GET", "/metrics", show_metrics, "text/plain"),
)


def routes() -> list[web.RouteDef]:
    """The operations as routes."""
    return [web.route(each.method, each.route_path, _handler(each), name=each.name) for each in OPERATIONS]


def _handler(operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    @functools.wraps(operation.handler)
    async def handle(request: web.Request) -> web.StreamResponse:
        model = operation.takes
        if isinstance(model, type):
            answer = await operation.handler(request, await _body(request, model))
        else:
            answer = await operation.handler(request)
        return json_response(answer, status=operation.status) if isinstance(answer, BaseModel) else answer

    return handle


async def _body(request: web.Request, model: type[BaseModel]) -> BaseModel:
    if not request.can_read_body and not any(field.is_required() for field in model.model_fields.values()):
        return model()
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="Send JSON.")
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return understand(model, await request.read())
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"Sending took more than {_BODY_SECONDS:g} seconds.") from None


def json_response(model: BaseModel, *, status: int = 200) -> web.Response:
    """A model as JSON."""
    return web.Response(text=model.model_dump_json(), status=status, content_type="application/json")


_STATUSES: tuple[tuple[type[UserError], int], ...] = (
    (NoSuchJobError, 404),
    (JobStateError, 409),
    (QueueFullError, 429),
    (StorageError, 507),
)


def status_of(error: UserError) -> int:
    """The HTTP status for a mistake of the user's: 422 where none says it better."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 422)
