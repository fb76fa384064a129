"""Updates and replies survive the process at every moment, and happen once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from telegram import Bot, Update

from core.studio import Records
from core.studio.jobs import StorageError
from tests.bot_api import TOKEN
from tests.studio_doubles import ScriptedExecutor, open_studio
from ui.bot import inbox as module
from ui.bot.inbox import Inbox
from ui.bot.records import Draft, Letter, Place, Reply, Shelf

BOT = Bot(TOKEN)
HELLO = Reply(place=Place(chat=7), text="hello")
AGAIN = Reply(place=Place(chat=7), text="again")


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    async with open_studio(tmp_path, ScriptedExecutor()) as studio:
        yield studio.records


async def opened(records: Records) -> tuple[Inbox, list[str]]:
    """The inbox of a new process, and what it is about to send."""
    shelf = Shelf(records, "bot.letters", Letter)
    await shelf.load()
    inbox, sending = Inbox(shelf), list[str]()
    inbox.send = sending.append
    await inbox.restore(BOT)
    return inbox, sending


def update(number: int) -> Update:
    chat = {"id": 7, "type": "private", "first_name": "A"}
    person = {"id": 7, "is_bot": False, "first_name": "A", "language_code": "ru"}
    message = {"message_id": 1, "date": 1700000000, "chat": chat, "from": person, "text": "hi"}
    return Update.de_json({"update_id": number, "message": message}, BOT)


async def test_what_was_taken_and_not_handled_is_handled_by_the_next_process(records: Records) -> None:
    inbox, _ = await opened(records)
    await inbox.put(update(1))
    await inbox.put(update(2))  # and here the process ends
    inbox, _ = await opened(records)
    restored = [inbox.get_nowait(), inbox.get_nowait()]
    assert [found.to_dict() for found in restored if isinstance(found, Update)] == [
        update(1).to_dict(),
        update(2).to_dict(),
    ]
    assert inbox.empty()


async def test_what_was_handled_is_not_handled_again(records: Records) -> None:
    inbox, _ = await opened(records)
    await inbox.put(update(1))
    await inbox.settle("1")
    for process in (inbox, (await opened(records))[0]):
        while not process.empty():
            process.get_nowait()
        await process.put(update(1))
        assert process.empty()


async def test_replies_are_sent_by_the_next_process_from_where_this_one_was(records: Records) -> None:
    inbox, sending = await opened(records)
    await inbox.put(update(1))
    await inbox.settle("1", [HELLO, AGAIN])
    assert sending == ["1"]
    await inbox.sent("1")
    inbox, sending = await opened(records)
    assert sending == ["1"]
    assert inbox.waiting("1") == (AGAIN,)
    await inbox.sent("1")
    assert (await opened(records))[1] == []


async def test_settling_twice_says_it_once(records: Records) -> None:
    inbox, sending = await opened(records)
    await inbox.settle("album 7:1", [HELLO])
    await inbox.sent("album 7:1")
    await inbox.settle("album 7:1", [HELLO])
    assert sending == ["album 7:1"]
    assert inbox.waiting("album 7:1") == ()


async def test_a_full_disk_holds_the_update_back(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, _ = await opened(records)
    put, failures = records.put, [StorageError("there is no space left")] * 2

    async def full(space: str, key: str, value: Any) -> None:
        if failures:
            raise failures.pop()
        await put(space, key, value)

    monkeypatch.setattr(records, "put", full)
    monkeypatch.setattr(module, "_DISK_PATIENCE", 0.01)
    await inbox.put(update(1))
    assert not failures
    assert not inbox.empty()
    assert "1" in await records.all("bot.letters")


async def test_two_who_change_a_value_at_the_same_time_dont_undo_each_other(records: Records) -> None:
    shelf = Shelf(records, "bot.drafts", Draft)
    await shelf.put("a", Draft(id="a", place=Place(chat=7), user=7))

    async def change(**changes: object) -> None:
        draft = shelf.get("a")
        assert draft is not None
        await shelf.put("a", draft.model_copy(update=changes))

    await asyncio.gather(change(open=False), change(album="x"), change(user=8))
    fresh = Shelf(records, "bot.drafts", Draft)
    await fresh.load()
    for draft in (shelf.get("a"), fresh.get("a")):
        assert draft is not None
        assert (draft.open, draft.album, draft.user) == (False, "x", 8)


async def test_a_value_that_cant_be_written_counts_for_nothing(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(records, "bot.drafts", Draft)

    async def full(space: str, key: str, value: Any) -> None:
        raise StorageError("there is no space left")

    monkeypatch.setattr(records, "put", full)
    with pytest.raises(StorageError):
        await shelf.put("a", Draft(id="a", place=Place(chat=7), user=7))
    assert shelf.get("a") is None


async def test_one_value_that_cant_be_read_hides_no_other(records: Records) -> None:
    await records.put("bot.drafts", "bad", {"nothing": "known"})
    await records.put("bot.drafts", "good", {"id": "g", "place": {"chat": 7}, "user": 7})
    shelf = Shelf(records, "bot.drafts", Draft)
    await shelf.load()
    assert [key for key, _ in shelf.items()] == ["good"]
