"""`TELEGRAM_BOT_TOKEN=… python tlbot.py`: the Telegram bot, and with `--lab` the lab beside it."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from core import process
from core.errors import UserError
from core.studio import Studio, default_data_directory
from ui.bot.app import Bot, companion, serve
from ui.bot.settings import BotSettings, load

MISTAKE, BROKEN = 2, 3
"""Exit codes: something that the operator can mend; a device that needs a new process."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bot until it is told to stop; returns the exit code."""
    process.prepare()
    parser = argparse.ArgumentParser(prog="tlbot.py", description="The Telegram bot: two photos in, a painting out.")
    parser.add_argument("--data", type=Path, default=default_data_directory(), help="data directory (%(default)s)")
    parser.add_argument("--lab", action="store_true", help="serve the lab, too")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if options.lab:
            return asyncio.run(_serve_both(options.data))
        return asyncio.run(_serve(options.data, load(options.data)))
    except UserError as error:
        print(f"tlbot.py: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return 0


async def _serve_both(data: Path) -> int:
    from ui.lab import app as lab  # noqa: PLC0415
    from ui.lab.tables import DEFAULT_CONFIG, read_config  # noqa: PLC0415

    options = lab.LabOptions(config=read_config(DEFAULT_CONFIG), data=data)
    return await lab.serve(options, companions=(companion(data),))


async def _serve(data: Path, settings: BotSettings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows; there, Ctrl-C raises KeyboardInterrupt
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Studio.open(data, settings.studio) as studio, serve(studio, settings) as bot:
        return await _until_over(stop, bot, studio)


async def _until_over(stop: asyncio.Event, bot: Bot, studio: Studio) -> int:
    """Waits for a signal, or for what makes going on impossible."""
    stopped = asyncio.create_task(stop.wait())
    failed = asyncio.create_task(bot.until_failed())
    broken = asyncio.create_task(studio.until_fatal())
    waiting = {stopped, failed, broken}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise failed.result()
        return BROKEN if broken.done() else 0
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # A thread may be deep in a computation. What it saved is safe; waiting for it would take its time, and taking the
    # interpreter down around it can abort the process with another status.
    os._exit(status)
