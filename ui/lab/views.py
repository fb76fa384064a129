"""The pages. All of them are whole without JavaScript; scripts only keep them up to date and make them pleasant."""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from core import dials
from core.errors import RecipeError
from core.studio import Job, JobState
from core.studio.jobs import NoSuchJobError
from ui.lab import new, steering
from ui.lab.board import BOARD, OWNERS, STUDIO, Board
from ui.lab.media import FILMS, MEDIA, WIDTHS, file_name, picture_response
from ui.lab.new import COLOURS
from ui.lab.pages import Context, page
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
        "larger_levels": [(level, 256 * 2**level) for level in range(table.level + 1, LARGEST_LEVEL + 1)],
    }
    return await page(request, "table.html", context)


def _common_style(shelf: Shelf, table: Table) -> Context | None:
    """The style, or the first of several, of a table whose columns are settings."""
    column = next((column for column in table.columns if not column.shows_style), None)
    if column is None:
        return None
    known = shelf.pictures.get(column.head.picture)
    title = known.head.title if known else column.style_title
    return {"title": title, "picture": shelf.ready(column.head.picture)}


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
    return await page(request, "pictures.html", {"jobs": jobs, "own_tables": [(t, board.cells(t)) for t in own]})


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
        "steering_dials": steering.DIALS,
        "dial_range": {"low": f"{dials.LOW:g}", "high": f"{dials.HIGH:g}"},
        "reading": steering.reading(job),
        "style_weights": list(zip(steering.style_titles(job), steering.weights(job), strict=True)),
    }
    return await page(request, "job.html", context)


def _facts(job: Job) -> list[tuple[str, str]]:
    """The settings that people ask about, in words."""
    settings = job.settings
    optimizer, loss, noise = settings.optimizer, settings.loss, settings.noise
    name = "L-BFGS" if optimizer.name == "lbfgs" else "Adam"
    return [
        ("Preset", settings.title or "own settings"),
        ("Size", f"{job.width} × {job.height}, level {settings.levels}"),
        ("Network", job.network),
        ("Begins with", _START_WORDS[settings.start]),
        ("Noise", f"{noise.strength:.0%} in {len(noise.levels)} sizes" if noise.levels else "none"),
        ("Colours", COLOURS[settings.colour][0]),
        ("Content weight", f"{loss.content_weight:g}"),
        ("Style weight", f"{loss.style_weight:g}"),
        *_style_facts(job),
        ("Iterations", f"{' + '.join(map(str, settings.stage_iterations()))} of {name}"),
        ("Seed", str(settings.seed)),
    ]


def _style_facts(job: Job) -> list[tuple[str, str]]:
    """Weight and scale of every style, where there is something to say of them."""
    if not job.settings.styles and len(job.styles) == 1:
        return []
    styles = [job.settings.style(number) for number in range(len(job.styles))]
    titles = steering.style_titles(job)
    return [
        (title, f"weight {style.weight:g}, scale {style.scale:g}") for title, style in zip(titles, styles, strict=True)
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
    return await page(request, "compare.html", context)


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


async def send_film(request: web.Request) -> web.Response:
    """How a result came to be; with `?download`, to be kept."""
    job, kind = await request.app[BOARD].job(request.match_info["id"]), request.match_info["kind"]
    data = await request.app[MEDIA].film(job, kind)
    response = picture_response(request, data, kind)
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
        web.get("/new", new.show_new, name="new"),
        web.post("/new", new.create_from_form),
        web.get("/compare", show_comparison, name="compare"),
        web.get(f"/media/inputs/{_ID}/{_WIDTH}.jpg", send_input),
        web.get(f"/media/jobs/{_ID}/{_WIDTH}.jpg", send_small_result),
        web.get(f"/media/jobs/{_ID}/result.{{kind:png|jpeg|webp}}", send_result),
        web.get(f"/media/jobs/{_ID}/film.{{kind:{'|'.join(FILMS)}}}", send_film),
        web.get(f"/media/jobs/{_ID}/preview.jpg", send_preview),
        web.get(f"/media/jobs/{_ID}/noise.jpg", send_noise),
        web.get(f"/media/jobs/{_ID}/start.jpg", send_start),
    ]


__all__ = ["routes"]
