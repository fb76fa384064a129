"""The JSON interface: what its document promises, it does."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core import config, dials, images, weights
from core.errors import MemoryLimitError, WeightsError
from core.studio.jobs import StorageError
from tests.lab_doubles import QUICK, SMALL_TABLE, Lab, Plain, config_of, open_lab, png
from ui.lab import api
from ui.lab.api import OPERATIONS
from ui.lab.board import STUDIO
from ui.lab.messages import JobDetail, Problem
from ui.lab.networks import NETWORKS
from ui.lab.openapi import Operation, document
from ui.lab.requests import WantedSettings


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path) as opened:
        yield opened


# ── The document ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_document_has_every_route_and_no_other(lab: Lab) -> None:
    served = {
        (route.method, re.sub(r":[^/]*?\}(?=/|$|\.)", "}", route.resource.canonical))
        for route in lab.app.router.routes()
        if route.resource and route.resource.canonical.startswith(("/api", "/healthz", "/metrics"))
    }
    described = await lab.json("/api/openapi.json")
    promised = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert promised == {(method, path) for method, path in served if method != "HEAD"}
    assert len(promised) == len(OPERATIONS)


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(_references, value.values()))
    return set[str]().union(*map(_references, value)) if isinstance(value, list) else set()


def test_the_document_is_whole() -> None:
    described = document(OPERATIONS)
    assert json.loads(json.dumps(described))["openapi"] == "3.1.0"
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert _references(described) <= known
    operations = [operation for methods in described["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert all(operation["summary"].endswith((".", ":")) for operation in operations)


def test_the_document_names_what_addresses_and_changes_need() -> None:
    for path, methods in document(OPERATIONS)["paths"].items():
        for method, operation in methods.items():
            places = {(parameter["in"], parameter["name"]) for parameter in operation["parameters"]}
            assert {name for kind, name in places if kind == "path"} == set(re.findall(r"\{(\w+)\}", path))
            assert (("header", "X-CSRF-Token") in places) == (method != "get")


_PARAMETERLESS = [each for each in OPERATIONS if each.method == "GET" and "{" not in each.path]


@pytest.mark.parametrize("operation", _PARAMETERLESS, ids=lambda operation: operation.path)
async def test_answers_are_what_the_document_says(lab: Lab, operation: Operation) -> None:
    if operation.answers == "text/event-stream":
        return  # has tests of its own
    response = await lab.get(operation.path, operation.status)
    if isinstance(operation.answers, type):
        operation.answers.model_validate_json(await response.read())  # refuses what isn't declared
    else:
        assert response.content_type == operation.answers


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/jobs", {}, 422),
        ("POST", "/api/jobs", {"content": {}, "styles": [{}]}, 422),
        ("POST", "/api/jobs", {"content": {"id": "0" * 24}, "styles": [{"id": "0" * 24}], "extra": 1}, 422),
        ("POST", "/api/jobs", {"content": {"id": "0" * 24}, "styles": [{"id": "0" * 24}]}, 404),
        ("POST", "/api/jobs", {"content": {"id": "x"}, "styles": [{"id": "x"}]}, 422),
        ("POST", "/api/tables", {"contents": [], "styles": []}, 422),
        ("POST", "/api/tables", {"contents": [{"sample": "coffee"}] * 17, "styles": [{"sample": "swirls"}]}, 422),
        ("GET", f"/api/jobs/{'0' * 24}", None, 404),
        ("POST", f"/api/jobs/{'0' * 24}/cancel", {"attempt": 1}, 404),
        ("POST", f"/api/jobs/{'0' * 24}/cancel", {"attempt": 0}, 422),
        ("GET", "/api/jobs?state=happy", None, 422),
        ("GET", "/api/jobs?limit=-1", None, 422),
        ("GET", "/api/jobs?before=nan", None, 422),
        ("GET", "/api/tables/none", None, 404),
        ("PUT", "/api/queue", {"paused": "perhaps"}, 422),
        ("PATCH", "/api/queue", {}, 405),
        ("GET", "/api/nothing", None, 404),
    ],
)
async def test_refusals_are_problems_too(lab: Lab, method: str, path: str, body: Any, status: int) -> None:
    Problem.model_validate(await lab.send(method, path, body, status))


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_from_upload_to_picture(lab: Lab) -> None:
    (content,) = (await lab.upload(("My cat.PNG", png(height=96, width=128))))["pictures"]
    assert (content["title"], content["width"], content["height"]) == ("My cat", 128, 96)
    wanted: dict[str, Any] = {"level": 0, "dials": {"content": 2.5, "noise": 2.5}, "seed": 11}
    references = {"contents": [{"id": content["id"]}], "styles": [{"sample": "swirls"}], "wanted": wanted}
    estimate = await lab.send("POST", "/api/estimate", references)
    assert estimate["pictures"] == 1 and (estimate["width"], estimate["height"]) == (341, 256)
    assert estimate["seconds"] is None and "not measured" in estimate["text"]
    body = {"content": {"id": content["id"], "title": "My cat"}, "styles": [{"sample": "swirls"}], "wanted": wanted}
    job = await lab.send("POST", "/api/jobs", body, 201)
    done = await lab.done(job["id"])
    assert (done["state"], done["texts"]["title"]) == ("done", "My cat × Swirls")
    detail = JobDetail.model_validate(await lab.json(f"/api/jobs/{job['id']}"))
    final = config.load()
    assert detail.settings.loss.content_weight == pytest.approx(final.loss.content_weight / 10)
    assert detail.settings == dials.apply(final.changed({"levels": 0, "seed": 11}), wanted["dials"])
    assert [line.after for line in detail.log] == ["queued", "running", "done"]
    assert [point.iteration for point in detail.losses] == [1, 2, 3]
    picture = images.read(await (await lab.get(done["download"])).read())
    assert picture.recipe is not None
    assert (await lab.send("POST", "/api/estimate", references))["seconds"] is not None  # it was measured meanwhile


async def test_a_picture_that_was_made_here_brings_its_settings(lab: Lab) -> None:
    job = await lab.submit(seed=5, preset="light")
    await lab.done(job["id"])
    data = await (await lab.get(f"/media/jobs/{job['id']}/result.png?download")).read()
    (again,) = (await lab.upload(("again.png", data)))["pictures"]
    assert again["settings"] == (await lab.json(f"/api/jobs/{job['id']}"))["settings"]
    style = {"sample": "mosaic"}
    wanted = {"settings": again["settings"], "level": 0}
    repeated = await lab.send(
        "POST", "/api/jobs", {"content": {"id": again["id"]}, "styles": [style], "wanted": wanted}, 201
    )
    assert (await lab.json(f"/api/jobs/{repeated['id']}"))["settings"] == again["settings"]


async def test_settings_that_a_stranger_wrote_into_a_picture_are_checked(lab: Lab) -> None:
    forged = png(recipe={"settings": {"levels": 99, "weights": "/etc/passwd"}})
    (taken,) = (await lab.upload(("forged.png", forged)))["pictures"]
    assert taken["settings"] is None


@pytest.mark.parametrize(
    "wanted",
    [
        {"level": 4},
        {"dials": {"content": 11}},
        {"dials": {"sharpness": 5}},
        {"seed": -1},
        {"network": "other"},
        {"colour": "blue"},
        {"settings": {"x": 1}},
        {"experts": {"loss.tv_weight": "-1"}},
        {"experts": {"loss.wieght": "1"}},
    ],
)
async def test_settings_out_of_bounds(lab: Lab, wanted: dict[str, Any]) -> None:
    body = {"contents": [{"sample": "coffee"}], "styles": [{"sample": "swirls"}], "wanted": wanted}
    await lab.send("POST", "/api/estimate", body, 422)


def test_dials_that_nobody_touched_leave_the_preset_as_it_is() -> None:
    assert WantedSettings(preset="light", level=1).resolved() == config.load("light", {"levels": 1})


async def test_a_picture_that_fits_nowhere_is_refused_with_what_would_fit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryLimitError("level 3 needs 90.0 GiB", "Choose level 1, the largest that fits")

    monkeypatch.setattr(lab.backend, "estimate", refuse)
    body = {"contents": [{"sample": "coffee"}], "styles": [{"sample": "swirls"}]}
    problem = await lab.send("POST", "/api/estimate", body, 422)
    assert problem["remedy"] == "Choose level 1, the largest that fits"


# ── Buttons ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pause_resume_cancel_retry_enlarge_delete(tmp_path: Path) -> None:
    async with open_lab(tmp_path, backend=Plain(steps=2000, step_seconds=0.01)) as lab:
        job = await lab.submit()
        path = f"/api/jobs/{job['id']}"
        await lab.until(lambda: lab.json(path), lambda detail: detail["job"]["state"] == "running")
        paused = await lab.send("POST", f"{path}/pause")
        assert (paused["state"], paused["actions"]) == ("paused", ["resume", "cancel"])
        assert (await lab.send("POST", f"{path}/resume"))["state"] in ("queued", "running")
        assert (await lab.send("POST", f"{path}/cancel", {"attempt": 1}))["state"] == "cancelled"
        await lab.send("POST", f"{path}/enlarge", None, 409)
        lab.backend.steps = 2
        retried = await lab.send("POST", f"{path}/retry")
        assert retried["attempt"] == 2
        await lab.send("POST", f"{path}/cancel", {"attempt": 1}, 409)  # a late click on the first attempt
        assert (await lab.done(job["id"]))["state"] == "done"
        larger = await lab.send("POST", f"{path}/enlarge", None, 201)
        assert (larger["level"], larger["texts"]["title"]) == (1, job["texts"]["title"])
        await lab.send("DELETE", path)
        await lab.get(path, 404)


async def test_the_last_level_is_not_enlarged(lab: Lab) -> None:
    job = await lab.submit(level=3)
    assert (await lab.done(job["id"]))["actions"] == []
    await lab.send("POST", f"/api/jobs/{job['id']}/enlarge", None, 409)


async def test_the_queue_is_paused_and_goes_on(lab: Lab) -> None:
    await lab.send("PUT", "/api/queue", {"paused": True})
    job = await lab.submit()
    queue = await lab.json("/api/queue")
    assert queue == {"paused": True, "queued": 1, "running": 0, "text": "Paused · 0 painting · 1 waiting"}
    await lab.send("PUT", "/api/queue", {"paused": False})
    assert (await lab.done(job["id"]))["state"] == "done"


async def test_a_full_queue_is_told(tmp_path: Path) -> None:
    async with open_lab(tmp_path, settings=QUICK.model_copy(update={"pending_per_owner": 1})) as lab:
        await lab.send("PUT", "/api/queue", {"paused": True})
        await lab.submit()
        body = {"content": {"sample": "coffee"}, "styles": [{"sample": "swirls"}]}
        problem = await lab.send("POST", "/api/jobs", body, 429)
        assert problem["remedy"]


async def test_jobs_are_listed_by_state_table_and_time(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE | {"level": 0})) as lab:
        job = await lab.submit()
        await lab.done(job["id"])
        await lab.until(lambda: lab.json("/api/jobs?state=done&table=small"), lambda found: len(found["jobs"]) == 4)
        everything = (await lab.json("/api/jobs"))["jobs"]
        assert len(everything) == 5
        assert [each["created"] for each in everything] == sorted(
            (each["created"] for each in everything), reverse=True
        )
        page = (await lab.json("/api/jobs?limit=2"))["jobs"]
        after = (await lab.json(f"/api/jobs?before={page[-1]['created']:.9f}"))["jobs"]
        assert {each["id"] for each in page}.isdisjoint(each["id"] for each in after)


# ── For those who run it ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_metrics_count(lab: Lab) -> None:
    await lab.done((await lab.submit())["id"])
    await lab.get("/nothing/here", 404)
    response = await lab.get("/metrics")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(await response.text())
        for sample in family.samples
    }
    assert samples["studio_jobs", (("state", "done"),)] == 1
    assert samples["studio_slots", (("use", "idle"),)] == 1
    assert samples["studio_queue_paused", ()] == 0
    jobs = (("method", "POST"), ("route", "/api/jobs"), ("status", "201"))
    assert samples["lab_http_requests_total", jobs] == 1
    unknown = (("method", "ANY"), ("route", "none"), ("status", "404"))
    assert samples["lab_http_requests_total", unknown] == 1


async def test_health_fails_where_the_device_is_beyond_use(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await lab.json("/healthz"))["status"] == "ok"
    monkeypatch.setattr(type(lab.app[STUDIO]), "fatal", property(lambda _: RuntimeError("gone")))
    assert (await lab.json("/healthz", 503))["status"] == "failing"


def test_mistakes_have_the_status_that_says_them() -> None:
    assert api.status_of(StorageError("full")) == 507
    assert api.status_of(WeightsError("missing")) == 422


async def test_the_network_is_fetched_with_progress(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step, seen = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def fetch(network: str, *, progress: weights.Progress) -> Path:
        assert network == "vgg19"
        progress(10 * 2**20, 40 * 2**20)
        loop.call_soon_threadsafe(seen.set)
        step.wait(5)
        monkeypatch.setattr(weights, "find", lambda name: tmp_path if name in ("vgg19", "compact") else None)
        return tmp_path

    monkeypatch.setattr(weights, "fetch", fetch)
    monkeypatch.setattr(weights, "find", lambda name: tmp_path if name == "compact" else None)
    await lab.app[NETWORKS].look()
    before = await lab.json("/api/network")
    assert (before["name"], before["available"]) == ("compact", ["compact"])
    assert "python -m core fetch vgg19" in before["how"]
    assert (await lab.send("POST", "/api/network", None, 202))["fetching"]
    await seen.wait()
    during = await lab.json("/api/network")
    assert (during["fraction"], during["status"]) == (0.25, "10 MiB of 40 MiB")
    await lab.send("POST", "/api/network", None, 202)  # a second click begins no second download
    step.set()
    after = await lab.until(lambda: lab.json("/api/network"), lambda view: not view["fetching"])
    assert (after["name"], after["how"], after["available"]) == ("vgg19", "", ["vgg19", "compact"])


async def test_a_download_that_fails_says_why(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(network: str, *, progress: weights.Progress) -> Path:
        raise WeightsError("the server answered 503", "Try again later")

    monkeypatch.setattr(weights, "fetch", fetch)
    await lab.send("POST", "/api/network", None, 202)
    after = await lab.until(lambda: lab.json("/api/network"), lambda view: not view["fetching"])
    assert after["status"] == "the server answered 503. Try again later."
