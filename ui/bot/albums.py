"""Albums: Telegram delivers them picture by picture, and never says which was the last.

So the parts are collected by chat and album until none came for a while, and only then decided upon. Each part is on
the disk before it counts; what has been decided stays known, so that late or repeated parts change nothing.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable

from ui.bot.records import Album, Part, Shelf
from ui.bot.settings import Rhythm

log = logging.getLogger(__name__)

_REMEMBERED_SECONDS = 2 * 24 * 3600.0
_AFTER_STUMBLING = 10.0


def album_key(chat: int, group: str) -> str:
    """How an album is known: Telegram's id of it holds within its chat."""
    return f"{chat}:{group}"


class ChatLocks:
    """One lock for each chat: what happens in it happens in its order, and holds up no other chat."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[int, asyncio.Lock] = weakref.WeakValueDictionary()

    def of(self, chat: int) -> asyncio.Lock:
        """The chat's lock, which exists as long as somebody holds it or waits for it."""
        lock = self._locks.get(chat)
        if lock is None:
            lock = self._locks[chat] = asyncio.Lock()
        return lock


class Albums:
    """The albums of all chats.

    Args:
        shelf: Where they are kept.
        rhythm: How long to wait for further parts.
        locks: Held while deciding.
        decide: Acts on a complete album, given its key; doing so twice must do no harm.
    """

    def __init__(
        self, shelf: Shelf[Album], rhythm: Rhythm, locks: ChatLocks, decide: Callable[[str, Album], Awaitable[None]]
    ) -> None:
        self._shelf = shelf
        self._locks = locks
        self._rhythm = rhythm
        self._decide = decide
        self._latest: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        """Goes on waiting for what a former process was collecting."""
        for key, album in self._shelf.items():
            if not album.decided:
                self._wait_for(key)

    async def add(self, key: str, first: Album, part: Part) -> bool:
        """Takes a part; false where the album has been decided upon already.

        Args:
            key: Of the album: its chat and Telegram's id of it.
            first: The album without parts, in case that this is its first one.
            part: The picture. One that came before replaces itself.
        """
        album = self._shelf.get(key) or first
        if album.decided:
            return False
        parts = {known.message: known for known in (*album.parts, part)}
        together = tuple(parts[message] for message in sorted(parts))
        addressed = album.addressed or first.addressed
        await self._shelf.put(key, album.model_copy(update={"parts": together, "addressed": addressed}))
        self._wait_for(key)
        return True

    async def cancel(self, chat: int, user: int) -> int:
        """Forgets what a person is sending at the moment; how many albums that were."""
        mine = [
            (key, album)
            for key, album in self._shelf.items()
            if not album.decided and (album.place.chat, album.user) == (chat, user)
        ]
        for key, album in mine:
            await self._close(key, album)
        return len(mine)

    async def forget(self, user: int) -> None:
        """Forgets everything that a person sent."""
        for key, album in self._shelf.items():
            if album.user == user:
                await self._close(key, album)

    async def forget_old(self) -> None:
        """Forgets albums of which no part can come any more."""
        for key, album in self._shelf.items():
            if album.decided and album.began < time.time() - _REMEMBERED_SECONDS:
                await self._shelf.remove(key)

    async def close(self) -> None:
        """Stops waiting; the next process goes on."""
        for waiting in self._waiting.values():
            waiting.cancel()
        await asyncio.gather(*self._waiting.values(), return_exceptions=True)

    def _wait_for(self, key: str) -> None:
        self._latest[key] = time.monotonic()
        if key not in self._waiting:
            self._waiting[key] = asyncio.create_task(self._collect(key), name=f"album {key}")
            self._waiting[key].add_done_callback(lambda _: self._ended(key))

    def _ended(self, key: str) -> None:
        del self._waiting[key], self._latest[key]

    async def _collect(self, key: str) -> None:
        deadline = time.monotonic() + self._rhythm.album_longest
        while True:
            left = min(deadline, self._latest[key] + self._rhythm.album_quiet) - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            elif await self._settle(key):
                return
            else:
                await asyncio.sleep(_AFTER_STUMBLING)

    async def _settle(self, key: str) -> bool:
        """Decides, unless it was cancelled meanwhile; false where something stood in the way."""
        try:
            chat = int(key.partition(":")[0])
            async with self._locks.of(chat):  # a part that comes in the middle would be lost
                album = self._shelf.get(key)
                if album is not None and not album.decided:
                    await self._decide(key, album)
                    await self._close(key, album)
        except Exception:
            log.exception("album %s can't be decided upon now, trying again in a while", key)
            return False
        return True

    async def _close(self, key: str, album: Album) -> None:
        """It is over, and of its parts nothing needs to be known any more."""
        await self._shelf.put(key, album.model_copy(update={"decided": True, "parts": ()}))
