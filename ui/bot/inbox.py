"""Updates until they are handled, and replies until they are sent: both on the disk before anybody goes on.

Telegram takes an update as received as soon as we ask for the next one, or answer its webhook: before it is handled.
So the queue between the library's receiver and its handlers returns from `put` only when the update is written down.
When it has been handled, its record becomes that of its replies, in one transaction; when those are sent, it stays
for a day and more, so that an update that Telegram brings again is known.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from telegram import Bot, Update

from core.studio.jobs import StorageError
from ui.bot.records import Letter, Reply, Shelf

log = logging.getLogger(__name__)

_REMEMBERED_SECONDS = 2 * 24 * 3600.0
_DISK_PATIENCE = 1.0


class Inbox(asyncio.Queue[object]):
    """The library's queue of updates, made durable, and the outbox of what they led to.

    Args:
        letters: Where they are kept.
    """

    def __init__(self, letters: Shelf[Letter]) -> None:
        super().__init__()
        self._letters = letters
        self.send: Callable[[str], None] = lambda key: None
        """Called with the key of a letter that has replies to be sent."""

    async def restore(self, bot: Bot) -> None:
        """Goes on with what a former process left: handles its updates, sends its replies."""
        await self.forget_old()
        for key, letter in self._letters.items():
            if letter.update is not None:
                try:
                    await super().put(Update.de_json(letter.update, bot))
                except (KeyError, TypeError, ValueError):
                    log.exception("update %s can't be read any more and is left out", key)
            elif letter.replies:
                self.send(key)

    async def put(self, item: object) -> None:
        """Takes an update, or a signal of the library's; returns when an update is safe, and leaves out known ones."""
        if isinstance(item, Update):
            key = str(item.update_id)
            if self._letters.get(key) is not None:
                return
            await self._keep(key, Letter(update=item.to_dict()))
        await super().put(item)

    async def _keep(self, key: str, letter: Letter) -> None:
        """Waits as long as the disk is full: an update that isn't taken is not acknowledged either."""
        while True:
            try:
                return await self._letters.put(key, letter)
            except StorageError as error:
                log.error("update %s can't be kept, trying again: %s", key, error)
                await asyncio.sleep(_DISK_PATIENCE)

    async def settle(self, key: str, replies: Sequence[Reply] = ()) -> None:
        """Says that something has been handled, and what is to be said about it. The second time it does nothing.

        Args:
            key: Of an update, or any other name of what happened.
            replies: In their order.
        """
        letter = self._letters.get(key)
        if letter is not None and letter.update is None:
            return
        await self._keep(key, Letter(replies=tuple(replies)))
        if replies:
            self.send(key)

    def waiting(self, key: str) -> tuple[Reply, ...]:
        """The replies of a letter that are still to be sent."""
        letter = self._letters.get(key)
        return letter.replies if letter else ()

    async def sent(self, key: str) -> None:
        """Says that the first waiting reply of a letter has been sent, or never can be."""
        letter = self._letters.get(key)
        if letter is not None:
            await self._keep(key, letter.model_copy(update={"replies": letter.replies[1:]}))

    async def forget_old(self) -> None:
        """Forgets letters that nobody asks about any more: Telegram keeps updates for a day."""
        for key, letter in self._letters.items():
            if letter.done and letter.time < time.time() - _REMEMBERED_SECONDS:
                await self._letters.remove(key)
