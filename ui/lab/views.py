"""The pages. All of them are whole without JavaScript; scripts only keep them up to date and make them pleasant."""

import json
from collections.abc import Mapping
from typing import Any

import aiohttp_jinja2
from aiohttp import web

from core import __version__, config
from core.errors import RecipeError
from core.studio import Job, JobState
from core.studio.jobs import NoSuchJobError
from ui.lab import security
from ui.lab.api import STUDIO
from ui.lab.board import BOARD, OWNERS, Board
from ui.lab.media import MEDIA, WIDTHS, file_name, picture_response
from ui.lab.networks import NETWORKS
from ui.lab.shelf import SHELF, Shelf
from ui.lab.shown import LARGEST_LEVEL, job_view
from ui.lab.tables import Table
from ui.lab.threads import in_thread

_COMPARED = 60
_START_WORDS = {
    "content": "the content",
    "content+noise": "the content with noise",
    "noise": "noise alone",
    "white-noise": "white noise",
    "style": "the style",
    "image": "a given picture",
}

Context = dict[str, Any]


async def _page(request: web.Request, template: str, context: Context, *, status: int = 200) -> web.Response:
    """A page with what all pages have; it brings the session that its buttons need."""
    session = security.session_of(request)
    board = request.app[BOARD]
    shared: Context = {
        "version": __version__,
        "csrf_token": request.app[security.ACCESS].csrf_token(session),
        "tables": [table for table in board.tables.values() if not table.own],
        "network": request.app[NETWORKS].view,
        "queue": board.queue(),
        "path": request.path,
    }
    response = aiohttp_jinja2.render_template(template, request, shared | context, status=status)
    return security.keep_session(response, session)


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def show_first_table(request: web.Request) -> web.Response:
    """The front page: the first table, or, where there is none, the form for a new picture."""
    table = next(iter(request.app[BOARD].tables.values()), None)
    if table is None:
        raise web.HTTPFound("/new")
    return await _table_page(request, table)


async def show_table(request: web.Request) -> web.Response:
    """A table by its name."""
    table = request.app[BOARD].tables.get(request.match_info["name"])
    if table is None:
        raise NoSuchJobError("there is no such table", "It may be called otherwise now")
    return await _table_page(request, table)


async def _table_page(request: web.Request, table: Table) -> web.Response:
    board, shelf = request.app[BOARD], request.app[SHELF]
    context = {
        "table": table,
        "style": _common_style(shelf, table),
        "columns": _columns(shelf, table),
        "rows": _rows(board, shelf, table),
    }
    return await _page(request, "table.html", context)


def _common_style(shelf: Shelf, table: Table) -> Context | None:
    """The style of a table whose columns are settings."""
    key = next((column.head.picture for column in table.columns if not column.shows_style), None)
    return {"title": shelf.pictures[key].head.title, "picture": shelf.ready(key)} if key else None


def _columns(shelf: Shelf, table: Table) -> list[Context]:
    return [
        {"head": each.head, "picture": shelf.ready(each.head.picture), "shows_style": each.shows_style}
        for each in table.columns
    ]


def _rows(board: Board, shelf: Shelf, table: Table) -> list[Context]:
    return [
        {
            "head": row,
            "picture": shelf.ready(row.picture),
            "cells": [
                {
                    "view": board.cell((table.name, row.key, column.head.key)),
                    "caption": column.head.title,
                    "style_title": column.style_title,
                    "has_noise": bool(column.settings.noise.levels),
                }
                for column in table.columns
            ],
        }
        for row in table.rows
    ]


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def show_pictures(request: web.Request) -> web.Response:
    """What people asked for: single pictures and tables of several."""
    board = request.app[BOARD]
    jobs = [job_view(job) for job in await board.asked_for() if "table" not in job.tags]
    own = [table for table in reversed(board.tables.values()) if table.own]
    return await _page(request, "pictures.html", {"jobs": jobs, "own_tables": [(t, board.cells(t)) for t in own]})


async def show_job(request: web.Request) -> web.Response:
    """All of one picture."""
    studio, job = request.app[STUDIO], await request.app[BOARD].job(request.match_info["id"])
    context = {
        "job": job,
        "view": job_view(job),
        "facts": _facts(job),
        "recipe": await _recipe(request, job),
        "log": await studio.transitions(job.id),
        "has_noise": bool(job.settings.noise.levels) and job.settings.start in ("content+noise", "noise"),
        "downloads": ("png", "jpeg", "webp") if job.result else (),
    }
    return await _page(request, "job.html", context)


def _facts(job: Job) -> list[tuple[str, str]]:
    """The settings that people ask about, in words."""
    settings = job.settings
    optimizer, loss, noise = settings.optimizer, settings.loss, settings.noise
    name = "L-BFGS" if optimizer.name == "lbfgs" else "Adam"
    stages = settings.levels if settings.all_levels and optimizer.schedule == "coarse-first" else 0
    before = f"{stages} × {optimizer.coarse_iterations} + " if stages else ""
    return [
        ("Preset", settings.title or "own settings"),
        ("Size", f"{job.width} × {job.height}, level {settings.levels}"),
        ("Network", job.network),
        ("Begins with", _START_WORDS[settings.start]),
        ("Noise", f"{noise.strength:.0%} in {len(noise.levels)} sizes" if noise.levels else "none"),
        ("Content weight", f"{loss.content_weight:g}"),
        ("Style weight", f"{loss.style_weight:g}"),
        ("Iterations", f"{before}{optimizer.iterations} of {name}"),
        ("Seed", str(settings.seed)),
    ]


