"""Who may ask for what; what operators can do; and that pictures are forgotten."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.bot_api import BotApi, Person
from tests.bot_doubles import BLUE, GREEN, RED, Gate, Sketch, fill_gallery, flat, results, running


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    async with BotApi() as server:
        yield server


async def test_with_an_allow_list_only_those_on_it_are_served(api: BotApi, tmp_path: Path) -> None:
    friend, admin, stranger = Person(api, 7), Person(api, 8), Person(api, 9)
    async with running(api, tmp_path, access="allow-list", allowed=[7], admins=[8]) as stage:
        stranger.sends_album(flat(RED), flat(BLUE))
        refusal = await stranger.hears("This bot is private.", 2)
        assert "9" in refusal["text"]
        answer = stranger.presses_data(refusal, "set:9:level:2")
        await api.until(lambda: "text" in answer)
        assert answer["text"].startswith("This bot is private.")
        assert not await stage.studio.jobs()
        friend.sends_album(flat(RED), flat(BLUE))
        admin.sends_album(flat(RED), flat(BLUE))
        await friend.receives()
        await admin.receives()


async def test_an_empty_allow_list_lets_nobody_in(api: BotApi, tmp_path: Path) -> None:
    stranger = Person(api, 9)
    async with running(api, tmp_path, access="allow-list"):
        stranger.says("/start")
        await stranger.hears("This bot is private.")


async def test_pending_paintings_are_capped(api: BotApi, tmp_path: Path) -> None:
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate), pending_per_user=2) as stage:
        person.sends_album(flat(RED), flat(BLUE), flat(GREEN), flat((1, 1, 1)))
        person.presses(await person.hears("Shall I make 3 paintings"), "Yes")
        await person.hears("You already have 2 on the easel.")
        gate.open()
        await person.receives(2)
        assert len(await stage.studio.jobs()) == 2
        person.sends_album(flat(RED), flat((1, 1, 1)))
        await person.receives(3)


async def test_paintings_of_a_day_are_capped(api: BotApi, tmp_path: Path) -> None:
    person, admin = Person(api, 7), Person(api, 8)
    async with running(api, tmp_path, jobs_per_day=1, admins=[8]):
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        person.says("/forget")
        await person.hears("are deleted here")
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("The limit here is 1 a day")
        for count in (1, 2):
            admin.sends_album(flat(RED), flat(BLUE))
            await admin.receives(count)


async def test_strangers_have_a_highest_level(api: BotApi, tmp_path: Path) -> None:
    stranger, friend = Person(api, 7), Person(api, 8)
    levels: dict[str, Any] = {"highest_level": 3, "highest_level_of_strangers": 1, "allowed": [8]}
    async with running(api, tmp_path, **levels) as stage:
        for person in (stranger, friend):
            person.says("/settings")
        panel = await stranger.hears("Settings of this chat")
        assert "512 px" in str(panel["reply_markup"])
        assert "1024 px" not in str(panel["reply_markup"])
        assert "2048 px" in str((await friend.hears("Settings of this chat"))["reply_markup"])
        stranger.presses_data(panel, "set:7:level:3")  # forged
        stranger.sends_album(flat(RED), flat(BLUE))
        await stranger.receives()
        assert (await stage.job()).settings.levels == 1
        assert "Larger" not in str(stranger.photos[-1]["reply_markup"])
        answer = stranger.presses_data(stranger.photos[-1], f"more:{(await stage.job()).tags['task']}:larger")
        await api.until(lambda: "text" in answer)
        assert answer["text"] == "512 px is as far as it goes."


async def test_admins_see_and_steer_the_queue(api: BotApi, tmp_path: Path) -> None:
    admin, person = Person(api, 8), Person(api, 7)
    async with running(api, tmp_path, admins=[8]) as stage:
        admin.says("/queue")
        await admin.hears("The queue is empty.")
        admin.says("/pause")
        await admin.hears("The queue is paused; running jobs go on.")
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("The queue is paused at the moment.")
        admin.says("/queue")
        listed = await admin.hears("tg:7")
        assert (await stage.job()).id[:6] in listed["text"]
        admin.says("/resume")
        await person.receives()
        await person.hears("Done.")
        admin.says("/stats")
        await admin.hears("paintings 1, people 1; on their way 0")


async def test_nobody_else_steers_the_queue(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path, admins=[8]) as stage:
        for number, command in enumerate(("/pause", "/queue", "/stats", "/resume"), 1):
            person.says(command)
            await person.hears("I don't know this command.", number)
        assert not stage.studio.queue_paused


# ── Forgetting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def kept(data: Path) -> list[str]:
    return [path.name for kind in ("inputs", "results", "previews", "checkpoints") for path in (data / kind).iterdir()]


async def test_forget_deletes_everything_of_a_person_at_once(api: BotApi, tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)) as stage:
        gate.open()
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        result = person.photos[-1]
        person.sends_photo(flat(GREEN))
        await person.hears("Which style?")
        assert kept(tmp_path)
        person.says("/forget")
        await person.hears("are deleted here")
        assert not await stage.studio.jobs()
        assert not kept(tmp_path)
        answer = person.presses(result, "Again")
        await api.until(lambda: "text" in answer)
        assert answer["text"].startswith("These pictures have been deleted since.")


async def test_forget_stops_what_is_under_way(api: BotApi, tmp_path: Path) -> None:
    person, other, gate = Person(api, 7), Person(api, 8), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)) as stage:
        other.sends_album(flat(GREEN), flat(BLUE))
        await other.hears("Painting")
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("In the queue")
        person.says("/forget")
        await person.hears("are deleted here")
        await api.until(lambda: not any("reply_markup" in message for message in person.heard))
        gate.open()
        await other.receives()
        assert [job.owner for job in await stage.studio.jobs()] == ["tg:8"]
    assert not person.documents
    assert results(other) == [(GREEN, BLUE)]


async def test_pictures_are_deleted_after_their_time(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path, keep_hours=1.0) as stage:
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        await person.hears("Done.")
        assert (await stage.job()).keep_seconds == 3600
    later = time.time() + 3700
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        async with running(api, tmp_path, keep_hours=1.0) as stage:
            assert not await stage.studio.jobs()
            answer = person.presses(person.photos[-1], "Again")
            await api.until(lambda: "text" in answer)
            assert answer["text"].startswith("These pictures have been deleted since.")
    assert not list((tmp_path / "results").iterdir())
