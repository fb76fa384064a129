"""Whole conversations with the bot, in both languages, from the first word to the delivered file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.bot_api import BotApi, Person
from tests.bot_doubles import colours, flat, running

RED, BLUE, GREEN, YELLOW, GREY = (200, 0, 0), (0, 0, 200), (0, 200, 0), (200, 200, 0), (90, 90, 90)


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    async with BotApi() as server:
        yield server


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", {"hello": "Hello!", "done": "Done.", "again": "Again", "file": "full-size"}),
        ("ru-RU", {"hello": "Здравствуйте!", "done": "Готово.", "again": "Ещё раз", "file": "в полном размере"}),
    ],
)
async def test_from_hello_to_the_file(api: BotApi, tmp_path: Path, language: str, words: dict[str, str]) -> None:
    person = Person(api, 7, language)
    async with running(api, tmp_path):
        person.says("/start")
        await person.hears(words["hello"])
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        await person.hears(words["done"])
    (document,) = person.documents
    assert colours(api.files[document["document"]["file_id"]]) == (RED, BLUE)
    assert words["file"] in document["caption"]
    result = person.photos[-1]
    assert words["again"] in str(result["reply_markup"])
    status = await person.hears(words["done"])
    assert "reply_markup" not in status, "nothing is left to cancel"
    assert len(api.made("sendMessage", chat=7)) == 2, "the greeting, and one status message"
