"""The bot around a studio: `serve` opens all of it on the studio's event loop, and closes it in reverse.

    async with Studio.open(data, settings.studio) as studio, serve(studio, settings) as bot:
        await bot.until_failed()

Whatever else shares the loop, such as the lab, does so beside it; `companion` makes it part of a program that opens the
studio itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from telegram import BotCommand, BotCommandScopeChat
from telegram.error import Conflict, InvalidToken, NetworkError, TelegramError
from telegram.ext import Application, ExtBot

from core.errors import UserError
from core.studio import Studio, default_data_directory
from ui.bot.access import Access
from ui.bot.albums import ChatLocks
from ui.bot.courier import Courier
from ui.bot.delivery import Desk, Errands
from ui.bot.gallery import Gallery
from ui.bot.handlers import ALLOWED_UPDATES, AnyApplication, Handlers, PerChat
from ui.bot.inbox import Inbox
from ui.bot.limits import Pacer
from ui.bot.pictures import Workshop
from ui.bot.records import Album, ChatMemory, Draft, Letter, Person, Shelf, Task
from ui.bot.redaction import redacted
from ui.bot.scenes import Replies
from ui.bot.settings import BotSettings, TokenError, load
from ui.bot.texts import DEFAULT, Texts, languages

__all__ = ["Bot", "companion", "serve"]

log = logging.getLogger(__name__)

_POLL_SECONDS = 30
_CONNECTIONS = 64
_READ_SECONDS = 30.0
_MEDIA_WRITE_SECONDS = 300.0
_STOP_SECONDS = 2.0
"""Each for the receiver and for the handlers; with what is on its way, closing stays under ten seconds."""
_HEARTBEAT_SECONDS = 300.0


class Bot:
    """A running bot. Get one from `serve`."""

    def __init__(self, studio: Studio, settings: BotSettings) -> None:
        records = studio.records
        self._settings = settings
        self._tasks = Shelf(records, "bot.tasks", Task)
        albums, drafts = Shelf(records, "bot.albums", Album), Shelf(records, "bot.drafts", Draft)
        chats, people = Shelf(records, "bot.chats", ChatMemory), Shelf(records, "bot.people", Person)
        letters = Shelf(records, "bot.letters", Letter)
        self._shelves: list[
            Shelf[Task] | Shelf[Album] | Shelf[Draft] | Shelf[ChatMemory] | Shelf[Person] | Shelf[Letter]
        ]
        self._shelves = [self._tasks, albums, drafts, chats, people, letters]
        self._inbox = Inbox(letters)
        self._locks = ChatLocks()
        self._workshop = Workshop()
        pacer = Pacer(settings.pace)
        self._application = _application(settings, self._inbox, pacer, PerChat(self._inbox, self._locks, self._said))
        bot: ExtBot[str] = self._application.bot
        self._gallery = Gallery(settings.directory, settings.styles, self._workshop, settings.painted_styles)
        self._courier = Courier(bot, pacer, self._inbox, self._gallery, records, settings.rhythm)
        self._inbox.send = self._courier.send
        access = Access(settings, people, self._tasks)
        desk = Desk(studio, settings, self._courier, self._gallery, self._workshop, access, self._tasks)
        self._errands = Errands(desk)
        self._handlers = Handlers(desk, self._errands, self._inbox, self._locks, albums, drafts, chats)
        self._handlers.register(self._application)
        self._services: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[UserError] = asyncio.get_running_loop().create_future()

    async def until_failed(self) -> UserError:
        """Waits until the bot can't go on, because Telegram rejects its token; everything else it outlives."""
        return await asyncio.shield(self._failed)

    def _said(self, update_id: int) -> Replies:
        return self._handlers.said(update_id)

    # Opening

    async def open(self) -> None:
        """Goes on with what was left, and listens. Where Telegram can't be reached, that is tried in the background.

        Raises:
            TokenError: Telegram doesn't know the token.
        """
        for shelf in self._shelves:
            await shelf.load()
        try:
            await self._application.initialize()
        except InvalidToken:
            raise _rejected() from None
        except NetworkError as error:
            log.warning("Telegram can't be reached yet: %s", error)
        services = (self._work(), self._handlers.keep_house(), self._paint_gallery())
        self._services = [asyncio.create_task(service) for service in services]

    async def _paint_gallery(self) -> None:
        """Before somebody asks for it: at the very first start, painting all styles takes a while."""
        for style in self._gallery.styles():
            with contextlib.suppress(UserError):
                await self._gallery.picture(style.key)

    async def _work(self) -> None:
        try:
            await self._courier.patiently(self._application.initialize)
            await self._application.start()
            await self._inbox.restore(self._application.bot)
            self._handlers.albums.resume()
            self._errands.resume()
            await self._listen()
            log.info("@%s listens", self._application.bot.username)
            await self._publish_commands()
            await self._watch()
        except InvalidToken:
            log.critical("Telegram doesn't know the token any more; the bot is silent")
            self._failed.set_result(_rejected())
        except Exception as error:
            log.exception("the bot can't work")
            self._failed.set_result(UserError(f"the bot can't work ({type(error).__name__})", "The log says more"))

    async def _listen(self) -> None:
        updater, webhook = self._application.updater, self._settings.webhook
        assert updater is not None
        if webhook is None:
            await updater.start_polling(
                timeout=_POLL_SECONDS,
                bootstrap_retries=-1,
                allowed_updates=ALLOWED_UPDATES,
                error_callback=_report,
            )
        else:
            await updater.start_webhook(
                listen=webhook.listen,
                port=webhook.port,
                url_path=webhook.path,
                webhook_url=webhook.url,
                secret_token=self._settings.webhook_secret,
                bootstrap_retries=-1,
                allowed_updates=ALLOWED_UPDATES,
            )

    async def _publish_commands(self) -> None:
        """The menu of commands, in every language; admins see theirs besides."""
        for code, language in languages().items():
            await self._publish(language, None if code == DEFAULT else code)
        english = languages()[DEFAULT]
        commands = english.commands() | english.commands("admin_commands")
        for admin in self._settings.admins:
            with contextlib.suppress(TelegramError):  # who never wrote to the bot has no chat with it
                await self._application.bot.set_my_commands(_menu(commands), scope=BotCommandScopeChat(admin))

    async def _publish(self, language: Texts, code: str | None) -> None:
        try:
            menu = _menu(language.commands())
            await self._courier.patiently(lambda: self._application.bot.set_my_commands(menu, language_code=code))
        except TelegramError as error:
            log.warning("the commands can't be published in %s: %s", language.code, error)

    async def _watch(self) -> None:
        """Notices a token that is revoked while we listen.

        Raises:
            InvalidToken: It was.
        """
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            try:
                await self._application.bot.get_me()
            except InvalidToken:
                raise
            except TelegramError as error:
                log.info("Telegram can't be reached: %s", error)

    # Closing

    async def close(self) -> None:
        """Stops listening, lets what is on its way arrive, and leaves the rest for the next start."""
        for service in self._services:
            service.cancel()
        await asyncio.gather(*self._services, return_exceptions=True)
        await self._stop_library()
        await self._handlers.albums.close()
        await self._errands.close()
        await self._courier.close()
        self._workshop.close()
        await self._application.shutdown()

    async def _stop_library(self) -> None:
        updater = self._application.updater
        if updater and updater.running:
            await _within(_STOP_SECONDS, updater.stop())
        if self._application.running:
            await _within(_STOP_SECONDS, self._application.stop())


