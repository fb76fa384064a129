"""The bot as a program: its token, its settings, its doors, and the real engine behind it once."""

import asyncio
import io
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from core import images
from core.errors import SettingsError
from tests.bot_api import TOKEN, BotApi, Person
from tests.bot_doubles import BLUE, RED, colours, flat, results, running
from tests.bot_doubles import settings as quick_settings
from ui.bot.app import companion
from ui.bot.limits import CLOUD, SELF_HOSTED
from ui.bot.redaction import redacted
from ui.bot.settings import TokenError, load

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    async with BotApi() as server:
        yield server


async def tlbot(data: Path, **environment: str) -> asyncio.subprocess.Process:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TELEGRAM")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "tlbot.py",
        "--data",
        str(data),
        cwd=ROOT,
        env=clean | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode()


# ── The program ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
async def test_from_album_to_file_with_the_real_engine(api: BotApi, tmp_path: Path) -> None:
    (tmp_path / "bot.toml").write_text(
        """
        painted_styles = false
        rhythm = { album_quiet = 0.3, preview = 1.0 }
        [changes]
        network = "compact"
        optimizer = { iterations = 4, coarse_iterations = 4 }
        """
    )
    person = Person(api, 7)
    photo = io.BytesIO()
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(photo, "JPEG")
    style = io.BytesIO()
    Image.effect_mandelbrot((200, 200), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(style, "PNG")
    process = await tlbot(tmp_path, TELEGRAM_BOT_TOKEN=TOKEN, TELEGRAM_API_URL=api.url)
    try:
        person.says("/settings")
        person.presses(await person.hears("Settings of this chat"), "256 px")
        person.sends_album(photo.getvalue(), style.getvalue())
        (message,) = await person.receives(within=90)
        await person.hears("Done.")
    finally:
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        status, output = await ended(process)
    assert status == 0
    assert time.monotonic() - began < 10
    assert TOKEN not in output
    assert TOKEN.partition(":")[2] not in output
    data = api.files[message["document"]["file_id"]]
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("PNG", (384, 256))
    recipe = images.read_recipe(data)
    assert recipe["settings"]["network"] == "compact"
    assert recipe["settings"]["optimizer"]["iterations"] == 4


@pytest.mark.parametrize(
    ("token", "complaint"), [("", "there is no bot token"), ("12:tooshort", "the bot token isn't one")]
)
async def test_without_a_token_it_says_how_to_get_one(tmp_path: Path, token: str, complaint: str) -> None:
    status, output = await ended(await tlbot(tmp_path, TELEGRAM_BOT_TOKEN=token))
    assert status == 2
    assert complaint in output
    assert "@BotFather" in output
    assert len(output.splitlines()) == 1
    assert "tooshort" not in output


async def test_a_token_that_telegram_doesnt_know(api: BotApi, tmp_path: Path) -> None:
    wrong = TOKEN[:-1] + "X"
    status, output = await ended(await tlbot(tmp_path, TELEGRAM_BOT_TOKEN=wrong, TELEGRAM_API_URL=api.url))
    assert status == 2
    assert "Telegram doesn't know this bot token" in output
    assert "Traceback" not in output
    assert wrong not in output


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_token_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    found = load(tmp_path, {"TELEGRAM_BOT_TOKEN_FILE": str(tmp_path / "token")})
    assert found.token.get_secret_value() == TOKEN
    assert TOKEN not in repr(found)
    with pytest.raises(TokenError, match="can't be read"):
        load(tmp_path, {"TELEGRAM_BOT_TOKEN_FILE": str(tmp_path / "nothing")})


def test_a_server_of_ones_own_takes_larger_files(tmp_path: Path) -> None:
    environment = {"TELEGRAM_BOT_TOKEN": TOKEN}
    assert load(tmp_path, environment).limits == CLOUD
    own = load(tmp_path, environment | {"TELEGRAM_API_URL": "http://127.0.0.1:8081/"})
    assert own.limits == SELF_HOSTED
    assert own.api_url == "http://127.0.0.1:8081"
    with pytest.raises(SettingsError, match="TELEGRAM_API_URL"):
        load(tmp_path, environment | {"TELEGRAM_API_URL": "127.0.0.1"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alowed = [1]", "alowed"),
        ('access = "everybody"', "access"),
        ("highest_level = 99", "highest_level"),
        ('webhook = { url = "http://example.org" }', "https://"),
        ("changes = { optimiser = 1 }", "optimizer"),
        ("access = ", "can't be read"),
    ],
)
def test_a_slip_in_the_settings_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "bot.toml").write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        load(tmp_path, {"TELEGRAM_BOT_TOKEN": TOKEN})


