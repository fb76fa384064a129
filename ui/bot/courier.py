"""The way to Telegram: patient with its network, obedient to its limits, and never in doubt about what was sent.

A message and the note that it was sent are one *unit*. Closing lets units that are on their way arrive and be noted, so
that only a kill between Telegram's answer and the note can make a message come twice.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from telegram import InputMediaPhoto, Message, ReplyParameters
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Forbidden,
    InvalidToken,
    NetworkError,
    RetryAfter,
    TelegramError,
)
from telegram.ext import ExtBot

from core.studio import Records
from ui.bot.gallery import Gallery
from ui.bot.inbox import Inbox
from ui.bot.keyboards import markup
from ui.bot.limits import CAPTION, Pacer, seconds_of
from ui.bot.records import Keyboard, Place, Reply
from ui.bot.settings import Rhythm

log = logging.getLogger(__name__)

T = TypeVar("T")

_SHEETS = "bot.sheets"
_LONGEST_PAUSE = 30.0
_NO_TOPIC = ("thread not found", "topic_closed", "topic_deleted")
_GONE = ("chat not found", "user is deactivated", "peer_id_invalid", "not enough rights to send text")


class UnreachableError(Exception):
    """A chat that can't be written to: its person blocked the bot, the group removed it, the account is deleted."""