async def _recipe(request: web.Request, job: Job) -> str:
    """What the finished file says of itself; before there is one, the settings."""
    recipe: Mapping[str, Any] | None = {"settings": job.settings.model_dump(mode="json")}
    if job.result:
        data = await request.app[STUDIO].result_bytes(job.id)
        recipe = await in_thread(_recipe_in, data) or recipe
    return json.dumps(recipe, indent=2, ensure_ascii=False)


def _recipe_in(data: bytes) -> Mapping[str, Any] | None:
    from core import images  # noqa: PLC0415

    try:
        return images.read_recipe(data)
    except RecipeError:
        return None


async def show_new(request: web.Request) -> web.Response:
    """The form for new pictures; `?like=ID` begins with that job's settings."""
    board, shelf = request.app[BOARD], request.app[SHELF]
    like = await board.job(request.query["like"]) if "like" in request.query else None
    settings = like.settings if like else config.load()
    choices = {
        kind: [(picture.head, shelf.ready(key)) for key, picture in shelf.pictures.items() if picture.kind == kind]
        for kind in ("content", "style")
    }
    context = {
        "choices": choices,
        "presets": config.presets(),
        "default_preset": config.DEFAULT_PRESET,
        "levels": [(level, 256 * 2**level) for level in range(LARGEST_LEVEL + 1)],
        "settings": settings,
        "like": like,
        "like_title": job_view(like).texts.title if like else "",
        "like_settings": settings.model_dump_json() if like else "",
    }
    return await _page(request, "new.html", context)


async def show_comparison(request: web.Request) -> web.Response:
    """Two results side by side."""
    board, query = request.app[BOARD], request.query
    left, right = [await board.job(query[side]) if query.get(side) else None for side in ("left", "right")]
    done: list[Job] = []
    for owner in OWNERS:
        done += await request.app[STUDIO].jobs(owner=owner, states=[JobState.DONE], limit=_COMPARED)
    if left:  # those of the same content first: they have most to say to each other
        done.sort(key=lambda job: (job.content != left.content, -job.created))
    context = {
        "left": job_view(left) if left else None,
        "right": job_view(right) if right else None,
        "choices": [job_view(job) for job in done],
    }
    return await _page(request, "compare.html", context)


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def send_input(request: web.Request) -> web.Response:
    """A content or style, small."""
    data = await request.app[MEDIA].input(request.match_info["id"], int(request.match_info["width"]))
    return picture_response(request, data, "jpeg")


async def send_small_result(request: web.Request) -> web.Response:
    """A result, small."""
    job = await request.app[BOARD].job(request.match_info["id"])
    return picture_response(request, await request.app[MEDIA].result(job, int(request.match_info["width"])), "jpeg")


async def send_result(request: web.Request) -> web.Response:
    """A result in full, in the format that the address names; with `?download`, to be kept."""
    job, kind = await request.app[BOARD].job(request.match_info["id"]), request.match_info["kind"]
    response = picture_response(request, await request.app[MEDIA].converted(job, kind), kind)
    if "download" in request.query:
        response.headers["Content-Disposition"] = f'attachment; filename="{file_name(job, kind)}"'
    return response


async def send_preview(request: web.Request) -> web.Response:
    """A picture that is still forming."""
    job = await request.app[BOARD].job(request.match_info["id"])
    return picture_response(request, await request.app[STUDIO].preview_bytes(job.id), "jpeg")


async def send_noise(request: web.Request) -> web.Response:
    """The noise that a picture began with."""
    job = await request.app[BOARD].job(request.match_info["id"])
    return picture_response(request, await request.app[MEDIA].noise(job), "jpeg")


async def send_start(request: web.Request) -> web.Response:
    """The picture that an optimisation began with."""
    job = await request.app[BOARD].job(request.match_info["id"])
    return picture_response(request, await request.app[MEDIA].start(job), "jpeg")


_ID = "{id:[0-9a-f]{24}}"
_WIDTH = f"{{width:{'|'.join(map(str, WIDTHS))}}}"


def routes() -> list[web.RouteDef]:
    """Pages and pictures."""
    return [
        web.get("/", show_first_table, name="home"),
        web.get("/tables/{name:[a-z][a-z0-9-]{0,30}}", show_table, name="table"),
        web.get("/pictures", show_pictures, name="pictures"),
        web.get(f"/jobs/{_ID}", show_job, name="job"),
        web.get("/new", show_new, name="new"),
        web.get("/compare", show_comparison, name="compare"),
        web.get(f"/media/inputs/{_ID}/{_WIDTH}.jpg", send_input),
        web.get(f"/media/jobs/{_ID}/{_WIDTH}.jpg", send_small_result),
        web.get(f"/media/jobs/{_ID}/result.{{kind:png|jpeg|webp}}", send_result),
        web.get(f"/media/jobs/{_ID}/preview.jpg", send_preview),
        web.get(f"/media/jobs/{_ID}/noise.jpg", send_noise),
        web.get(f"/media/jobs/{_ID}/start.jpg", send_start),
    ]


__all__ = ["routes"]
