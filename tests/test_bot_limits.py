"""Sizes, paces and choices: against what Telegram says, and what `core` makes of them."""

import asyncio
import datetime
import io
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from telegram.error import RetryAfter

from core import config, images
from core.errors import ImageError
from tests.bot_doubles import fill_gallery, flat
from ui.bot.choices import settings_of, weight_in
from ui.bot.gallery import Gallery
from ui.bot.limits import CLOUD, MIB, Pace, Pacer, seconds_of
from ui.bot.pictures import Workshop, as_document, as_photo, stripped
from ui.bot.records import Choices


def noise(width: int, height: int) -> bytes:
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return images.encode(pixels, "png", recipe={"seed": 7})


# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (4000, 3000), (9000, 600)])
def test_a_photo_is_one_that_telegram_takes(width: int, height: int) -> None:
    data = as_photo(flat((10, 200, 30), (width, height)), CLOUD)
    assert data is not None
    photo = opened(data)
    assert photo.format == "JPEG"
    assert sum(photo.size) <= 10_000
    assert max(photo.size) <= 2560
    assert len(data) <= 10 * MIB
    assert photo.size[0] / photo.size[1] == pytest.approx(width / height, rel=0.02)


def test_a_photo_that_is_too_heavy_is_pressed_harder() -> None:
    limits = CLOUD.model_copy(update={"photo": 60_000})
    data = as_photo(noise(400, 300), limits)
    assert data is not None
    assert 20_000 < len(data) <= 60_000


def test_a_picture_that_is_too_long_is_no_photo() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2050, 100)).save(stream, "PNG")
    with pytest.raises(ImageError):  # nor would it be read as an input
        as_photo(stream.getvalue(), CLOUD)


def test_a_document_is_the_result_itself_as_long_as_it_fits() -> None:
    data = noise(64, 48)
    assert as_document(data, CLOUD) == (data, "png")


def test_a_document_that_is_too_large_becomes_a_jpeg_with_its_recipe() -> None:
    data = noise(400, 300)
    smaller, suffix = as_document(data, CLOUD.model_copy(update={"document": len(data) - 1}))
    assert suffix == "jpg"
    assert len(smaller) < len(data)
    assert opened(smaller).size == (400, 300)
    assert images.read_recipe(smaller)["seed"] == 7


def test_what_comes_loses_its_metadata_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.6)
    stream = io.BytesIO()
    Image.effect_noise((60, 40), 90).convert("RGB").save(stream, "PNG", exif=exif)
    kept = opened(stripped(stream.getvalue()))
    assert kept.size == (40, 60), "upright"
    assert not kept.getexif()


# ── Choices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_choices_become_settings() -> None:
    usual = settings_of(Choices(), {})
    assert usual == config.load(changes={"levels": 1})
    chosen = Choices(level=2, content=7, style=6, noise=0, colours="palette", seed=9)
    found = settings_of(chosen, {"network": "compact"}, [1.0, 2.0])
    assert (found.network, found.levels, found.seed, found.colour) == ("compact", 2, 9, "palette")
    assert found.loss.content_weight == pytest.approx(usual.loss.content_weight * 10 ** (2 / 2.5))
    assert found.loss.style_weight == pytest.approx(usual.loss.style_weight * 10 ** (1 / 2.5))
    assert found.noise.strength == 0
    assert [style.weight for style in found.styles] == [1.0, 2.0]


def test_what_was_chosen_in_former_versions_is_understood() -> None:
    kept = {"level": 0, "preset": "light", "strength": -1, "colours": "photo", "seed": 3}
    assert Choices.model_validate(kept) == Choices(level=0, preset="light", style=4, colours="matched", seed=3)


@pytest.mark.parametrize(
    ("caption", "weight"),
    [("2", 2.0), (" 0,5 ", 0.5), ("×3", 3.0), ("1.25", 1.25), ("", 1.0), (None, 1.0), ("two", 1.0), ("2 cats", 1.0)],
)
def test_a_number_as_a_caption_is_a_weight(caption: str | None, weight: float) -> None:
    assert weight_in(caption) == weight


