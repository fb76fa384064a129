"""Starts the lab: `python lab.py [--host H] [--port P] [--data DIR] [--config FILE] [--token T] [--telegram]`."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from core import process
from core.errors import UserError
from ui.lab.app import Companion, LabOptions, serve
from ui.lab.security import TOKEN_VARIABLE
from ui.lab.tables import DEFAULT_CONFIG, read_config


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; use 0 to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    about = "A web page that computes and shows tables of pictures, live, and takes new ones."
    parser = _Parser(prog="lab.py", description=about)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; any but loopback needs a token")
    parser.add_argument("--port", type=_port, default=8080, help="port to listen on (default 8080; 0: any free one)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where jobs and pictures are kept")
    parser.add_argument("--config", type=Path, metavar="FILE", default=DEFAULT_CONFIG, help="which tables to show")
    parser.add_argument("--token", help=f"what visitors must know (better given as {TOKEN_VARIABLE})")
    parser.add_argument("--telegram", action="store_true", help="serve the Telegram bot from this process, too")
    return parser


def _telegram(data: Path | None) -> Companion:
    """The bot, to be opened with the lab's studio."""
    from ui.bot.app import companion  # noqa: PLC0415

    return companion(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until told to stop; returns the exit status."""
    process.prepare()
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        options = LabOptions(
            config=read_config(given.config),
            data=given.data,
            host=given.host,
            port=given.port,
            token=given.token if given.token is not None else os.environ.get(TOKEN_VARIABLE),
        )
        companions = (_telegram(given.data),) if given.telegram else ()
        return asyncio.run(serve(options, companions=companions))
    except UserError as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # A thread may be deep in a computation. What it saved is safe; taking the interpreter down around it can abort the
    # process with another status.
    os._exit(status)
