"""The form for new pictures: as a page, and as what a browser without scripts sends."""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from core import config, dials
from core.config import Settings
from core.errors import UserError
from core.studio import Job
from ui.lab import experts, own_tables, security
from ui.lab.board import BOARD, LAB_OWNER, STUDIO
from ui.lab.messages import Problem
from ui.lab.orders import submit_job
from ui.lab.pages import Context, page
from ui.lab.requests import MOST_STYLES, JobRequest, understand
from ui.lab.shelf import SHELF
from ui.lab.shown import LARGEST_LEVEL, job_view
from ui.lab.uploads import UPLOADS, Form

COLOURS = {
    "style": ("The style’s", "The picture takes the colours of the style."),
    "content": ("The content’s own", "Only light and dark are painted; every place keeps its colour."),
    "matched": ("Matched", "The style is first recoloured to the content’s average and spread of colours."),
    "histogram": ("Matched closely", "The same by the whole distribution of colours."),
    "palette": ("The style’s alone", "No colour that the style doesn’t have."),
}
"""What to call each mode of colours, and what it does."""

SUGGESTED_VALUES = {
    "content": "3, 5, 7",
    "style": "3, 5, 7",
    "noise": "0, 5, 10",
    own_tables.SCALE: "0.5, 1, 2",
    own_tables.BETWEEN: "5",
    "colour": "style, content, matched, histogram, palette",
    "seed": "1, 2, 3, 4",
    "pooling": "max, average",
    "optimizer.name": "lbfgs, adam",
    "loss.tv_weight": "0, 0.1, 1",
    "loss.level_weights": "1; 1, 0.5; 0.5, 1",
    "noise.gradient_weight": "0, 0.5, 1",
}
"""For the axes of a sweep."""

_PLAIN_STYLES = range(1, 4)
"""How many styles the form has for browsers without scripts."""


async def show_new(request: web.Request) -> web.Response:
    """The form; `?like=ID` begins with that job's settings."""
    like = await request.app[BOARD].job(request.query["like"]) if "like" in request.query else None
    return await _form(request, like, {})


async def _form(
    request: web.Request, like: Job | None, given: Mapping[str, str], problem: UserError | None = None
) -> web.Response:
    """The form as it was given before, with what was wrong with it."""
    shelf = request.app[SHELF]
    settings = like.steered_settings if like else config.load()
    choices = {
        kind: [(picture.head, shelf.ready(key)) for key, picture in shelf.pictures.items() if picture.kind == kind]
        for kind in ("content", "style")
    }
    presets = config.presets()
    context: Context = {
        "choices": choices,
        "presets": presets,
        "default_preset": config.DEFAULT_PRESET,
        "levels": [(level, 256 * 2**level) for level in range(LARGEST_LEVEL + 1)],
        "largest_level": LARGEST_LEVEL,
        "sweep_levels": [(level, 256 * 2**level) for level in range(own_tables.LARGEST_SWEEP_LEVEL + 1)],
        "settings": settings,
        "like": like,
        "like_title": job_view(like).texts.title if like else "",
        "like_settings": settings.model_dump_json() if like else "",
        "dials": dials.DIALS,
        "dial_range": {"low": f"{dials.LOW:g}", "preset": f"{dials.PRESET:g}", "high": f"{dials.HIGH:g}"},
        "colours": COLOURS,
        "experts": experts.fields(settings),
        "expert_values": json.dumps({preset.name: experts.values(config.load(preset.name)) for preset in presets}),
        "axes": [(key, title, SUGGESTED_VALUES.get(key, "")) for key, title in own_tables.axes().items()],
        "most_cells": own_tables.MOST_CELLS,
        "most_styles": MOST_STYLES,
        "plain_styles": _PLAIN_STYLES,
        "given": given,
        "problem": Problem(cause=problem.cause, remedy=problem.remedy) if problem else None,
    }
    response = await page(request, "new.html", context, status=422 if problem else 200)
    # With no referrer at all, browsers send a form without scripts under the origin "null".
    response.headers["Referrer-Policy"] = "same-origin"
    return response


# ── What a browser without scripts sends ─────────────────────────────────────────────────────────────────────────────


@security.form
async def create_from_form(request: web.Request) -> web.Response:
    """Puts one picture into the queue and shows it; what can't be comes back with everything that was given."""
    form = await request.app[UPLOADS].form(request)
    security.check_form(request, form.fields.get("csrf", ""))
    given = dict(form.fields)
    like = await request.app[BOARD].job(given["like"]) if given.get("like") else None
    try:
        await _keep_files(request, form, given)
        job = await submit_job(request, understand(JobRequest, _body(given, like.steered_settings if like else None)))
    except UserError as error:
        return await _form(request, like, given, error)
    raise web.HTTPSeeOther(job_view(job).page)


async def _keep_files(request: web.Request, form: Form, given: dict[str, str]) -> None:
    """Takes the files in, and notes what they have become in place of what was chosen from a list.

    Raises:
        ImageError: One is no picture; those before it are kept.
    """
    uploads, studio = request.app[UPLOADS], request.app[STUDIO]
    for name, title, data in form.files:
        place = name.removesuffix("-file")
        is_mask = place.startswith(("mask", "protect"))
        taken = await uploads.mask(data, title) if is_mask else await uploads.picture(data, title)
        given[place] = f"id:{await studio.add_input(LAB_OWNER, taken.data)}"
        given[f"{place}-title"] = taken.title


def _body(given: Mapping[str, str], like: Settings | None) -> dict[str, Any]:
    """The request that these fields stand for."""
    styles = [
        _picture(given, f"style.{number}")
        | {name: given[f"{name}.{number}"] for name in ("weight", "scale") if given.get(f"{name}.{number}")}
        | ({"mask": given[f"mask.{number}"].removeprefix("id:")} if given.get(f"mask.{number}") else {})
        for number in _PLAIN_STYLES
        if given.get(f"style.{number}")
    ]
    wanted: dict[str, Any] = {name: given[name] for name in ("level", "colour", "seed", "network") if given.get(name)}
    wanted["dials"] = {dial.name: given[f"dial.{dial.name}"] for dial in dials.DIALS if given.get(f"dial.{dial.name}")}
    wanted["experts"] = {key: given[f"expert.{key}"] for key in experts.TITLES if given.get(f"expert.{key}")}
    if given.get("preset") or like is None:
        wanted["preset"] = given.get("preset") or config.DEFAULT_PRESET
    else:
        wanted["settings"] = like.model_dump(mode="json")
    return {
        "content": _picture(given, "content"),
        "styles": styles,
        "protect": given.get("protect", "").removeprefix("id:") or None,
        "film": "film" in given,
        "wanted": wanted,
    }


def _picture(given: Mapping[str, str], place: str) -> dict[str, Any]:
    """A picture that was sent, or one of those that are always at hand."""
    chosen = given.get(place, "")
    if chosen.startswith("id:"):
        return {"id": chosen.removeprefix("id:"), "title": given.get(f"{place}-title", "")}
    return {"sample": chosen} if chosen else {}
