"""What Telegram and its network do to a bot, and that nobody's painting suffers from it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from core.studio import JobState, Studio
from tests.bot_api import BotApi, Fault, Limits, Person, Refused
from tests.bot_doubles import BLUE, GREEN, RED, RHYTHM, Gate, Sketch, flat, results, running
from ui.bot.limits import CLOUD, Pace


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    async with BotApi() as server:
        yield server


# ── Pace ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hundred_chats_at_once_and_none_over_its_limits(tmp_path: Path) -> None:
    async with BotApi(Limits()) as api:
        people = [Person(api, 1000 + number, "ru" if number % 2 else "en") for number in range(100)]
        async with running(api, tmp_path, Sketch(2), pace=Pace(), rhythm=RHYTHM.model_copy(update={"edit": 3.0})):
            for number, person in enumerate(people):
                person.sends_album(flat((number, 0, 0)), flat(BLUE))
            await asyncio.gather(*(person.receives(within=90) for person in people))
    seen = [
        (round(call.time - api.calls[0].time, 3), call.method, call.chat) for call in api.calls if call.status == 429
    ]
    assert not api.violations, (api.violations, seen)
    assert [results(person) for person in people] == [[((number, 0, 0), BLUE)] for number in range(100)]


async def test_a_group_hears_no_more_than_its_share(tmp_path: Path) -> None:
    async with BotApi(Limits(chat_seconds=0.1, group_messages=5, group_seconds=3.0)) as api:
        person = Person(api, 7, group=-100)
        pace = Pace(chat_seconds=0.12, group_messages=5, group_seconds=3.1, all_seconds=0.001)
        async with running(api, tmp_path, pace=pace):
            for _ in range(8):
                person.says("/help")
            await person.hears("/forget", 8)
    assert not api.violations, api.violations


async def test_retry_after_is_obeyed_for_its_chat_and_stops_no_other(api: BotApi, tmp_path: Path) -> None:
    seconds = 2
    slow, quick = Person(api, 7), Person(api, 8)
    too_many = Refused(429, f"Too Many Requests: retry after {seconds}", retry_after=seconds)
    async with running(api, tmp_path):
        api.faults["sendDocument"].append(Fault(refusal=too_many, chat=7))
        slow.sends_album(flat(RED), flat(BLUE))
        refused = await api.until(lambda: next((call for call in api.calls if call.status == 429), None))
        quick.sends_album(flat(GREEN), flat(BLUE))
        await quick.receives()
        assert not slow.documents
        await slow.receives()
    later = [
        call for call in api.calls if call.chat == 7 and call.time > refused.time and call.method != "sendChatAction"
    ]
    assert all(call.time - refused.time >= seconds for call in later)
    assert results(slow) == [(RED, BLUE)]


async def test_progress_that_meets_a_429_is_dropped_and_the_result_is_not(api: BotApi, tmp_path: Path) -> None:
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        person.sends_album(flat(RED), flat(BLUE))
        await api.until(lambda: api.made("sendMessage"))
        for method in ("editMessageText", "editMessageMedia", "editMessageCaption"):
            api.faults[method].append(Fault(refusal=Refused(429, "Too Many Requests: retry after 1", retry_after=1)))
        await api.until(lambda: any(call.status == 429 for call in api.calls))
        gate.open()
        await person.receives()
        await person.hears("Done.")


# ── Complaints ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_status_message_that_was_deleted_is_let_go(api: BotApi, tmp_path: Path) -> None:
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        person.sends_album(flat(RED), flat(BLUE))
        status = await person.hears("Painting")
        api.delete(7, status["message_id"])
        gate.open()
        await person.receives()
        person.says("/status")
        await person.hears("Nothing is on my easel")
    assert results(person) == [(RED, BLUE)]
    assert not [message for message in person.heard if "Done." in message.get("text", "")], "nor sent anew"


async def test_not_modified_is_no_trouble(api: BotApi, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        await stage.studio.pause_queue()
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("The queue is paused")
    async with running(api, tmp_path) as stage:  # shows the same again
        await api.until(lambda: any(call.status == 400 for call in api.calls))
        await stage.studio.resume_queue()
        await person.receives()
        await person.hears("Done.")
    assert "not modified" not in caplog.text


async def test_who_blocks_the_bot_gets_the_picture_when_they_come_back(api: BotApi, tmp_path: Path) -> None:
    person, other, gate = Person(api, 7), Person(api, 8), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("Painting")
        api.block(7)
        gate.open()
        await api.until(lambda: any(call.status == 403 and call.method == "sendPhoto" for call in api.calls))
        other.sends_album(flat(GREEN), flat(BLUE))
        await other.receives()
        assert not person.documents
    async with running(api, tmp_path):  # also over a restart
        api.block(7, False)
        person.says("/start")
        await person.receives()
    assert results(person) == [(RED, BLUE)]


async def test_a_photo_that_telegram_refuses_still_comes_as_a_file(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        api.faults["sendPhoto"].append(Fault(refusal=Refused(400, "Bad Request: PHOTO_INVALID_DIMENSIONS")))
        person.sends_album(flat(RED), flat(BLUE))
        (document,) = await person.receives()
        await person.hears("Done.")
    assert "Again" in str(document["reply_markup"]), "the buttons go with it"


async def test_a_file_that_telegram_refuses_is_told(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        api.faults["sendDocument"].append(Fault(refusal=Refused(413, "Request Entity Too Large")))
        person.sends_album(flat(RED), flat(BLUE))
        done = await person.hears("Telegram doesn't take the full-size file.")
        assert (await stage.job()).id[:6] in str(done)


async def test_a_result_larger_than_a_document_may_be_comes_as_jpeg(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    limits = CLOUD.model_copy(update={"document": 30_000})
    async with running(api, tmp_path, Noisy(3), file_limits=limits):
        person.sends_album(flat(RED), flat(BLUE))
        (document,) = await person.receives()
    assert document["document"]["file_name"].endswith(".jpg")
    assert document["document"]["file_size"] <= 30_000
    assert "JPEG" in document["caption"]


class Noisy(Sketch):
    """An engine whose pictures hardly compress."""

    def paint(self, content: object, style: object) -> Image.Image:
        return Image.effect_noise((256, 128), 100).convert("RGB")


# ── The network ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_network_that_is_away_for_a_while(api: BotApi, tmp_path: Path) -> None:
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)) as stage:
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("Painting")
        api.away = True
        gate.open()
        await stage.studio.wait((await stage.job()).id)
        await asyncio.sleep(1.0)  # in which it tries in vain
        person.says("/start")
        api.away = False
        await person.receives()
        await person.hears("Hello!")
    assert results(person) == [(RED, BLUE)]


async def test_a_network_that_comes_only_after_the_start(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    api.away = True
    async with running(api, tmp_path):
        person.sends_album(flat(RED), flat(BLUE))
        api.away = False
        await person.receives()
    assert results(person) == [(RED, BLUE)]


@pytest.mark.parametrize("method", ["sendMessage", "sendPhoto", "sendDocument", "getFile"])
async def test_a_connection_that_breaks_before_telegram_hears(api: BotApi, tmp_path: Path, method: str) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        api.faults[method].append(Fault(before=True))
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        await person.hears("Done.")
    assert results(person) == [(RED, BLUE)]
    assert len(api.made("sendPhoto")) == len(api.made("sendDocument")) == 1


async def test_a_connection_that_breaks_before_the_answer_makes_one_copy_at_most(api: BotApi, tmp_path: Path) -> None:
    """Whether Telegram took it can't be known; rather twice than never."""
    person = Person(api, 7)
    async with running(api, tmp_path):
        api.faults["sendDocument"].append(Fault(after=True))
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives(2)
        await person.hears("Done.")
    assert results(person) == [(RED, BLUE)] * 2