class Courier:
    """Sends to chats.

    Args:
        bot: The library's.
        pacer: The bot's rate limiter.
        inbox: Where replies wait.
        gallery: Whose sheet is sent.
        records: Where Telegram's id of the sheet is kept.
        rhythm: Pauses between attempts.
    """

    def __init__(
        self, bot: ExtBot[str], pacer: Pacer, inbox: Inbox, gallery: Gallery, records: Records, rhythm: Rhythm
    ) -> None:
        self.bot = bot
        self._pacer = pacer
        self._inbox = inbox
        self._gallery = gallery
        self._records = records
        self._rhythm = rhythm
        self._units: set[asyncio.Task[Any]] = set()
        self._letters: dict[str, asyncio.Task[None]] = {}

    # Patience

    async def patiently(self, request: Callable[[], Awaitable[T]]) -> T:
        """Asks Telegram until it answers, however long its network is away.

        Raises:
            TelegramError: It answered, and the answer is no.
        """
        for attempt in itertools.count():
            pause = min(_LONGEST_PAUSE, self._rhythm.retry * 2.0 ** min(attempt, 10))
            try:
                return await request()
            except RetryAfter as error:
                pause = seconds_of(error)
            except (BadRequest, Forbidden, ChatMigrated, InvalidToken):
                raise
            except NetworkError as error:
                if "too large" in str(error).lower():  # 413, which the library takes for a fault of the network
                    raise BadRequest(str(error)) from error
                log.warning("Telegram can't be reached, trying again in %.0f s: %s", pause, error)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def to_chat(self, chat: int, request: Callable[[int], Awaitable[T]]) -> T:
        """The same for a chat, which may have become another one (a group that grew into a supergroup).

        Raises:
            UnreachableError: It can't be written to any more.
            BadRequest: Telegram doesn't like the request.
        """
        while True:
            try:
                return await self.patiently(lambda chat=chat: request(chat))  # type: ignore[misc]
            except ChatMigrated as error:
                chat = error.new_chat_id
            except (Forbidden, InvalidToken) as error:
                raise UnreachableError(str(error)) from error
            except BadRequest as error:
                if any(sign in str(error).lower() for sign in _GONE):
                    raise UnreachableError(str(error)) from error
                raise

    async def unit(self, work: Coroutine[Any, Any, T]) -> T:
        """Does something that is to be done whole, even if its caller is cancelled meanwhile."""
        task = asyncio.create_task(work)
        self._units.add(task)
        task.add_done_callback(self._unit_done)
        return await asyncio.shield(task)

    def aside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Does something that may as well fail: an answer to a press, a sign that we are busy."""

        async def quietly() -> None:
            with contextlib.suppress(TelegramError):
                await work

        task = asyncio.create_task(quietly())
        self._units.add(task)
        task.add_done_callback(self._unit_done)

    def _unit_done(self, task: asyncio.Task[Any]) -> None:
        self._units.discard(task)
        if (
            not task.cancelled()
            and (error := task.exception())
            and not isinstance(error, UnreachableError | TelegramError)
        ):
            log.debug("a unit ended with %r", error)

    async def close(self) -> None:
        """Begins nothing more, and waits a while for what is on its way."""
        for task in self._letters.values():
            task.cancel()
        await asyncio.gather(*self._letters.values(), return_exceptions=True)
        flying = {unit for unit in self._units if unit in self._pacer.flying}
        for unit in self._units - flying:
            unit.cancel()
        if flying:
            await asyncio.wait(flying, timeout=self._rhythm.shutdown)
        for unit in flying:
            unit.cancel()
        await asyncio.gather(*self._units, return_exceptions=True)

    # Kinds of message

    def is_free(self, chat: int) -> bool:
        """Whether a message could go to a chat at once."""
        return self._pacer.is_free(chat)

    async def _post(self, place: Place, request: Callable[[int, dict[str, Any]], Awaitable[Message]]) -> Message:
        """Sends to a place; where its topic was closed or deleted, to the group itself."""
        try:
            return await self.to_chat(place.chat, lambda chat: request(chat, _at(place)))
        except BadRequest as error:
            if place.thread is None or not any(sign in str(error).lower() for sign in _NO_TOPIC):
                raise
            general = _at(place.model_copy(update={"thread": None}))
            return await self.to_chat(place.chat, lambda chat: request(chat, general))

    async def text(self, place: Place, text: str, keyboard: Keyboard = ()) -> Message:
        """Sends a text."""
        return await self._post(
            place, lambda chat, at: self.bot.send_message(chat, text, reply_markup=markup(keyboard), **at)
        )

    async def photo(self, place: Place, photo: bytes | str, caption: str, keyboard: Keyboard = ()) -> Message:
        """Sends a photo: a JPEG file, or Telegram's id of one."""
        return await self._post(
            place,
            lambda chat, at: self.bot.send_photo(
                chat,
                photo,
                caption=_caption(caption),
                reply_markup=markup(keyboard),
                filename=None if isinstance(photo, str) else "picture.jpg",
                **at,
            ),
        )

    async def animation(self, place: Place, film: bytes, name: str, caption: str) -> Message:
        """Sends a film that plays by itself, without sound."""
        return await self._post(
            place,
            lambda chat, at: self.bot.send_animation(chat, film, caption=_caption(caption), filename=name, **at),
        )

    async def document(
        self, place: Place, document: bytes | str, name: str | None, caption: str, keyboard: Keyboard = ()
    ) -> Message:
        """Sends a file as it is: its bytes, or Telegram's id of it."""
        return await self._post(
            place,
            lambda chat, at: self.bot.send_document(
                chat,
                document,
                caption=_caption(caption),
                reply_markup=markup(keyboard),
                filename=name,
                disable_content_type_detection=True,
                **at,
            ),
        )

    async def edit(
        self,
        chat: int,
        message: int,
        text: str,
        keyboard: Keyboard,
        *,
        is_photo: bool = False,
        preview: bytes | None = None,
        progress: bool = False,
    ) -> None:
        """Changes a message.

        Args:
            chat: Where it is.
            message: Which.
            text: The new text, or caption.
            keyboard: The new buttons.
            is_photo: Whether it shows a picture already.
            preview: A new picture for it, a JPEG file.
            progress: The next change will know more: don't insist on this one.

        Raises:
            UnreachableError: The chat can't be written to any more.
            BadRequest: The message is gone, has nothing new, or may not be changed so.
            TelegramError: Anything else, only where `progress` is set.
        """
        where: dict[str, Any] = {"message_id": message, "reply_markup": markup(keyboard)}
        if progress:
            where["rate_limit_args"] = Pacer.PROGRESS

        def request(chat: int) -> Awaitable[object]:
            if preview is not None:
                media = InputMediaPhoto(preview, caption=_caption(text), filename="preview.jpg")
                return self.bot.edit_message_media(media, chat, **where)
            if is_photo:
                return self.bot.edit_message_caption(chat, caption=_caption(text), **where)
            return self.bot.edit_message_text(text, chat, **where)

        if progress:
            await request(chat)
        else:
            await self.to_chat(chat, request)

    def busy(self, place: Place, action: str) -> None:
        """Shows that something is being sent, if that is possible at the moment."""
        if self.is_free(place.chat):
            self.aside(self.bot.send_chat_action(place.chat, action, message_thread_id=place.thread))

    # Replies

    def send(self, key: str) -> None:
        """Begins to send the replies of a letter, in their order."""
        task = asyncio.create_task(self._send_letter(key))
        self._letters[key] = task
        task.add_done_callback(lambda _: self._letters.pop(key, None))

    async def _send_letter(self, key: str) -> None:
        while replies := self._inbox.waiting(key):
            await self.unit(self._send_and_note(key, replies[0]))

    async def _send_and_note(self, key: str, reply: Reply) -> None:
        try:
            await self._send(reply)
        except UnreachableError as error:
            log.info("chat %s can't be answered: %s", reply.place.chat, error)
        except BadRequest as error:
            if "not modified" not in str(error).lower():
                log.warning("chat %s doesn't take an answer: %s", reply.place.chat, error)
        except Exception:
            log.exception("an answer to chat %s can't be sent", reply.place.chat)
        await self._inbox.sent(key)

    async def _send(self, reply: Reply) -> None:
        place, message = reply.place, reply.place.message or 0
        match reply.kind:
            case "text":
                await self.text(place, reply.text, reply.keyboard)
            case "gallery":
                await self._send_gallery(reply)
            case "file":
                await self.document(place, reply.file, None, reply.text)
            case "edit":
                await self.edit(place.chat, message, reply.text, reply.keyboard)
            case "strip":
                await self.to_chat(
                    place.chat, lambda chat: self.bot.edit_message_reply_markup(chat, message, reply_markup=None)
                )

    async def _send_gallery(self, reply: Reply) -> None:
        """The sheet of styles: by Telegram's id of it, where it has been sent before."""
        version = self._gallery.version
        known = await self._records.get(_SHEETS, version)
        if known:
            with contextlib.suppress(BadRequest):  # Telegram may have forgotten it
                await self.photo(reply.place, known, reply.text, reply.keyboard)
                return
        self.busy(reply.place, "upload_photo")
        message = await self.photo(reply.place, await self._gallery.sheet(), reply.text, reply.keyboard)
        if message.photo:
            await self._records.put(_SHEETS, version, message.photo[-1].file_id)


def _at(place: Place) -> dict[str, Any]:
    answer = ReplyParameters(place.message, allow_sending_without_reply=True) if place.message else None
    return {"message_thread_id": place.thread, "reply_parameters": answer}


def _caption(text: str) -> str:
    return text if len(text) <= CAPTION else text[: CAPTION - 1] + "…"
