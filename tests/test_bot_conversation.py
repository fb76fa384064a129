"""Whole conversations with the bot, in both languages, from the first word to the delivered file."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from core import config, dials, images
from core.studio.jobs import Run
from tests.bot_api import BotApi, Person
from tests.bot_doubles import (
    BLUE,
    GREEN,
    GREY,
    RED,
    YELLOW,
    Gate,
    Sketch,
    contains,
    fill_gallery,
    flat,
    results,
    running,
)

ME = "@pyramid_style_bot"


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    async with BotApi() as server:
        yield server


# ── The usual way ────────────────────────────────────────────────────────────────────────────────────────────────────


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
    assert results(person) == [(RED, BLUE)]
    assert words["file"] in person.documents[0]["caption"]
    assert person.documents[0]["document"]["file_name"].endswith(".png")
    assert words["again"] in str(person.photos[-1]["reply_markup"])
    status = await person.hears(words["done"])
    assert "reply_markup" not in status, "nothing is left to cancel"
    assert len(api.made("sendMessage", chat=7)) == 2, "the greeting, and one status message"


async def test_the_status_message_shows_place_percent_and_preview(api: BotApi, tmp_path: Path) -> None:
    first, second, gate = Person(api, 7), Person(api, 8), Gate(iteration=4)
    async with running(api, tmp_path, Sketch(8, hook=gate)):
        first.sends_album(flat(RED), flat(BLUE))
        await first.hears("Painting: ")
        status = await api.until(lambda: next((message for message in first.photos if message["caption"]), None))
        assert "%" in status["caption"]
        assert "Cancel" in str(status["reply_markup"])
        second.sends_album(flat(GREEN), flat(BLUE))
        await second.hears("In the queue, place 1")
        gate.open()
        await asyncio.gather(first.receives(), second.receives())
        done = await first.hears("Done.")
    assert done["message_id"] == status["message_id"], "it is one message from beginning to end"


async def test_the_first_of_an_album_is_the_one_sent_first(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        content, style = person.album(flat(RED), flat(BLUE))
        person.delivers(style)
        person.delivers(content)
        await person.receives()
    assert results(person) == [(RED, BLUE)]


async def test_late_and_repeated_parts_start_no_second_job(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        content, style, late = person.album(flat(RED), flat(BLUE), flat(GREEN))
        first = person.delivers(content)
        person.delivers(content)
        person.delivers(style)
        await person.receives()
        api.repeat(first)
        person.delivers(late)
        person.delivers(content)
        person.says("/help")
        await person.hears("/forget")
        assert len(await stage.studio.jobs()) == 1
    assert results(person) == [(RED, BLUE)]


async def test_a_second_part_that_is_very_late_is_the_style_all_the_same(api: BotApi, tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    person = Person(api, 7)
    async with running(api, tmp_path):
        content, style = person.album(flat(RED), flat(BLUE))
        person.delivers(style)
        await person.hears("Which style?")
        person.delivers(content)
        await person.receives()
    assert results(person) == [(RED, BLUE)]


async def test_of_three_the_others_are_styles_in_turn(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        person.sends_album(flat(RED), flat(BLUE), flat(GREEN))
        question = await person.hears("Shall I make 2 paintings")
        person.presses(question, "Yes, 2")
        await person.receives(2)
        assert sorted(map(str, results(person))) == sorted([str((RED, BLUE)), str((RED, GREEN))])
        await api.until(lambda: "reply_markup" not in question)

        person.sends_album(flat(GREY), flat(BLUE), flat(GREEN))
        person.presses(await person.hears("Shall I make 2 paintings", 2), "Only the first")
        await person.receives(3)
        assert results(person)[2] == (GREY, BLUE)

        person.sends_album(flat(GREY), flat(BLUE), flat(GREEN))
        person.presses(await person.hears("Shall I", 3), "Not now")
        await person.hears("put aside")


async def test_one_picture_and_a_style_of_the_gallery(api: BotApi, tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    person = Person(api, 7, "ru")
    async with running(api, tmp_path) as stage:
        person.sends_photo(flat(RED))
        gallery = await person.hears("В каком стиле?")
        with Image.open(io.BytesIO(api.files[gallery["photo"][0]["file_id"]])) as sheet:
            left = sheet.convert("RGB").getpixel((sheet.width // 4, sheet.height // 2))
        assert isinstance(left, tuple)
        assert all(abs(a - b) < 8 for a, b in zip(left, GREEN, strict=True)), "the sheet shows the first style"
        person.presses(gallery, "1 · Green")
        await person.receives()
        again = person.presses(gallery, "1 · Green")
        await api.until(lambda: "text" in again)
        assert again["text"] == "Эта картина уже есть."
        person.presses(gallery, "2 · Yellow")
        await person.receives(2)
        assert results(person) == [(RED, GREEN), (RED, YELLOW)]
        assert len(await stage.studio.jobs()) == 2


async def test_the_sheet_is_uploaded_once(api: BotApi, tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    async with running(api, tmp_path):
        for user in (7, 8, 9):
            Person(api, user).says("/styles")
            await Person(api, user).hears("My styles.")
    assert len([file for file in api.files.values() if len(file) > 2000]) == 1


async def test_two_pictures_one_after_the_other(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        person.sends_photo(flat(RED))
        await person.hears("Now send me a picture of the style")
        person.sends_photo(flat(BLUE))
        await person.receives()
        person.sends_photo(flat(GREEN))  # this one begins anew
        await person.hears("A good start", 2)
        assert len(await stage.studio.jobs()) == 1
    assert results(person) == [(RED, BLUE)]


async def test_pictures_far_apart_are_no_pair(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    rhythm = {"pairing": 0.0, "album_quiet": 0.1}
    async with running(api, tmp_path, rhythm=rhythm) as stage:
        person.sends_photo(flat(RED))
        await person.hears("A good start")
        person.sends_photo(flat(BLUE))
        await person.hears("A good start", 2)
        assert not await stage.studio.jobs()


async def test_a_style_first_and_then_the_photo(api: BotApi, tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    person = Person(api, 7)
    async with running(api, tmp_path):
        person.says("/styles")
        person.presses(await person.hears("My styles."), "2 · Yellow")
        await person.hears("Yellow it is.")
        person.sends_photo(flat(RED))
        await person.receives()
    assert results(person) == [(RED, YELLOW)]


async def test_the_gallery_for_a_picture_that_is_replied_to(api: BotApi, tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    person = Person(api, 7)
    async with running(api, tmp_path):
        old = person.sends_photo(flat(RED))
        await person.hears("Which style?")
        person.sends_photo(flat(BLUE))
        await person.receives()  # these two were a pair
        person.sends_photo(flat(GREY))
        await person.hears("Which style?", 2)
        person.says("/styles", reply_to=old)
        person.presses(await person.hears("Which style?", 3), "1 · Green")
        await person.receives(2)
    assert results(person) == [(RED, BLUE), (RED, GREEN)]


async def test_a_file_is_taken_at_full_quality_and_without_its_metadata(api: BotApi, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.6)  # latitude
    exif[0x010E] = "taken at home"
    noisy = Image.effect_noise((300, 200), 80).convert("RGB")
    stream = io.BytesIO()
    noisy.save(stream, "PNG", exif=exif)
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        person.sends_document(stream.getvalue())
        await person.hears("A good start")
        person.sends_document(flat(BLUE), "style.webp", "application/octet-stream")
        await person.receives()
        kept = await stage.studio.input_bytes((await stage.job()).content)
    assert b"taken at home" in stream.getvalue()
    assert b"taken at home" not in kept
    with Image.open(io.BytesIO(kept)) as picture:
        assert not picture.getexif()
        assert picture.convert("RGB").tobytes() == noisy.tobytes()


# ── Buttons ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_again_stronger_weaker_larger_swap_and_as_file(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    usual = config.load()
    async with running(api, tmp_path) as stage:
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        await person.hears("Done.")
        result = person.photos[-1]
        for number, (button, shown) in enumerate(
            [
                ("Again", (RED, BLUE)),
                ("Stronger", (RED, BLUE)),
                ("Weaker", (RED, BLUE)),
                ("Larger (1024 px)", (RED, BLUE)),
            ],
            2,
        ):
            person.presses(result, button)
            await person.receives(number)
            assert results(person)[-1] == shown
        person.presses(result, "Swap")
        await person.receives(6)
        assert results(person)[-1] == (BLUE, RED)
        first, again, stronger, weaker, larger, _ = [job.settings for job in reversed(await stage.studio.jobs())]
        person.presses(result, "As file")
        await person.receives(7)
    assert first.levels == usual.levels
    assert first.loss.content_weight == pytest.approx(usual.loss.content_weight)
    assert again == first.changed({"seed": again.seed})
    assert again.seed != first.seed
    assert stronger == dials.apply(first, {"style": 6})
    assert weaker == dials.apply(first, {"style": 4})
    assert weaker.loss.style_weight < first.loss.style_weight < stronger.loss.style_weight
    assert larger == first.changed({"levels": first.levels + 1})
    sent = [message["document"]["file_id"] for message in person.documents]
    assert sent[6] == sent[0], "the file is sent again, not uploaded again"


async def test_an_album_of_styles_in_one_painting_by_their_weights(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        person.sends_album(flat(RED), flat(BLUE), flat(GREEN), captions=("", "", "2,5"))
        person.presses(await person.hears("the other 2 are styles"), "One, with all styles")
        await person.receives()
        job = await stage.job()
        shown = [images.read(await stage.studio.input_bytes(style)).pixels.mean((0, 2, 3)) for style in job.styles]
        assert len(await stage.studio.jobs()) == 1
        buttons = str(person.photos[-1]["reply_markup"])
    assert [style.argmax().item() for style in shown] == [2, 1], "blue, then green"
    assert [style.weight for style in job.settings.styles] == [1.0, 2.5]
    assert "Swap" not in buttons and "Again" in buttons


async def test_a_film_comes_with_the_painting_where_it_is_set(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        person.says("/settings")
        panel = await person.hears("Settings of this chat")
        person.presses(panel, "With a film")
        await api.until(partial(contains, panel, "• With a film"))
        person.sends_album(flat(RED), flat(BLUE))
        await api.until(lambda: person.films)
        await person.hears("Done.")
    (film,) = person.films
    assert film["caption"] == "How it came to be."
    assert len(person.documents) == 1
    assert "Film" in str(person.photos[-1]["reply_markup"])


async def test_a_film_of_a_finished_painting_comes_alone(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path) as stage:
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        await person.hears("Done.")
        person.presses(person.photos[-1], "Film")
        await api.until(lambda: person.films)
        await person.hears("Done.", 2)
        first, second = reversed(await stage.studio.jobs())
    assert len(person.documents) == 1, "the painting is there already"
    assert first.settings == second.settings
    assert (first.film, second.film) == (False, True)


async def test_a_button_pressed_twice_makes_one_painting(api: BotApi, tmp_path: Path) -> None:
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)) as stage:
        gate.open()
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        person.presses(person.photos[-1], "Again")
        second = person.presses(person.photos[-1], "Again")
        await api.until(lambda: "text" in second or len(person.documents) >= 3)
        assert second["text"] == "That one is made already."
        await person.receives(2)
        assert len(await stage.studio.jobs()) == 2


async def test_buttons_obey_their_owner_only(api: BotApi, tmp_path: Path) -> None:
    owner, stranger, gate = Person(api, 7, group=-100), Person(api, 8, group=-100), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        owner.sends_album(flat(RED), flat(BLUE), captions=(ME,))
        status = await owner.hears("Painting")
        answer = stranger.presses(status, "Cancel")
        await api.until(lambda: "text" in answer)
        assert answer["text"].startswith("These buttons belong")
        assert answer["show_alert"] == "true"
        gate.open()
        await owner.receives()
        owner.says("/settings")
        panel = await owner.hears("Settings of this chat")
        answer = stranger.presses(panel, "256 px")
        await api.until(lambda: "text" in answer)
        assert answer["text"].startswith("These buttons belong")


async def test_a_button_of_long_ago_is_answered(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        person.says("/start")
        message = await person.hears("Hello!")
        for data in ("more:0123456789abcdef:again", "style:0123456789abcdef:x", "album:0123456789abcdef:all"):
            answer = person.presses_data(message, data)
            await api.until(partial(contains, answer, "text"))
            assert answer["text"].startswith("These pictures have been deleted")


# ── Cancelling ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("by_button", [True, False])
async def test_a_running_painting_is_cancelled_and_begun_again(api: BotApi, tmp_path: Path, by_button: bool) -> None:
    person, gate = Person(api, 7), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        person.sends_album(flat(RED), flat(BLUE))
        status = await person.hears("Painting")
        if by_button:
            person.presses(status, "Cancel")
        else:
            person.says("/cancel")
            await person.hears("Stopping: 1.")
        cancelled = await person.hears("Cancelled.")
        assert cancelled["message_id"] == status["message_id"]
        gate.open()
        person.presses(cancelled, "Try again")
        await person.receives()
    assert results(person) == [(RED, BLUE)]


async def test_cancel_works_while_an_album_comes_in(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    rhythm = {"album_quiet": 60.0, "album_longest": 60.0}
    async with running(api, tmp_path, rhythm=rhythm) as stage:
        person.sends_album(flat(RED), flat(BLUE))
        person.says("/status")
        await person.hears("Nothing is on my easel")
        person.says("/cancel")
        await person.hears("put aside")
        person.says("/cancel")
        await person.hears("There is nothing to stop.")
        assert not await stage.studio.jobs()


async def test_status_tells_of_everything_under_way(api: BotApi, tmp_path: Path) -> None:
    person, gate = Person(api, 7, "ru"), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        person.sends_album(flat(RED), flat(BLUE))
        await person.hears("Пишу картину")
        person.sends_album(flat(RED), flat(GREEN))
        await person.hears("В очереди")
        person.says("/status")
        answer = await person.hears("1. Пишу картину: ")
        assert "2. В очереди, место 1" in answer["text"]
        gate.open()
        await person.receives(2)


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_settings_are_remembered_and_used(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    async with running(api, tmp_path):
        person.says("/settings")
        panel = await person.hears("Settings of this chat")
        for button, shown in [
            ("256 px", "• 256 px"),
            ("Gentle", "• Gentle"),
            ("Colours of the photo", "• Colours of the photo"),
        ]:
            person.presses(panel, button)
            await api.until(partial(contains, panel, shown))
        for pressed, shown in [
            ("style:6", "Style 6"),
            ("style:7", "Style 7"),
            ("content:4", "Content 4"),
            ("noise:10", "Noise 10"),
            ("noise:11", "Noise 10"),
            ("content:5", "Content 5"),
        ]:
            person.presses_data(panel, f"set:7:{pressed}")
            await api.until(partial(contains, panel, shown))
    async with running(api, tmp_path) as stage:  # and after a restart
        person.presses(panel, "Русский")
        await person.hears("Настройки этого чата")
        person.sends_album(flat(RED), flat(BLUE))
        await person.receives()
        await person.hears("Готово.")
        job = await stage.job()
        light = config.load("light")
        assert job.settings.levels == 0
        assert job.settings == dials.apply(
            light.changed({"levels": 0, "colour": "content"}), {"style": 7, "content": 5, "noise": 10}
        )


async def test_commands_are_in_the_menu_in_every_language(api: BotApi, tmp_path: Path) -> None:
    async with running(api, tmp_path, admins=[7]):
        await api.until(lambda: len(api.commands) == 3)
    english, russian = api.commands[""], api.commands["ru"]
    names = [command["command"] for command in english]
    assert {"start", "help", "styles", "status", "cancel", "settings"} <= set(names)
    assert names == [command["command"] for command in russian]
    assert english[1]["description"] != russian[1]["description"]
    (scope,) = [key for key in api.commands if "chat_id" in key]
    assert {"queue", "pause", "resume", "stats"} <= {command["command"] for command in api.commands[scope]}


# ── Groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_in_a_group_only_what_is_said_to_it_is_answered(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7, group=-100)
    async with running(api, tmp_path) as stage:
        person.says("nice weather")
        person.sends_photo(flat(RED), caption="look")
        person.sends_album(flat(RED), flat(BLUE))
        album = person.album(flat(GREY), flat(BLUE), captions=("", f"please {ME}"))
        for part in album:
            person.delivers(part)
        await person.receives()
        assert len(await stage.studio.jobs()) == 1
    assert results(person) == [(GREY, BLUE)]
    answered = {message["reply_to_message"]["message_id"] for message in person.heard}
    assert answered == {album[0]["message_id"]}


async def test_in_a_topic_it_answers_there_and_in_reply(api: BotApi, tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    person, other = Person(api, 7, group=-100, topic=5), Person(api, 8, group=-100, topic=5)
    async with running(api, tmp_path):
        photo = other.sends_photo(flat(RED))
        person.says(f"/styles{ME}", reply_to=photo)
        gallery = await person.hears("Which style?")
        person.presses(gallery, "1 · Green")
        await person.receives()
    assert results(person) == [(RED, GREEN)]
    assert all(message["message_thread_id"] == 5 for message in person.heard)
    assert all("reply_to_message" in message for message in person.heard)


async def test_a_topic_that_is_deleted_meanwhile_loses_no_result(api: BotApi, tmp_path: Path) -> None:
    person, gate = Person(api, 7, group=-100, topic=5), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        person.sends_album(flat(RED), flat(BLUE), captions=(ME,))
        await person.hears("Painting")
        api.delete_topic(-100, 5)
        gate.open()
        await person.receives()
    assert results(person) == [(RED, BLUE)]


async def test_two_people_in_a_group_dont_mix(api: BotApi, tmp_path: Path) -> None:
    one, two = Person(api, 7, group=-100), Person(api, 8, group=-100)
    async with running(api, tmp_path) as stage:
        one.sends_photo(flat(RED), caption=ME)
        two.sends_photo(flat(GREEN), caption=ME)
        await api.until(lambda: len(one.heard) == 2)
        one.sends_photo(flat(BLUE), reply_to=one.heard[0])
        two.sends_photo(flat(YELLOW), reply_to=one.heard[1])
        await one.receives(2)
        assert {job.owner for job in await stage.studio.jobs()} == {"tg:7", "tg:8"}
    assert sorted(map(str, results(one))) == sorted(map(str, [(RED, BLUE), (GREEN, YELLOW)]))


async def test_a_group_that_becomes_a_supergroup_gets_its_picture(api: BotApi, tmp_path: Path) -> None:
    person, moved, gate = Person(api, 7, group=-5), Person(api, 7, group=-100), Gate()
    async with running(api, tmp_path, Sketch(5, hook=gate)):
        person.sends_album(flat(RED), flat(BLUE), captions=(ME,))
        await person.hears("Painting")
        moved.says("we moved")
        api.move(-5, -100)
        gate.open()
        await moved.receives()
    assert results(moved) == [(RED, BLUE)]


# ── What it can't use ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_isnt_a_picture_is_explained(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7)
    file = {"file_id": "x", "file_unique_id": "x", "file_size": 1000}
    clip = file | {"width": 10, "height": 10, "duration": 3}
    async with running(api, tmp_path) as stage:
        person.says("paint me a sheep")
        await person.hears("I work with pictures. Send me two in one message")
        person.says("/paint")
        await person.hears("I don't know this command.")
        person.sends(video=clip)
        await person.hears("a still of the video")
        person.sends(
            sticker=file | {"width": 5, "height": 5, "is_animated": False, "is_video": False, "type": "regular"}
        )
        await person.hears("Send me a photo instead")
        person.sends(voice=file | {"duration": 3})
        await person.hears("I work with pictures only")
        person.sends_document(b"%PDF", "thesis.pdf", "application/pdf")
        await person.hears("JPEG, PNG, WebP or TIFF")
        person.sends_document(flat(RED), size=25 * 2**20)
        await person.hears("This file has 25 MB, and Telegram lets me fetch 20 MB. Send it as a photo")
        assert not await stage.studio.jobs()


async def test_a_heic_file_without_its_library(api: BotApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "formats", lambda: images.Formats(("JPEG", "PNG"), ("PNG",)))
    person = Person(api, 7)
    async with running(api, tmp_path):
        person.sends_document(b"....ftypheic", "IMG_1.HEIC", "image/heic")
        await person.hears("Send the picture as a photo instead of a file.")


@pytest.mark.parametrize(("language", "sorry"), [("en", "That didn't work."), ("ru", "Не получилось.")])
async def test_a_broken_picture_is_named_with_what_to_do(
    api: BotApi, tmp_path: Path, language: str, sorry: str
) -> None:
    person = Person(api, 7, language)
    async with running(api, tmp_path):
        person.sends_document(b"\x89PNG\r\n\x1a\n and then nothing")
        await api.until(lambda: person.heard)
        person.sends_photo(flat(BLUE))
        status = await person.hears(sorry)
        assert "Traceback" not in status["text"]
        english = "".join(letter for letter in status["text"] if letter.isascii() and letter.isalpha())
        assert language == "en" or len(english) < 20, status["text"]


async def test_a_file_whose_size_only_the_server_knows(api: BotApi, tmp_path: Path) -> None:
    person = Person(api, 7, "ru")
    async with running(api, tmp_path):
        message = person.message_with_document(flat(RED), size=25 * 2**20)
        del message["document"]["file_size"]
        person.delivers(message)
        await api.until(lambda: person.heard)
        person.sends_photo(flat(BLUE))
        await person.hears("Файл такого размера Telegram ботам не отдаёт. Пришлите его как фото или уменьшите.")


async def test_a_failure_has_a_number_and_the_log_has_the_rest(
    api: BotApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail = True

    def hook(run: Run, iteration: int) -> None:
        if fail:
            raise ValueError("a secret of the engine")

    person = Person(api, 7)
    async with running(api, tmp_path, Sketch(5, hook=hook)) as stage:
        with caplog.at_level(logging.ERROR):
            person.sends_album(flat(RED), flat(BLUE))
            status = await person.hears("That didn't work.")
        job = await stage.job()
        assert job.id[:6] in status["text"]
        assert "secret" not in status["text"]
        assert job.id in caplog.text
        assert "a secret of the engine" in caplog.text
        fail = False
        person.presses(status, "Try again")
        await person.receives()
    assert results(person) == [(RED, BLUE)]
