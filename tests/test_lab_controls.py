"""The controls in the JSON interface: several styles, regions, colours, dials, experts, sweeps, films, steering."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from core import config, dials, images
from core.config import Settings
from core.errors import SettingsError
from tests.lab_doubles import Lab, Plain, open_lab, plain, png
from ui.lab import experts, own_tables
from ui.lab.board import STUDIO
from ui.lab.messages import JobDetail, TableView
from ui.lab.own_tables import OwnTable
from ui.lab.uploads import UploadLimits


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path) as opened:
        yield opened


def half(height: int = 40, width: int = 60) -> bytes:
    """A mask whose left half is white."""
    pixels = plain((0, 0, 0), height, width)
    pixels[..., : width // 2] = 1
    return images.encode(pixels)


async def masks(lab: Lab, *files: bytes, status: int = 201) -> Any:
    return await lab.upload(
        *((f"mask {number}.png", data) for number, data in enumerate(files)), status=status, to="masks"
    )


async def pictures(lab: Lab, *colours: tuple[float, float, float]) -> list[dict[str, Any]]:
    taken = await lab.upload(*((f"Picture {number}.png", png(colour)) for number, colour in enumerate(colours)))
    return [{"id": each["id"], "title": each["title"]} for each in taken["pictures"]]


async def ordered(lab: Lab, status: int = 201, **request: Any) -> Any:
    """A job of one content and two styles, with whatever else is asked for."""
    content, first, second = await pictures(lab, (1, 0, 0), (0, 1, 0), (0, 0, 1))
    body = {"content": content, "styles": [first, second], "wanted": {"level": 0}} | request
    return await lab.send("POST", "/api/jobs", body, status)


# ── Several styles, regions ──────────────────────────────────────────────────────────────────────────────────────────


async def test_several_styles_with_weights_scales_and_regions(lab: Lab) -> None:
    content, first, second = await pictures(lab, (1, 0, 0), (0, 1, 0), (0, 0, 1))
    region, face = (await masks(lab, half(), half()))["masks"]
    assert (region["width"], region["height"], round(region["share"], 2)) == (60, 40, 0.5)
    body = {
        "content": content,
        "styles": [first | {"weight": 2}, second | {"scale": 0.5, "mask": region["id"]}],
        "protect": face["id"],
        "wanted": {"level": 0},
    }
    estimate = {"contents": [content], "styles": body["styles"], "mix": True, "protect": face["id"]}
    assert (await lab.send("POST", "/api/estimate", estimate))["pictures"] == 1
    made = await lab.send("POST", "/api/jobs", body, 201)
    assert made["texts"]["title"] == "Picture 0 × Picture 1 + Picture 2"
    job = await lab.app[STUDIO].job(made["id"])
    assert job.styles == (first["id"], second["id"])
    assert (job.masks, job.protect) == ((None, region["id"]), face["id"])
    assert [style.model_dump() for style in job.settings.styles] == [
        {"weight": 2.0, "scale": 1.0},
        {"weight": 1.0, "scale": 0.5},
    ]
    kept = images.read_mask(await lab.app[STUDIO].input_bytes(region["id"]))
    assert torch.equal(kept[0, 0, 0], torch.tensor([1.0] * 30 + [0.0] * 30))


@pytest.mark.parametrize(
    "styles",
    [[], [{}] * 9, [{"weight": -1}], [{"scale": 5}], [{"mask": "x"}]],
    ids=["none", "too many", "negative", "too large", "no id"],
)
async def test_styles_that_cannot_be_are_refused_clearly(lab: Lab, styles: list[dict[str, Any]]) -> None:
    (style,) = await pictures(lab, (0, 1, 0))
    problem = await ordered(lab, 422, styles=[style | each for each in styles])
    assert problem["cause"]


async def test_a_mask_that_is_not_there_is_refused(lab: Lab) -> None:
    await ordered(lab, 404, protect="0" * 24)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (images.encode(plain((0, 0, 0))), "empty"),
        (b"no picture", "not an image"),
        (images.encode(plain((1, 1, 1), 300, 300)), "megapixels"),
        (bytes(4096), "at most"),
    ],
    ids=["black", "text", "too many pixels", "too many bytes"],
)
async def test_masks_that_cannot_be_are_refused_clearly(tmp_path: Path, data: bytes, complaint: str) -> None:
    limits = UploadLimits(mask_pixels=200 * 200, mask_bytes=4000)
    async with open_lab(tmp_path, limits=limits) as lab:
        problem = await masks(lab, data, status=422)
        assert complaint in problem["cause"] and "mask 0" in problem["cause"]


async def test_all_styles_in_one_picture_as_a_table(lab: Lab) -> None:
    first, second, *styles = await pictures(lab, (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1))
    body = {"contents": [first, second], "styles": styles, "mix": True, "wanted": {"level": 0}}
    assert (await lab.send("POST", "/api/estimate", body))["pictures"] == 2
    table = await lab.send("POST", "/api/tables", body, 201)

    async def look() -> Any:
        return await lab.json(f"/api/tables/{table['name']}")

    shown = TableView.model_validate(await lab.until(look, _all_done))
    assert (shown.rows, shown.columns) == (("Picture 0", "Picture 1"), ("Picture 2 + Picture 3",))
    for cell in shown.cells:
        assert cell.job
        assert (await lab.app[STUDIO].job(cell.job.id)).styles == tuple(style["id"] for style in styles)


def _all_done(table: Any) -> bool:
    return all(cell["job"] and cell["job"]["state"] == "done" for cell in table["cells"])


# ── Colours, dials, experts ──────────────────────────────────────────────────────────────────────────────────────────


async def test_colours_dials_and_experts_become_settings(lab: Lab) -> None:
    wanted = {
        "level": 1,
        "colour": "histogram",
        "dials": {"content": 7, "style": 4, "noise": 0},
        "experts": {"loss.level_weights": "1, 0.5", "loss.tv_weight": "0.25", "pooling": "average"}
        | {"loss.style_layers": "relu1_1 relu2_1", "optimizer.level_iterations": "30;20", "loss.content_layers": ""},
    }
    made = await ordered(lab, wanted=wanted)
    settings = JobDetail.model_validate(await lab.json(f"/api/jobs/{made['id']}")).settings
    changes = {
        "colour": "histogram",
        "pooling": "average",
        "loss": {"level_weights": [1, 0.5], "tv_weight": 0.25, "style_layers": ["relu1_1", "relu2_1"]},
        "optimizer": {"level_iterations": [30, 20]},
    }
    expected = config.load(changes=changes)
    assert settings == dials.apply(expected, {"content": 7, "style": 4, "noise": 0})


def test_the_form_for_experts_is_made_from_the_settings() -> None:
    settings = Settings()
    found = {field.key: field for field in experts.fields(settings)}
    assert found["pooling"].options == ("max", "average") and found["pooling"].value == "max"
    smooth = found["loss.tv_weight"]
    assert (smooth.kind, smooth.minimum, smooth.value) == ("number", 0, "0")
    assert "total variation" in smooth.description
    assert (found["loss.level_weights"].kind, found["loss.level_weights"].value) == ("text", "1")
    assert settings.changed(experts.parse(experts.values(settings) | {"optimizer.level_iterations": ""})) == settings


# ── Sweeps ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_sweep_fills_itself_and_one_of_its_pictures_is_made_large(lab: Lab) -> None:
    content, style = await pictures(lab, (1, 0, 0), (0, 1, 0))
    body = {
        "content": content,
        "styles": [style],
        "wanted": {"level": 0, "seed": 7},
        "rows": {"setting": "content", "values": "3, 5, 7"},
        "columns": {"setting": "scale", "values": "0.5, 1"},
    }
    table = await lab.send("POST", "/api/sweeps", body, 201)

    async def look() -> Any:
        return await lab.json(f"/api/tables/{table['name']}")

    shown = TableView.model_validate(await lab.until(look, _all_done))
    assert shown.rows == ("Content 3", "Content 5", "Content 7")
    assert shown.columns == ("Scale 0.5", "Scale 1")
    jobs = {(cell.row, cell.column): await lab.app[STUDIO].job(cell.job.id) for cell in shown.cells if cell.job}
    plain_weight = config.load().loss.content_weight
    for (row, column), job in jobs.items():
        mark, scale = (3, 5, 7)[int(row[-1])], (0.5, 1.0)[int(column[-1])]
        assert job.settings.loss.content_weight == pytest.approx(plain_weight * 10 ** ((mark - 5) / 2.5))
        assert job.settings.style(0).scale == scale
        assert (job.settings.seed, job.settings.levels) == (7, 0)
    chosen = jobs["r-2", "c-0"]
    large = await lab.send("POST", f"/api/jobs/{chosen.id}/enlarge", {"level": 2}, 201)
    made = await lab.app[STUDIO].job(large["id"])
    assert made.settings == chosen.settings.changed({"levels": 2})
    assert (made.content, made.styles) == (chosen.content, chosen.styles)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": {"setting": "content", "values": ""}},
        {"rows": {"setting": "content", "values": "3, 99"}},
        {"rows": {"setting": "content", "values": "three"}},
        {"rows": {"setting": "levels", "values": "1, 2"}},
        {"rows": {"setting": "loss.wieght", "values": "1"}},
        {
            "rows": {"setting": "seed", "values": "1,2,3,4,5,6,7"},
            "columns": {"setting": "noise", "values": "1,2,3,4,5,6"},
        },
        {"wanted": {"level": 2}},
    ],
)
async def test_sweeps_that_cannot_be_are_refused_clearly(lab: Lab, changes: dict[str, Any]) -> None:
    content, style = await pictures(lab, (1, 0, 0), (0, 1, 0))
    body = {"content": content, "styles": [style], "rows": {"setting": "seed", "values": "1, 2"}} | changes
    problem = await lab.send("POST", "/api/sweeps", body, 422)
    assert problem["cause"]


def test_values_with_commas_are_parted_by_semicolons() -> None:
    weights = own_tables.axis("loss.level_weights", "1, 0.5; 2", 1)
    assert [entry.apply(Settings()).loss.level_weights for entry in weights.entries] == [(1.0, 0.5), (2.0,)]
    names = own_tables.axis("pooling", "max, average,", 1)
    assert [entry.apply(Settings()).pooling for entry in names.entries] == ["max", "average"]


def test_a_sweep_may_go_from_one_style_to_another() -> None:
    between = own_tables.axis("between", "3", 2)
    found = [entry.apply(Settings()) for entry in between.entries]
    assert [(each.style(0).weight, each.style(1).weight) for each in found] == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    for text, styles in (("3", 1), ("1", 2), ("many", 2), ("99", 2)):
        with pytest.raises(SettingsError):
            own_tables.axis("between", text, styles)


def test_tables_of_former_versions_are_understood() -> None:
    kept = {
        "title": "T",
        "created": 1.0,
        "contents": [["c", "Cat"]],
        "styles": [["s", "Swirls"], ["m", "Mosaic"]],
        "settings": Settings().model_dump(mode="json"),
        "asked": True,
    }
    table = OwnTable.model_validate(kept).table("t-1")
    assert [(row.key, row.picture) for row in table.rows] == [("c", "c")]
    assert [(column.head.key, column.styles) for column in table.columns] == [("s", ("s",)), ("m", ("m",))]


async def test_a_table_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        await lab.app[STUDIO].records.put("lab.tables", "t-strange", {"title": "of another version"})
        content, style = await pictures(lab, (1, 0, 0), (0, 1, 0))
        table = await lab.send("POST", "/api/tables", {"contents": [content], "styles": [style]}, 201)
    async with open_lab(tmp_path) as lab:
        assert [each["name"] for each in (await lab.json("/api/tables"))["tables"]] == [table["name"]]


# ── Films ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_film_can_be_asked_for_and_fetched(lab: Lab) -> None:
    done = await lab.done((await ordered(lab, film=True))["id"])
    assert done["film"] == f"/media/jobs/{done['id']}/film.gif"
    response = await lab.get(f"{done['film']}?download")
    assert response.content_type == "image/gif"
    assert "attachment" in response.headers["Content-Disposition"]
    assert (await response.read()).startswith(b"GIF89a")
    without = await lab.done((await ordered(lab))["id"])
    assert without["film"] is None
    await lab.get(f"/media/jobs/{without['id']}/film.gif", 404)


# ── Steering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _running(lab: Lab, job_id: str) -> Any:
    def runs(detail: Any) -> bool:
        return bool(detail["job"]["iteration"])

    return (await lab.until(lambda: lab.json(f"/api/jobs/{job_id}"), runs))["job"]


async def test_a_running_picture_takes_new_weights(tmp_path: Path) -> None:
    async with open_lab(tmp_path, backend=Plain(steps=2000, step_seconds=0.01)) as lab:
        made = await ordered(lab, wanted={"level": 0, "dials": {"content": 6}})
        await _running(lab, made["id"])
        wish = {"attempt": 1, "dials": {"content": 8, "style": 5}, "weights": [1, 3]}
        await lab.send("POST", f"/api/jobs/{made['id']}/steer", wish)
        detail = await lab.until(
            lambda: lab.json(f"/api/jobs/{made['id']}"),
            lambda seen: seen["job"]["steering"][0]["iteration"] is not None,
        )
        (told,) = detail["job"]["steering"]
        assert told["text"] == f"At iteration {told['iteration']}: content 6 → 8, Picture 2 1 → 3"
        job = await lab.app[STUDIO].job(made["id"])
        now = job.steered_settings
        assert now.loss.content_weight == pytest.approx(config.load().loss.content_weight * 10 ** (3 / 2.5))
        assert told["content_weight"] == now.loss.content_weight
        assert now.style(1).weight == 3
        ((changes, _),) = lab.backend.steered
        assert job.settings.changed(changes) == now
        for refused, status in (
            ({"attempt": 2, "dials": {"content": 1}}, 409),
            ({"attempt": 1, "dials": {"noise": 1}}, 422),
            ({"attempt": 1, "dials": {"content": 8}}, 422),  # it stands there already
            ({"attempt": 1, "dials": {"content": 11}}, 422),
            ({"attempt": 1, "weights": [1]}, 422),
            ({"attempt": 1, "weights": [1, -1]}, 422),
            ({"dials": {"content": 1}}, 422),
        ):
            problem = await lab.send("POST", f"/api/jobs/{made['id']}/steer", refused, status)
            assert problem["cause"]
        page = await lab.page(made["page"])
        assert told["text"] in page


async def test_what_was_steered_survives_a_restart_and_is_enlarged_as_it_ended(tmp_path: Path) -> None:
    async with open_lab(tmp_path, backend=Plain(steps=2000, step_seconds=0.01)) as lab:
        made = await ordered(lab)
        await _running(lab, made["id"])
        await lab.send("POST", f"/api/jobs/{made['id']}/steer", {"attempt": 1, "dials": {"style": 7}})
        await lab.until(
            lambda: lab.json(f"/api/jobs/{made['id']}"),
            lambda seen: seen["job"]["steering"][0]["iteration"] is not None,
        )
    async with open_lab(tmp_path, backend=Plain()) as lab:
        done = await lab.done(made["id"])
        assert "style 5 → 7" in done["steering"][0]["text"]
        assert [run.steering[0].iteration for run in lab.backend.taken] == [done["steering"][0]["iteration"]]
        large = await lab.send("POST", f"/api/jobs/{made['id']}/enlarge", {}, 201)
        settings = (await lab.app[STUDIO].job(large["id"])).settings
        assert settings.loss.style_weight == done["steering"][0]["style_weight"]
        await lab.send("POST", f"/api/jobs/{made['id']}/steer", {"attempt": 1, "dials": {"style": 1}}, 409)


async def test_a_steered_picture_brings_the_weights_that_it_ended_with(lab: Lab) -> None:
    settings = Settings().model_dump(mode="json")
    changes = {"loss": {"content_weight": 0.5}}
    steering = [{"evaluation": 9, "iteration": 7, "changes": changes}]
    strange = [{"evaluation": 9, "iteration": 7, "changes": {"levels": 2}}]
    recipes = [{"settings": settings, "steering": known} for known in (steering, strange, "none")]
    taken = await lab.upload(*((f"{number}.png", png(recipe=recipe)) for number, recipe in enumerate(recipes)))
    found = [each["settings"] for each in taken["pictures"]]
    assert found == [Settings().changed(changes).model_dump(mode="json"), None, None]


async def test_steering_needs_the_pages_token(lab: Lab) -> None:
    made = await ordered(lab)
    wish = {"attempt": 1, "dials": {"style": 7}}
    response = await lab.client.post(f"/api/jobs/{made['id']}/steer", json=wish, headers={"Origin": lab.origin})
    assert response.status == 403


# ── The form of a browser without scripts ────────────────────────────────────────────────────────────────────────────


async def _send_form(lab: Lab, fields: dict[str, str], files: dict[str, bytes], **options: Any) -> Any:
    form = aiohttp.FormData(quote_fields=False)
    for name, value in fields.items():
        form.add_field(name, value)
    for name, data in files.items():
        form.add_field(name, data, filename=f"{name}.png" if data else "", content_type="application/octet-stream")
    headers = {"Origin": lab.origin} | options.pop("headers", {})
    return await lab.client.post("/new", data=form, headers=headers, allow_redirects=False, **options)


async def test_the_form_of_a_browser_without_scripts(lab: Lab) -> None:
    fields = {"csrf": lab.csrf, "content": "coffee", "style.1": "swirls", "style.2": "mosaic", "style.3": ""}
    fields |= {"weight.1": "1", "scale.1": "1", "weight.2": "2", "scale.2": "0.5", "level": "0", "preset": "light"}
    fields |= {"dial.content": "7", "dial.style": "5", "colour": "palette", "seed": "5", "film": "yes"}
    fields |= {"expert.loss.tv_weight": "0.5", "expert.pooling": "", "network": "auto"}
    files = {"content-file": b"", "style.1-file": png(), "mask.2-file": half(), "protect-file": half()}
    response = await _send_form(lab, fields, files)
    assert response.status == 303, await response.text()
    job = await lab.app[STUDIO].job(response.headers["Location"].rpartition("/")[2])
    assert job.tags["style_title"] == "style.1-file + Mosaic"
    assert job.masks[0] is None and job.masks[1] and job.protect and job.film
    expected = config.load("light", {"levels": 0, "colour": "palette", "seed": 5, "loss": {"tv_weight": 0.5}})
    styles = [{"weight": 1}, {"weight": 2, "scale": 0.5}]
    assert job.settings == dials.apply(expected.changed({"styles": styles}), {"content": 7})


async def test_a_form_that_cannot_be_comes_back_with_all_that_was_given(lab: Lab) -> None:
    fields = {"csrf": lab.csrf, "content": "coffee", "style.1": "mosaic", "level": "2", "dial.style": "6.5"}
    fields |= {"expert.loss.tv_weight": "-3", "colour": "matched"}
    response = await _send_form(lab, fields, {"style.2-file": png(), "mask.1-file": half()})
    text = await response.text()
    assert response.status == 422
    assert "loss.tv_weight" in text
    kept = set(re.findall(r'value="id:([0-9a-f]{24})"', text))
    assert len(kept) == 2, "the style and the mask needn't be chosen again"
    for expected in ('name="dial.style"', 'value="6.5"', 'value="-3"', 'value="matched" checked', "style.2"):
        assert expected in text
    again = fields | {"expert.loss.tv_weight": "", "style.2": "", "level": "0"}
    names = dict(re.findall(r'name="(mask\.1)" value="(id:[0-9a-f]{24})"', text))
    response = await _send_form(lab, again | names, {"content-file": b""})
    assert response.status == 303, await response.text()
    job = await lab.app[STUDIO].job(response.headers["Location"].rpartition("/")[2])
    assert job.masks[0] == names["mask.1"].removeprefix("id:")


async def test_a_form_goes_on_from_the_settings_of_another_picture(lab: Lab) -> None:
    made = await ordered(lab, wanted={"level": 0, "seed": 77})
    text = await lab.page(f"/new?like={made['id']}")
    assert f'name="like" value="{made["id"]}"' in text
    fields = {"csrf": lab.csrf, "content": "coffee", "style.1": "swirls", "preset": "", "like": made["id"]}
    response = await _send_form(lab, fields, {"content-file": b""})
    job = await lab.app[STUDIO].job(response.headers["Location"].rpartition("/")[2])
    assert job.settings.seed == 77


@pytest.mark.parametrize("wrong", [{"csrf": ""}, {"csrf": "0" * 64}, {"Origin": "http://elsewhere"}])
async def test_a_form_needs_its_pages_token_and_origin(lab: Lab, wrong: dict[str, str]) -> None:
    token, headers = wrong.get("csrf", lab.csrf), {"Origin": wrong.get("Origin", lab.origin)}
    fields = {"csrf": token, "content": "coffee", "style.1": "swirls"}
    response = await _send_form(lab, fields, {"content-file": b""}, headers=headers)
    assert response.status == 403
    assert not (await lab.json("/api/jobs"))["jobs"]