# ── The gallery ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_gallery_follows_the_operators_folder(tmp_path: Path) -> None:
    fill_gallery(tmp_path)
    workshop = Workshop()
    gallery = Gallery(tmp_path / "bot", tmp_path / "styles", workshop, painted=False)
    before = gallery.version
    assert [style.title for style in gallery.styles()] == ["Green", "Yellow"]
    (tmp_path / "styles" / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "styles" / "notes.txt").write_text("not a style")
    assert [style.title for style in gallery.styles()] == ["Green", "Yellow", "broken"]
    assert gallery.version != before
    sheet = opened(await gallery.sheet())
    assert sheet.size[0] > 2.5 * sheet.size[1], "three tiles in a row; the broken one is blank"
    workshop.close()


async def test_a_painted_style_is_painted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[str] = []

    def paint(name: str) -> torch.Tensor:
        painted.append(name)
        return torch.rand(1, 3, 32, 32)

    monkeypatch.setattr("core.samples.load", paint)
    for _ in range(2):
        workshop = Workshop()
        gallery = Gallery(tmp_path, None, workshop)
        first, second = await asyncio.gather(gallery.picture("waves"), gallery.picture("waves"))
        assert first == second
        workshop.close()
    assert painted == ["waves"]


# ── Pace ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Telegram:
    """Notes when it hears what, and asks to wait as often as it is told to."""

    def __init__(self, refusals: int = 0, wait: float | datetime.timedelta = 0.3) -> None:
        self.heard: list[tuple[float, int]] = []
        self._refusals = refusals
        self._wait = wait

    def call(self, chat: int) -> Callable[..., Coroutine[Any, Any, bool]]:
        async def callback() -> bool:
            self.heard.append((time.monotonic(), chat))
            if self._refusals:
                self._refusals -= 1
                raise RetryAfter(
                    self._wait if isinstance(self._wait, datetime.timedelta) else datetime.timedelta(seconds=self._wait)
                )
            return True

        return callback

    def moments(self, chat: int) -> list[float]:
        return [moment for moment, whom in self.heard if whom == chat]


async def speak(pacer: Pacer, telegram: Telegram, chat: int, kind: str | None = None) -> None:
    await pacer.process_request(telegram.call(chat), (), {}, "sendMessage", {"chat_id": chat}, kind)


async def test_a_chat_hears_one_message_at_a_time_and_others_dont_wait() -> None:
    pacer, telegram = Pacer(Pace(chat_seconds=0.2, all_seconds=0.01)), Telegram()
    await asyncio.gather(*(speak(pacer, telegram, chat) for chat in (1, 1, 1, 2)))
    first, second, third = telegram.moments(1)
    assert min(second - first, third - second) >= 0.2
    assert telegram.moments(2)[0] < second


async def test_a_group_hears_so_many_in_a_minute() -> None:
    pacer, telegram = Pacer(Pace(chat_seconds=0.0, group_messages=3, group_seconds=0.5, all_seconds=0.0)), Telegram()
    await asyncio.gather(*(speak(pacer, telegram, -1) for _ in range(7)))
    moments = telegram.moments(-1)
    assert all(later - earlier >= 0.5 for earlier, later in zip(moments, moments[3:], strict=False))


async def test_all_chats_together_hear_no_more_than_so_many() -> None:
    pacer, telegram = Pacer(Pace(all_seconds=0.02)), Telegram()
    await asyncio.gather(*(speak(pacer, telegram, chat) for chat in range(20)))
    moments = [moment for moment, _ in telegram.heard]
    assert moments[-1] - moments[0] >= 19 * 0.02


@pytest.mark.parametrize("wait", [1, datetime.timedelta(seconds=1)])
async def test_what_telegram_asks_to_wait_is_waited(
    wait: int | datetime.timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTB_TIMEDELTA", "true" if isinstance(wait, datetime.timedelta) else "")
    assert seconds_of(RetryAfter(wait)) == 1.0
    pacer, telegram = Pacer(Pace(chat_seconds=0.0, all_seconds=0.0)), Telegram(1, 0.4)
    await asyncio.gather(speak(pacer, telegram, 1), speak(pacer, telegram, 2))
    refused, repeated = telegram.moments(1)
    assert repeated - refused >= 0.4
    assert telegram.moments(2)[0] - refused < 0.3


async def test_progress_is_told_of_a_429_instead_of_waiting() -> None:
    pacer, telegram = Pacer(Pace()), Telegram(1)
    with pytest.raises(RetryAfter):
        await speak(pacer, telegram, 1, Pacer.PROGRESS)
    assert not pacer.is_free(1)
    assert pacer.is_free(2)
