"""Which network sees the pictures, and how to get the better one."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from aiohttp import web

from core.errors import UserError
from ui.lab.events import Feed
from ui.lab.shown import Model, memory
from ui.lab.threads import in_thread

log = logging.getLogger(__name__)

BEST = "vgg19"
_TELL_SECONDS = 0.25


class NetworkView(Model):
    """The network that new pictures are made with, and a download that is under way."""

    name: str
    title: str
    how: str
    """How to get a better one; empty where there is none."""
    available: tuple[str, ...]
    """The networks on this machine."""
    fetching: bool = False
    fraction: float = 0.0
    status: str = ""
    """How the download goes, or why it failed."""


class Networks:
    """Knows the networks on this machine, and fetches VGG-19 when asked.

    Args:
        feed: Is told how a download goes.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._view = NetworkView(name="", title="", how="", available=())
        self._fetching = False
        self._closing = threading.Event()

    @property
    def view(self) -> NetworkView:
        """As it is now."""
        return self._view

    async def look(self) -> None:
        """Looks what is on this machine."""
        self._tell(await in_thread(_found))

    def fetch(self) -> None:
        """Begins to fetch VGG-19, unless that is under way already; `view` and the feed say how it goes."""
        if self._fetching:
            return
        self._fetching = True
        self._tell(self._view.model_copy(update={"fetching": True, "fraction": 0.0, "status": "Connecting …"}))
        loop = asyncio.get_running_loop()
        # A daemon: a server that is silent must not keep a process alive that is asked to end.
        threading.Thread(target=self._fetch, args=(loop,), name="fetch", daemon=True).start()

    def close(self) -> None:
        """Gives up a download; the next one continues it."""
        self._closing.set()

    def _tell(self, view: NetworkView) -> None:
        self._view = view
        self._feed.publish(("network",), "network", lambda: self._view)

    def _ended(self, view: NetworkView) -> None:
        self._fetching = False
        self._tell(view)

    def _fetch(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own."""
        from core import weights  # noqa: PLC0415

        try:
            weights.fetch(BEST, progress=self._reporter(loop))
            view = _found()
        except _ClosedError:
            return
        except UserError as error:
            log.warning("%s", error)
            view = _found().model_copy(update={"status": str(error)})
        _call(loop, self._ended, view)

    def _reporter(self, loop: asyncio.AbstractEventLoop) -> Callable[[int, int | None], None]:
        told = 0.0

        def report(received: int, total: int | None) -> None:
            nonlocal told
            if self._closing.is_set():
                raise _ClosedError
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                share = received / total if total else 0.0
                status = f"{memory(received)} of {memory(total)}" if total else memory(received)
                changes = {"fetching": True, "fraction": share, "status": status}
                _call(loop, self._tell, self._view.model_copy(update=changes))

        return report


NETWORKS = web.AppKey("networks", Networks)


class _ClosedError(Exception):
    """The lab closes, and a download with it."""


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[NetworkView], None], view: NetworkView) -> None:
    try:
        loop.call_soon_threadsafe(function, view)
    except RuntimeError:  # the loop is closed, and nobody listens any more
        log.debug("the lab was closed during a download")


def _found() -> NetworkView:
    """What is on this machine; reads no weights."""
    from core import weights  # noqa: PLC0415

    available = tuple(name for name in weights.NETWORKS if weights.find(name) is not None)
    name = BEST if BEST in available else "compact"
    known = weights.source(BEST) if name != BEST else None
    title = "VGG-19" if name == BEST else "the compact network"
    return NetworkView(name=name, title=title, how=known.how if known else "", available=available)