@contextlib.asynccontextmanager
async def serve(studio: Studio, settings: BotSettings) -> AsyncIterator[Bot]:
    """Runs the bot while the block lasts, on the event loop of the studio.

    Nothing that was accepted is lost, however the block, or the process, ends. While it lasts, no log record of the
    process shows the token.

    Args:
        studio: An open studio; others, such as the lab, may use it too.
        settings: See `ui.bot.settings.load`.

    Raises:
        TokenError: Telegram doesn't know the token.
    """
    with redacted(settings.token.get_secret_value(), settings.webhook_secret):
        bot = Bot(studio, settings)
        try:
            await bot.open()
            yield bot
        finally:
            await bot.close()


def companion(data: Path | None = None) -> Callable[[Studio], AbstractAsyncContextManager[Bot]]:
    """The bot for a program that has a studio of its own: what opens it, given that studio.

    Args:
        data: The studio's data directory, for `bot.toml`; none: the usual one.

    Raises:
        UserError: No token, or settings that aren't allowed: known before anything is opened.
    """
    settings = load(data or default_data_directory())
    return lambda studio: serve(studio, settings)


def _application(settings: BotSettings, inbox: Inbox, pacer: Pacer, processor: PerChat) -> AnyApplication:
    builder = (
        Application.builder()
        .token(settings.token.get_secret_value())
        .update_queue(inbox)
        .rate_limiter(pacer)
        .concurrent_updates(processor)
        .job_queue(None)
        .connection_pool_size(_CONNECTIONS)
        .pool_timeout(_READ_SECONDS)
        .read_timeout(_READ_SECONDS)
        .write_timeout(_READ_SECONDS)
        .media_write_timeout(_MEDIA_WRITE_SECONDS)
        .get_updates_read_timeout(_READ_SECONDS)
    )
    if settings.api_url:
        builder = builder.base_url(f"{settings.api_url}/bot").base_file_url(f"{settings.api_url}/file/bot")
    return builder.build()


def _menu(commands: dict[str, str]) -> list[BotCommand]:
    return [BotCommand(name, description) for name, description in commands.items()]


def _report(error: TelegramError) -> None:
    if isinstance(error, Conflict):
        log.error("another process asks Telegram for this bot's updates; only one may: %s", error)
    else:
        log.warning("no updates from Telegram at the moment: %s", error)


def _rejected() -> TokenError:
    return TokenError("Telegram doesn't know this bot token", "Ask @BotFather for the present one with /token")


async def _within(seconds: float, stopping: "asyncio.Future[None] | object") -> None:
    """Stops a part of the library, but doesn't wait for ever, nor let its complaints keep the rest from closing."""
    try:
        async with asyncio.timeout(seconds):
            await stopping  # type: ignore[misc]
    except (TimeoutError, TelegramError, RuntimeError) as error:
        log.warning("a part of the bot didn't stop by itself: %r", error)
