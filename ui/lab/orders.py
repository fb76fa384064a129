"""Asking for pictures through the JSON interface: taking pictures and masks in, estimates, jobs, tables, sweeps."""

from aiohttp import web

from core.errors import SettingsError
from core.studio import Job
from core.studio.jobs import effort
from ui.lab import own_tables
from ui.lab.board import BOARD, LAB_OWNER, STUDIO, Regions, Wanted
from ui.lab.messages import EstimateView, MaskList, MaskView, TableName, UploadList, UploadView
from ui.lab.requests import EstimateRequest, JobRequest, PictureRef, SweepRequest, TableRequest
from ui.lab.shelf import SHELF
from ui.lab.shown import JobView, duration, job_view, memory
from ui.lab.tables import Table
from ui.lab.uploads import UPLOADS


async def create_job(request: web.Request, body: JobRequest) -> JobView:
    """Puts one picture into the queue."""
    return job_view(await submit_job(request, body))


async def submit_job(request: web.Request, body: JobRequest) -> Job:
    """The job that a request asks for."""
    content, *styles = [await _wanted(request, picture) for picture in (body.content, *body.styles)]
    regions = Regions(body.masks, body.protect)
    return await request.app[BOARD].submit(
        content, styles, body.resolved(), regions, dials=body.wanted.dials, film=body.film
    )


async def estimate(request: web.Request, body: EstimateRequest) -> EstimateView:
    """What pictures would need, before anything is started."""
    column = body.columns[0]
    content, *styles = [await _wanted(request, picture) for picture in (body.contents[0], *column)]
    inputs = [style.input for style in styles]
    masks = [style.mask for style in column]
    found = await request.app[STUDIO].estimate(
        body.wanted.resolved(column), content.input, inputs, masks=masks, protect=body.protect
    )
    count = len(body.contents) * len(body.columns) * body.times
    painted = effort(range(body.regions))
    seconds = None if found.seconds is None else count * painted * found.seconds
    took = "time not measured yet" if seconds is None else f"about {duration(seconds)}"
    number = "" if count == 1 else f"{count} pictures · "
    return EstimateView(
        pictures=count,
        width=found.width,
        height=found.height,
        memory_bytes=found.memory_bytes,
        free_bytes=found.free_bytes,
        seconds=seconds,
        network=found.network,
        text=f"{number}{found.width} × {found.height} · {took} · {memory(found.memory_bytes)} of memory",
    )


async def upload_pictures(request: web.Request) -> UploadList:
    """Takes pictures in, as a form whose parts are files called `picture`."""
    uploads = await request.app[UPLOADS].receive(request)
    views = []
    for upload in uploads:
        input_id = await request.app[STUDIO].add_input(LAB_OWNER, upload.data)
        views.append(
            UploadView(
                id=input_id,
                title=upload.title,
                width=upload.width,
                height=upload.height,
                thumbnail=f"/media/inputs/{input_id}/320.jpg?v=1",
                notices=upload.notices,
                settings=upload.settings,
            )
        )
    return UploadList(pictures=tuple(views))


async def upload_masks(request: web.Request) -> MaskList:
    """Takes regions in: grey pictures, white inside, as a form whose parts are files called `picture`."""
    views = []
    for mask in await request.app[UPLOADS].receive_masks(request):
        input_id = await request.app[STUDIO].add_input(LAB_OWNER, mask.data)
        views.append(
            MaskView(
                id=input_id,
                title=mask.title,
                width=mask.width,
                height=mask.height,
                share=mask.share,
                thumbnail=f"/media/inputs/{input_id}/320.jpg?v=1",
            )
        )
    return MaskList(masks=tuple(views))


async def create_table(request: web.Request, body: TableRequest) -> TableName:
    """Puts every content in every style, or in all of them together, into the queue, as a table."""
    contents = [await _wanted(request, picture) for picture in body.contents]
    columns = []
    for column in body.columns:
        styles = [await _wanted(request, style) for style in column]
        columns.append(own_tables.column([style.pair for style in styles], body.wanted.resolved(column)))
    asked = own_tables.gallery([content.pair for content in contents], columns)
    return table_name(await request.app[BOARD].add_table(asked))


async def create_sweep(request: web.Request, body: SweepRequest) -> TableName:
    """Puts one picture under several values of one or two settings into the queue, as a table."""
    content, *styles = [await _wanted(request, picture) for picture in (body.content, *body.styles)]
    settings = body.resolved()
    down = own_tables.axis(body.rows.setting, body.rows.values, len(styles))
    across = own_tables.axis(body.columns.setting, body.columns.values, len(styles)) if body.columns else None
    pairs = [style.pair for style in styles]
    asked = own_tables.sweep(content.pair, pairs, settings, down, across, masks=body.masks, protect=body.protect)
    return table_name(await request.app[BOARD].add_table(asked))


def table_name(table: Table) -> TableName:
    """A table as it is called."""
    return TableName(name=table.name, title=table.title, page=f"/tables/{table.name}")


async def _wanted(request: web.Request, reference: PictureRef) -> Wanted:
    """The picture that a request refers to."""
    shelf = request.app[SHELF]
    if reference.sample is not None:
        input_id = await shelf.get(reference.sample)
        return Wanted(input_id, reference.title or shelf.pictures[reference.sample].head.title)
    if reference.id is None:
        raise SettingsError("a picture needs an id or a sample")
    await request.app[STUDIO].input_path(reference.id)
    return Wanted(reference.id, reference.title or "Picture")
