"""How the library's updates come to those who handle them, and what becomes of the answers.

A handler sends nothing by itself: it writes down what is to be done (an album's part, a draft, a task) and returns what
is to be said. The updates of one chat are handled in their order, those of different chats side by side.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from telegram import Update
from telegram.ext import (
    Application,
    BaseUpdateProcessor,
    CallbackContext,
    CallbackQueryHandler,
    ChatMemberHandler,
    CommandHandler,
    MessageHandler,
    filters,
)

from core.errors import UserError
from ui.bot.admin import Admin
from ui.bot.albums import ChatLocks
from ui.bot.buttons import Buttons
from ui.bot.conversation import Conversation
from ui.bot.delivery import Desk, Errands
from ui.bot.inbox import Inbox
from ui.bot.promises import Promises
from ui.bot.records import Album, ChatMemory, Draft, Reply, Shelf, name_of
from ui.bot.scenes import Handler, Replies, Scene, scene_of

log = logging.getLogger(__name__)

_AT_ONCE = 256
_DAY = 24 * 3600.0
_HOUSEKEEPING_SECONDS = 3600.0
ALLOWED_UPDATES = ("message", "callback_query", "my_chat_member")

AnyApplication = Application[Any, Any, Any, Any, Any, Any]


class PerChat(BaseUpdateProcessor):
    """Handles the updates of a chat one after the other, and notes that they are handled, with the replies.

    Args:
        inbox: Where to note it.
        locks: One for each chat.
        said: Takes the replies to an update, given its id.
    """

    def __init__(self, inbox: Inbox, locks: ChatLocks, said: Callable[[int], Replies]) -> None:
        super().__init__(_AT_ONCE)
        self._inbox = inbox
        self._locks = locks
        self._said = said

    async def do_process_update(self, update: object, coroutine: Awaitable[Any]) -> None:
        """Called by the library."""
        assert isinstance(update, Update)
        chat = update.effective_chat
        async with self._locks.of(chat.id if chat else 0):
            await coroutine
            await self._inbox.settle(str(update.update_id), self._said(update.update_id))

    async def initialize(self) -> None:
        """Nothing to open."""

    async def shutdown(self) -> None:
        """Nothing to close."""


class Handlers:
    """All handlers.

    Args:
        desk: What errands work with.
        errands: The paintings.
        inbox: Where replies go.
        locks: One for each chat.
        albums: Shelf of albums.
        drafts: Shelf of drafts.
        chats: Shelf of what chats have set.
    """

    def __init__(
        self,
        desk: Desk,
        errands: Errands,
        inbox: Inbox,
        locks: ChatLocks,
        albums: Shelf[Album],
        drafts: Shelf[Draft],
        chats: Shelf[ChatMemory],
    ) -> None:
        promises = Promises(desk, errands, chats)
        self._desk = desk
        self._errands = errands
        self._inbox = inbox
        self._drafts = drafts
        self._chats = chats
        self._admin = Admin(desk)
        self._buttons = Buttons(desk, errands, promises, drafts, chats)
        self._conversation = Conversation(desk, errands, promises, self._buttons, inbox, locks, albums, drafts, chats)
        self.albums = self._conversation.albums
        self._said: dict[int, Replies] = {}

    def register(self, application: AnyApplication) -> None:
        """Adds all handlers to the library's application."""
        message = self._conversation.message
        for name, handler in (self._conversation.commands() | self._admin.commands(message)).items():
            application.add_handler(CommandHandler(name, self._handler(handler)))
        application.add_handler(MessageHandler(filters.ALL, self._handler(message)))
        for verb, handler in self._buttons.presses().items():
            application.add_handler(CallbackQueryHandler(self._handler(handler), pattern=f"^{verb}:"))
        application.add_handler(ChatMemberHandler(self._handler(self._back), ChatMemberHandler.MY_CHAT_MEMBER))
        application.add_error_handler(self._stumble)

    def said(self, update_id: int) -> Replies:
        """Takes what is to be said about an update."""
        return self._said.pop(update_id, ())

    def _handler(self, handle: Handler) -> Callable[[Update, Any], Coroutine[Any, Any, None]]:
        async def handler(update: Update, context: Any) -> None:
            scene = scene_of(update, self._chats)
            if scene is None:
                return
            self._errands.release(scene.place.chat)  # whoever speaks can be spoken to
            if self._desk.access.admits(scene.user):
                self._said[update.update_id] = await handle(scene)
            else:
                self._said[update.update_id] = self._refuse(scene)

        return handler

    def _refuse(self, scene: Scene) -> Replies:
        log.info("user %s isn't on the list", scene.user)
        if scene.update.callback_query:
            scene.answer(self._desk.courier, "access.private", alert=True)
            return []
        spoken_to = not scene.place.group and scene.update.message is not None
        return scene.reply("access.private", id=scene.user) if spoken_to else []

    async def _stumble(self, update: object, context: CallbackContext[Any, Any, Any, Any]) -> None:
        """Whatever goes wrong in a handler: the person is told, and the operator's log has the rest."""
        error = context.error
        scene = scene_of(update, self._chats) if isinstance(update, Update) else None
        if isinstance(update, Update) and scene is not None:
            if isinstance(error, UserError):
                self._said[update.update_id] = [Reply(place=scene.place, text=scene.texts.explain(error))]
                return
            short = name_of("update", update.update_id)[:6]
            log.error("update %s (%s) failed", update.update_id, short, exc_info=error)
            self._said[update.update_id] = scene.reply("error.update", id=short)
        else:
            log.error("the library reports", exc_info=error)

    async def _back(self, scene: Scene) -> Replies:
        """Somebody unblocked the bot, or took it into a group."""
        member = scene.update.my_chat_member
        arrived = member is not None and member.new_chat_member.status in ("member", "administrator")
        return scene.reply("hint.group") if arrived and scene.place.group else []

    async def keep_house(self) -> None:
        """Forgets, every hour, what nobody asks about any more."""
        while True:
            try:
                await self._forget_old()
            except Exception:
                log.exception("the bot could not be tidied")
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    async def _forget_old(self) -> None:
        before = time.time() - min(self._desk.settings.keep_seconds, _DAY)
        for draft in self._drafts:
            if draft.created < before:
                await self._drafts.remove(draft.id)
        await self.albums.forget_old()
        await self._errands.forget_old()
        await self._inbox.forget_old()