async def test_a_slow_answer_holds_up_nobody_else(api: BotApi, tmp_path: Path) -> None:
    slow, quick = Person(api, 7), Person(api, 8)
    async with running(api, tmp_path):
        api.faults["sendMessage"].append(Fault(seconds=3.0, chat=7))
        began = time.monotonic()
        slow.says("/help")
        quick.says("/help")
        await quick.hears("/forget")
        assert time.monotonic() - began < 2.0
        await slow.hears("/forget")


async def test_an_update_that_comes_again_is_handled_once(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    first, second = person.sends_album(flat(RED), flat(BLUE))
    async with running(api, tmp_path):
        await person.receives()
        await person.hears("Done.")
        api.repeat(first)
        api.repeat(second)
        await api.until(lambda: not api.unconfirmed)
    async with running(api, tmp_path):
        api.repeat(first)
        person.says("/status")
        await person.hears("Nothing is on my easel")
    assert results(person) == [(RED, BLUE)]


# ── Restarts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_restart_goes_on_with_albums_jobs_and_status_messages(api: BotApi, tmp_path: Path) -> None:
    painting, queued, sending, gate = Person(api, 7), Person(api, 8), Person(api, 9), Gate()
    slow = RHYTHM.model_copy(update={"album_quiet": 60.0, "album_longest": 60.0})
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        painting.sends_album(flat(RED), flat(BLUE))
        await painting.hears("Painting")
        queued.sends_album(flat(GREEN), flat(BLUE))
        await queued.hears("In the queue")
    gate.open()
    content, style = sending.album(flat(BLUE), flat(GREEN))
    async with running(api, tmp_path, Sketch(5), rhythm=slow):
        sending.delivers(content)
        await api.until(lambda: not api.unconfirmed)
    sending.delivers(style)
    async with running(api, tmp_path, Sketch(5), rhythm=RHYTHM.model_copy(update={"album_quiet": 2.0})):
        await asyncio.gather(painting.receives(), queued.receives(), sending.receives())
        await asyncio.gather(*(person.hears("Done.") for person in (painting, queued, sending)))
    assert [results(person) for person in (painting, queued, sending)] == [
        [(RED, BLUE)],
        [(GREEN, BLUE)],
        [(BLUE, GREEN)],
    ]
    assert Counter(call.chat for call in api.made("sendMessage")) == {7: 1, 8: 1, 9: 1}, "one status message each"


async def noted(studio: Studio, **changes: object) -> None:
    """Changes the only task on the disk, as a process does that is killed right after."""
    ((key, task),) = (await studio.records.all("bot.tasks")).items()
    await studio.records.put("bot.tasks", key, task | changes)


async def test_a_cancel_that_was_cut_off_is_carried_out(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        await stage.studio.pause_queue()
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("The queue is paused")
        await noted(stage.studio, cancelled=True)
    async with running(api, tmp_path) as stage:
        await person.hears("Cancelled.")
        assert (await stage.job()).state is JobState.CANCELLED


@pytest.mark.parametrize("begun", [True, False])
async def test_a_retry_that_was_cut_off_is_carried_out(api: BotApi, tmp_path: Path, begun: bool) -> None:
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)) as stage:
        person.sends_album(flat(RED), flat(BLUE))
        person.presses(await person.hears("Painting"), "Cancel")
        await person.hears("Cancelled.")
        gate.open()
        await stage.studio.pause_queue()
        if begun:
            await stage.studio.retry((await stage.job()).id)
        await noted(stage.studio, outcome="", cancelled=False, told=False, again=True)
    async with running(api, tmp_path) as stage:
        await stage.studio.resume_queue()
        await person.receives()
        assert (await stage.job()).attempt == 2
    assert results(person) == [(RED, BLUE)]


async def test_closing_is_quick_with_everything_under_way(api: BotApi, tmp_path: Path) -> None:
    gate, began = Gate(), 0.0
    rhythm = RHYTHM.model_copy(update={"shutdown": 4.0})
    async with running(api, tmp_path, Sketch(50, step_seconds=0.02), rhythm=rhythm):
        gate.open()
        people = [Person(api, 7 + number) for number in range(10)]
        for person in people:
            person.sends_album(flat(RED), flat(BLUE))
        await api.until(lambda: len(api.made("sendMessage")) == 10)
        api.faults["sendMessage"].append(Fault(seconds=60.0))
        people[0].says("/help")
        await people[0].hears("/forget")
        began = time.monotonic()
    assert time.monotonic() - began < 10


async def test_what_is_on_its_way_when_it_closes_is_noted(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        api.faults["sendDocument"].append(Fault(seconds=0.8))
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
    async with running(api, tmp_path):
        await person.hears("Done.")
    assert results(person) == [(RED, BLUE)], "the answer was waited for, so it isn't sent again"
