"""Telegram's limits: how large a file may be, and how often a chat may hear from us.

Pace: about one message a second per chat, twenty a minute per group, thirty a second in all. When Telegram still
answers 429, the chat that it answered for waits as long as it was told to; all others go on.
"""

import asyncio
import datetime
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import BaseModel, ConfigDict
from telegram.error import RetryAfter
from telegram.ext import BaseRateLimiter
from telegram.warnings import PTBDeprecationWarning

MIB = 2**20
CAPTION = 1024
"""Longest caption."""
CALLBACK_DATA = 64
"""Longest callback data, in bytes."""
PHOTO_SIDES = 10_000
"""Largest width plus height of a photo."""
PHOTO_ASPECT = 20
"""Largest ratio of a photo's sides."""


class FileLimits(BaseModel):
    """Largest files in bytes."""

    model_config = ConfigDict(frozen=True)

    download: int
    photo: int = 10 * MIB
    document: int


CLOUD = FileLimits(download=20 * MIB, document=50 * MIB)
SELF_HOSTED = FileLimits(download=2000 * MIB, document=2000 * MIB)


class Pace(BaseModel):
    """How often we may speak."""

    model_config = ConfigDict(frozen=True)

    chat_seconds: float = 1.0
    """Between two messages to one chat."""
    group_messages: int = 20
    """To one group in `group_seconds`."""
    group_seconds: float = 60.0
    all_seconds: float = 1 / 20
    """Between any two messages: thirty a second, less what a network may squeeze together."""


def seconds_of(error: RetryAfter) -> float:
    """What Telegram asks to wait; the library gives it as a number or as a timedelta, by its version and settings."""
    with warnings.catch_warnings():  # that it will be a timedelta one day
        warnings.simplefilter("ignore", PTBDeprecationWarning)
        wait: object = error.retry_after
    return wait.total_seconds() if isinstance(wait, datetime.timedelta) else float(str(wait))


class _Lane:
    """The messages to one chat: one at a time, in their order."""

    def __init__(self, pace: Pace, group: bool) -> None:
        self.lock = asyncio.Lock()
        self._pace = pace
        self._sent: deque[float] = deque(maxlen=pace.group_messages if group else 1)
        self._group = group
        self._blocked_until = 0.0

    def delay(self) -> float:
        """Seconds until the next message may go."""
        now = time.monotonic()
        free = self._blocked_until
        if self._sent:
            free = max(free, self._sent[-1] + self._pace.chat_seconds)
        if self._group and len(self._sent) == self._sent.maxlen:
            free = max(free, self._sent[0] + self._pace.group_seconds)
        return max(0.0, free - now)

    @property
    def idle(self) -> bool:
        """Whether nothing that it knows matters any more."""
        last = self._sent[-1] if self._sent else 0.0
        return not self.lock.locked() and self.delay() == 0 and time.monotonic() > last + self._pace.group_seconds

    def sent(self) -> None:
        self._sent.append(time.monotonic())

    def block(self, seconds: float) -> None:
        self._blocked_until = time.monotonic() + seconds


class Pacer(BaseRateLimiter[str]):
    """Holds every request back until its chat may hear it.

    A request whose `rate_limit_args` is `PROGRESS` is told of a 429 instead of being repeated: the next one will know
    more than it did.
    """

    PROGRESS = "progress"
    _UNCOUNTED = frozenset({"sendChatAction", "getChat", "getChatMember"})
    _MANY_LANES = 10_000

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._lanes: dict[int, _Lane] = {}
        self._turnstile = asyncio.Lock()
        self._passed = 0.0
        self.flying: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        """Tasks whose latest request is on its way, or has been answered."""

    async def initialize(self) -> None:
        """Nothing to open."""

    async def shutdown(self) -> None:
        """Nothing to close."""

    def is_free(self, chat: int) -> bool:
        """Whether a message to this chat could go at once."""
        lane = self._lane(chat)
        return not lane.lock.locked() and lane.delay() == 0

    async def process_request(
        self,
        callback: Callable[..., Coroutine[Any, Any, Any]],
        args: Any,
        kwargs: dict[str, Any],
        endpoint: str,
        data: dict[str, Any],
        rate_limit_args: str | None,
    ) -> Any:
        """Called by the library around each request."""
        chat = data.get("chat_id")
        if not isinstance(chat, int) or endpoint in self._UNCOUNTED:
            return await callback(*args, **kwargs)
        lane = self._lane(chat)
        async with lane.lock:
            while True:
                await asyncio.sleep(lane.delay())
                await self._turn()
                try:
                    return await self._fly(callback(*args, **kwargs))
                except RetryAfter as error:
                    lane.block(seconds_of(error))
                    if rate_limit_args == self.PROGRESS:
                        raise
                finally:
                    lane.sent()  # counted from its end: a slow one and its successor mustn't arrive together

    async def _fly(self, request: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.flying.add(task)
        try:
            return await request
        except BaseException:
            self.flying.discard(task)
            raise

    async def _turn(self) -> None:
        """Waits for the next moment at which any message may go; a busy loop that comes late delays all that follow."""
        async with self._turnstile:
            await asyncio.sleep(self._passed + self._pace.all_seconds - time.monotonic())
            self._passed = time.monotonic()

    def _lane(self, chat: int) -> _Lane:
        if chat not in self._lanes:
            if len(self._lanes) >= self._MANY_LANES:
                self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.idle}
            self._lanes[chat] = _Lane(self._pace, group=chat < 0)
        return self._lanes[chat]
