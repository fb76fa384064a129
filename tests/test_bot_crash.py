"""A bot that is killed again and again: everybody gets their painting, and nobody gets one without a reason twice."""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.bot_api import BotApi, Call, Person
from tests.bot_doubles import BLUE, flat, results

ROOT = Path(__file__).resolve().parent.parent
PEOPLE = 10
KILLS = 10


async def spawn(data: Path, url: str) -> asyncio.subprocess.Process:
    command = f"from tests.bot_doubles import live; live({str(data)!r}, {url!r}, 0.02)"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"begun\n"
    return child


async def kill(child: asyncio.subprocess.Process) -> float:
    """Returns when it was done."""
    os.kill(child.pid, signal.SIGKILL)
    moment = time.monotonic()
    await child.wait()
    return moment


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a matter of POSIX")
@pytest.mark.slow
async def test_ten_conversations_and_ten_kills(tmp_path: Path) -> None:
    dice = random.Random()
    seed = dice.randrange(2**32)
    dice.seed(seed)
    kills: list[float] = []
    async with BotApi() as api:
        people = [Person(api, 100 + number, "ru" if number % 2 else "en") for number in range(PEOPLE)]
        speaking = asyncio.create_task(_speak(people, dice))
        for _ in range(KILLS):
            child = await spawn(tmp_path, api.url)
            told = len(api.calls)
            await api.until(lambda told=told: len(api.calls) > told + 2)  # type: ignore[misc]  # it is at work again
            await asyncio.sleep(dice.uniform(0, 1.0))  # this moment is what the test is about
            kills.append(await kill(child))
        await speaking
        child = await spawn(tmp_path, api.url)
        try:
            await asyncio.gather(*(person.receives(within=60) for person in people))
            for person in people:
                await person.hears("Done." if person.account["language_code"] == "en" else "Готово.")
        finally:
            await kill(child)
    for number, person in enumerate(people):
        assert set(results(person)) == {((number, 0, 0), BLUE)}, f"seed {seed}"
    unexplained = [extra for person in people for extra in _extras(api, person) if not _was_cut(extra, kills)]
    assert not unexplained, f"seed {seed}: {unexplained}"


async def _speak(people: list[Person], dice: random.Random) -> None:
    """Ten albums, at any time, also while there is no bot."""
    for number, person in enumerate(people):
        content, style = person.album(flat((number, 0, 0)), flat(BLUE))
        person.delivers(content)
        await asyncio.sleep(dice.uniform(0, 0.2))
        person.delivers(style)
        await asyncio.sleep(dice.uniform(0, 0.8))


def _extras(api: BotApi, person: Person) -> list[Call]:
    """For every message that came more than once, the calls after which it came again."""
    calls = api.made("sendMessage", "sendPhoto", "sendDocument", chat=person.user)
    copies = Counter(call.method for call in calls)
    assert set(copies) == {"sendMessage", "sendPhoto", "sendDocument"}
    return [call for method in copies for call in [made for made in calls if made.method == method][:-1]]


def _was_cut(call: Call, kills: list[float]) -> bool:
    """Whether the process was killed between Telegram's taking a message and the note of it, which takes moments."""
    return any(0 <= killed - call.time < 1.0 for killed in kills)
