"""The command that starts the lab, and the lab as a process: how it begins, what it paints, how it ends."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

import lab as command
from core.studio import Studio
from core.studio.executors.local import LocalExecutor
from tests.lab_doubles import QUICK, Plain, config_of
from ui.lab import LabOptions, create_app
from ui.lab.app import serve
from ui.lab.security import TOKEN_VARIABLE

ROOT = Path(command.__file__).parent

TINY = """
[[tables]]
name = "tiny"
title = "Tiny"
contents = ["coffee"]
styles = ["cutouts"]
level = 0
settings = { optimizer = { iterations = 4 } }
"""


# ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "http"], "'http' is not a port"),
        (["--port", "65536"], "'65536' is not a port"),
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["--config", "none.toml"], "none.toml can't be read"),
        (["--host", "0.0.0.0"], "no token"),
        (["--host", "0.0.0.0", "--token", ""], "the token is empty"),
        (["--port"], "expected one argument"),
    ],
)
def test_bad_arguments_end_with_status_2_and_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    try:
        status = command.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    error = capsys.readouterr().err
    assert status == 2
    assert told in error and error.count("\n") == 1 and error.startswith("lab.py: ")


def test_a_mistake_in_the_configuration_is_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.toml"
    path.write_text("[[tables]]\nnmae = 'x'\n")
    assert command.main(["--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert "tables.0.nmae" in error and "Did you mean 'name'?" in error and error.count("\n") == 1


def test_a_data_directory_that_can_not_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    assert command.main(["--port", "0", "--data", str(blocked)]) == 2
    error = capsys.readouterr().err
    assert str(blocked) in error and error.count("\n") == 1


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert command.main(["--port", str(taken.getsockname()[1]), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--port" in error and error.count("\n") == 1


def test_the_telegram_bot_wants_a_token_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("TELEGRAM_BOT_TOKEN", raising=False)
    assert command.main(["--telegram", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "bot token" in error and error.count("\n") == 1


def test_nothing_heavy_is_loaded_to_complain_about_arguments() -> None:
    code = "import lab, sys; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ── In this process ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_companions_are_open_while_the_lab_is(tmp_path: Path) -> None:
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def companion(studio: Studio) -> AsyncIterator[None]:
        told.append("opened")
        assert await studio.counts()
        yield
        assert await studio.counts()  # it is closed before the studio
        told.append("closed")

    (tmp_path / "locks").mkdir()
    executor = LocalExecutor(tmp_path / "locks", QUICK, Plain())
    options = LabOptions(config=config_of(), data=tmp_path)
    app = create_app(options, studio_settings=QUICK, executor=executor, companions=[companion])
    async with TestClient(TestServer(app)):
        assert told == ["opened"]
    assert told == ["opened", "closed"]


async def test_a_device_beyond_use_ends_the_process_for_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Studio) -> Exception:
        return RuntimeError("illegal memory access")

    monkeypatch.setattr(Studio, "until_fatal", broken)
    monkeypatch.setattr(Studio, "fatal", property(lambda self: RuntimeError("illegal memory access")))
    assert await serve(LabOptions(config=config_of(), data=tmp_path, port=0)) == 3


# ── As a process, with the real engine ───────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def _process(*arguments: str, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A lab of its own, and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "lab.py"),
        "--port",
        "0",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert process.stdout
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield process, found[0]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _first_picture(session: aiohttp.ClientSession, address: str) -> Any:
    async with asyncio.timeout(90), session.get(f"{address}/api/events?table=tiny") as stream:
        async for line in stream.content:
            if b'"state":"done"' in line or b'"state":"failed"' in line:
                break
    async with session.get(f"{address}/api/tables/tiny") as response:
        return (await response.json())["cells"][0]["job"]


async def test_a_fresh_lab_paints_by_itself_and_ends_soon_with_open_pages(tmp_path: Path) -> None:
    """The real engine, with the network that ships; nothing is downloaded."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    arguments = ["--data", str(tmp_path / "data"), "--config", str(path)]
    async with aiohttp.ClientSession() as session, _process(*arguments) as (process, address):
        job = await _first_picture(session, address)
        assert (job["state"], job["width"], job["height"]) == ("done", 384, 256), job
        assert job["network"] in ("compact", "vgg19")
        async with session.get(address + job["download"]) as response, asyncio.timeout(30):
            with Image.open(io.BytesIO(await response.read())) as picture:
                assert picture.size == (384, 256)
                assert len(picture.getcolors(2**20) or ()) > 5000  # a painting, not a plain
        for kind in ("noise", "start"):
            async with session.get(f"{address}/media/jobs/{job['id']}/{kind}.jpg") as response:
                assert response.status == 200 and response.content_type == "image/jpeg"
        async with session.get(f"{address}/api/events") as stream:
            await stream.content.readline()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(15):
                assert await process.wait() == 0
            assert time.monotonic() - began < 10


async def test_a_token_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    arguments = ["--data", str(tmp_path / "data"), "--config", str(path), "--host", "0.0.0.0"]
    given = {TOKEN_VARIABLE: "secret words"}
    async with aiohttp.ClientSession() as session, _process(*arguments, **given) as (_, address):
        local = address.replace("0.0.0.0", "127.0.0.1")
        async with session.get(local) as response:
            assert response.status == 401
        async with session.get(local, headers={"Authorization": "Bearer secret words"}) as response:
            assert response.status == 200