def test_a_companion_complains_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TELEGRAM_BOT_TOKEN", raising=False)
    with pytest.raises(TokenError):
        companion(tmp_path)


# ── The webhook ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_webhook_takes_updates_from_who_knows_its_secret(api: BotApi, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    webhook = {"url": "https://bot.example.org/telegram", "port": port}
    person = Person(api, 7)
    updates = person.sends_album(flat(RED), flat(BLUE))
    async with running(api, tmp_path, webhook=webhook), aiohttp.ClientSession() as telegram:
        await api.until(lambda: api.commands)  # published when it listens
        assert api.webhook["url"] == webhook["url"]
        secret = api.webhook["secret_token"]

        async def bring(update: dict[str, Any], secret: str) -> int:
            headers = {"X-Telegram-Bot-Api-Secret-Token": secret}
            async with telegram.post(f"http://127.0.0.1:{port}/telegram", json=update, headers=headers) as answer:
                return answer.status

        assert await bring(updates[0], "guessed") == 403
        assert [await bring(update, secret) for update in (*updates, updates[0])] == [200, 200, 200]
        await person.receives()
    assert not api.made("getUpdates")
    assert results(person) == [(RED, BLUE)]
    assert secret == quick_settings(api, tmp_path).webhook_secret


# ── The token in logs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_handler_ever_shows_the_token() -> None:
    shown = io.StringIO()
    logger = logging.getLogger("a library")
    logger.setLevel(logging.DEBUG)
    with redacted(TOKEN):
        handler = logging.StreamHandler(shown)  # one that came later
        logger.addHandler(handler)
        try:
            url = f"https://api.telegram.org/bot{TOKEN}/getMe"
            logger.info("HTTP Request: POST %s", url)
            logger.info("encoded: %s", url.replace(":", "%3A"))
            logger.info("half: %s", TOKEN.partition(":")[2])
            logger.info("a format that doesn't fit: %s %s", TOKEN)  # noqa: PLE1206
            try:
                raise ValueError(f"can't reach {url}")
            except ValueError as error:
                logger.exception("it failed")
                logger.error("again", exc_info=error, stack_info=True)
        finally:
            logger.removeHandler(handler)
        assert not logging.getLogger("httpx").isEnabledFor(logging.INFO), "whole URLs are not even formatted"
        assert not logging.getLogger("httpcore").isEnabledFor(logging.DEBUG)
    text = shown.getvalue()
    assert "AAEhBOweik6ad9r" not in text
    assert text.count("<token>") == 6
    assert "Traceback" in text, "what went wrong is still told"


async def test_a_running_bot_shows_no_token(api: BotApi, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    person = Person(api, 7)
    with caplog.at_level(logging.DEBUG):
        async with running(api, tmp_path):
            api.away = True
            person.says("/help")
            await asyncio.sleep(0.5)  # in which requests fail
            api.away = False
            person.sends_album(flat(RED), flat(BLUE))
            await person.receives()
    assert caplog.records
    assert TOKEN.partition(":")[2] not in caplog.text
    assert colours(api.files[person.documents[0]["document"]["file_id"]]) == (RED, BLUE)


def test_the_sample_settings_are_the_defaults(tmp_path: Path) -> None:
    environment = {"TELEGRAM_BOT_TOKEN": TOKEN}
    plain = load(tmp_path, environment)
    (tmp_path / "bot.toml").write_text((ROOT / "deploy" / "bot.toml").read_text())
    assert load(tmp_path, environment) == plain
