"""The stream of events: what a page hears, and what it hears after it was away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.lab_doubles import QUICK, Lab, Plain, open_lab, png
from ui.lab import events
from ui.lab.events import FEED, Feed, Item, Topic
from ui.lab.shown import Model

ALL = Topic()


class Number(Model):
    """Something that changes."""

    value: int


def _publish(feed: Feed, job: str, value: int) -> None:
    feed.publish(("job", job), "job", lambda: Number(value=value))


def _values(items: list[Item] | None) -> list[int]:
    assert items is not None
    return [json.loads(item.text().split("data: ")[1])["value"] for item in items]


# ── The feed ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("topic", "wanted"),
    [
        (Topic(), {("job", "a"), ("job", "b"), ("queue",), ("network",)}),
        (Topic(job="a"), {("job", "a"), ("queue",), ("network",)}),
        (Topic(table="t"), {("cell", "t", "r", "c"), ("table", "t"), ("queue",), ("network",)}),
    ],
)
def test_a_page_hears_what_it_shows(topic: Topic, wanted: set[events.Key]) -> None:
    keys: list[events.Key] = [
        ("job", "a"),
        ("job", "b"),
        ("cell", "t", "r", "c"),
        ("cell", "u", "r", "c"),
        ("table", "t"),
        ("table", "u"),
        ("queue",),
        ("network",),
    ]
    assert {key for key in keys if topic.wants(key)} == wanted


async def test_a_slow_listener_gets_the_latest_of_each_in_order() -> None:
    feed = Feed()
    with feed.listen(ALL) as listener:
        for value in range(5):
            _publish(feed, "a", value)
            _publish(feed, "b", 10 * value)
        _publish(feed, "a", 99)
        items = await listener.next(1)
        assert _values(items) == [40, 99]
        assert [item.number for item in items] == sorted(item.number for item in items)
        assert await listener.next(0.01) == []


async def test_data_is_made_once_for_all_who_listen_and_not_before() -> None:
    made: list[int] = []

    def make() -> Number:
        made.append(1)
        return Number(value=1)

    feed = Feed()
    with feed.listen(ALL) as one, feed.listen(ALL) as two:
        feed.publish(("job", "a"), "job", make)
        assert made == []
        for listener in (one, two):
            for item in await listener.next(1):
                item.text()
    assert made == [1]


def test_who_comes_back_hears_what_changed_meanwhile() -> None:
    feed = Feed()
    _publish(feed, "a", 1)
    last = feed.last_id
    _publish(feed, "b", 2)
    _publish(feed, "b", 3)
    assert _values(feed.since(last, ALL)) == [3]
    assert feed.since(feed.last_id, ALL) == []


@pytest.mark.parametrize("last", ["", "x", "other-1", "{era}-", "{era}--1", "{era}-99999", "{era}-²"])
def test_an_id_that_nobody_gave_is_a_gap(last: str) -> None:
    feed = Feed()
    _publish(feed, "a", 1)
    era = feed.last_id.partition("-")[0]
    assert feed.since(last.replace("{era}", era), ALL) is None


def test_what_was_forgotten_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_REMEMBERED", 2)
    feed = Feed()
    ids = []
    for job in "abcd":
        _publish(feed, job, 0)
        ids.append(feed.last_id)
    assert feed.since(ids[0], ALL) is None
    assert feed.since(ids[1], ALL) is not None  # only c and d came after b


# ── The stream ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Stream:
    """What a browser makes of a stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0
        self.last_id = ""

    async def next(self) -> tuple[str, Any]:
        """The next event and its data."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            while True:
                line = (await self.response.content.readline()).decode().rstrip("\n")
                name, _, value = line.partition(": ")
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    fields[name] = value
                elif "event" in fields:
                    self.last_id = fields["id"]
                    return fields["event"], json.loads(fields["data"])
                elif not fields and self.response.content.at_eof():
                    raise EOFError

    async def until(self, kind: str, **wanted: Any) -> Any:
        """The data of the next event of a kind that has these values."""
        while True:
            event, data = await self.next()
            if event == kind and wanted.items() <= data.items():
                return data


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path, backend=Plain(step_seconds=0.02)) as opened:
        yield opened


async def _open(lab: Lab, query: str = "", last_id: str = "") -> Stream:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    response = await lab.get(f"/api/events{query}", headers=headers)
    assert response.content_type == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    return Stream(response)


async def test_a_stream_begins_with_everything_and_goes_on_with_changes(lab: Lab) -> None:
    first = await lab.submit()
    await lab.done(first["id"])
    stream = await _open(lab)
    kind, snapshot = await stream.next()
    assert kind == "snapshot"
    assert [item["event"] for item in snapshot["items"]] == ["queue", "network", "job"]
    assert snapshot["items"][2]["data"]["state"] == "done"
    second = await lab.submit()
    done = await stream.until("job", id=second["id"], state="done")
    assert done["fraction"] == 1


async def test_progress_moves_by_itself(lab: Lab) -> None:
    lab.backend.steps, lab.backend.step_seconds = 20, 0.1
    job = await lab.submit()
    stream = await _open(lab, f"?job={job['id']}")
    seen = [await stream.until("job", id=job["id"], state="running") for _ in range(4)]
    fractions = [view["fraction"] for view in seen]
    assert fractions == sorted(fractions) and len(set(fractions)) > 1
    pictures = [view["picture"] for view in seen if view["picture"]]
    assert len(set(pictures)) > 1  # every version has an address of its own
    await lab.send("POST", f"/api/jobs/{job['id']}/cancel", {"attempt": 1})
    await stream.until("job", state="cancelled")


async def test_a_page_that_was_away_gets_what_it_missed(lab: Lab) -> None:
    stream = await _open(lab)
    await stream.next()
    job = await lab.submit()
    stream.response.close()
    await lab.done(job["id"])
    again = await _open(lab, last_id=stream.last_id)
    assert (await again.until("job", id=job["id"]))["state"] == "done"


async def test_a_page_from_before_a_restart_gets_a_snapshot(lab: Lab) -> None:
    stream = await _open(lab, last_id="0a0a0a0a-17")
    assert (await stream.next())[0] == "snapshot"


async def test_a_job_that_is_gone_is_told(lab: Lab) -> None:
    job = await lab.submit()
    await lab.done(job["id"])
    stream = await _open(lab)
    await stream.next()
    await lab.send("DELETE", f"/api/jobs/{job['id']}")
    assert (await stream.until("removed"))["id"] == job["id"]


async def test_a_silent_stream_has_a_heartbeat(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.0)
    stream = await _open(lab)
    await stream.next()
    await asyncio.sleep(0.3)  # silence is what is tested
    await lab.send("PUT", "/api/queue", {"paused": True})
    await stream.until("queue", paused=True)
    assert stream.comments >= 2


async def test_streams_have_a_limit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_STREAMS", 1)
    stream = await _open(lab)
    await stream.next()
    response = await lab.get("/api/events", 503)
    assert response.headers["Retry-After"]


async def test_a_page_that_leaves_is_forgotten(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.0)
    stream = await _open(lab)
    await stream.next()
    assert lab.app[FEED].streams == 1
    stream.response.close()
    with lab.app[FEED].listen(Topic(table="-")) as listener:
        async with asyncio.timeout(5):
            while lab.app[FEED].streams > 1:  # this listener is the one
                await listener.next(0.01)


async def test_open_streams_dont_hold_up_the_end(tmp_path: Path) -> None:
    async with open_lab(tmp_path, backend=Plain(steps=1000, step_seconds=0.05)) as lab:
        await lab.submit()
        streams = [await _open(lab) for _ in range(5)]
        for stream in streams:
            await stream.next()
        began = time.monotonic()
    assert time.monotonic() - began < 5


async def test_fifty_pages_and_two_hundred_pictures(tmp_path: Path) -> None:
    """Every page hears how every picture ends, and the lab goes on answering."""
    settings = QUICK.model_copy(update={"pending_per_owner": 200})
    async with open_lab(tmp_path, backend=Plain(steps=1), settings=settings) as lab:
        taken = (await lab.upload(("a.png", _TINY), ("b.png", _TINY)))["pictures"]
        content, style = ({"id": each["id"]} for each in taken)
        body = {"content": content, "styles": [style], "wanted": {"level": 0}}
        streams = [await _open(lab) for _ in range(50)]
        listening = [asyncio.create_task(_hear_endings(stream, 200)) for stream in streams]
        jobs = await asyncio.gather(*(lab.send("POST", "/api/jobs", body, 201) for _ in range(200)))
        began = time.monotonic()
        await lab.get("/healthz")
        assert time.monotonic() - began < 2
        async with asyncio.timeout(60):
            heard = await asyncio.gather(*listening)
        assert all(ids == {job["id"] for job in jobs} for ids in heard)
        await lab.send("POST", "/api/jobs", body, 201)  # and there is room again


_TINY = png(height=16, width=16)


async def _hear_endings(stream: Stream, count: int) -> set[str]:
    """Ids of the jobs that a page was told are done."""
    ended: set[str] = set()
    while len(ended) < count:
        line = (await stream.response.content.readline()).decode()
        if line.startswith("data: ") and '"state":"done"' in line:
            data = json.loads(line.removeprefix("data: "))
            views = [item["data"] for item in data["items"]] if "items" in data else [data]
            ended |= {view["id"] for view in views if view.get("state") == "done"}
    return ended
