"""What people say and press, and what the bot does about it.

A handler sends nothing by itself: it writes down what is to be done (an album's part, a draft, a task) and returns what
is to be said. The updates of one chat are handled in their order, those of different chats side by side.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from telegram import Chat, Message, MessageEntity, Update, User
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
from core.studio import JobState
from ui.bot import keyboards
from ui.bot.albums import Albums, ChatLocks, album_key
from ui.bot.choices import COLOURS, STRENGTHS, presets, side_of
from ui.bot.delivery import Desk, Errands, open_tasks, reply_to
from ui.bot.inbox import Inbox
from ui.bot.pictures import picture_in
from ui.bot.records import (
    Album,
    ChatMemory,
    Choices,
    Draft,
    Part,
    Place,
    Reply,
    Shelf,
    Source,
    Task,
    name_of,
    owner_of,
)
from ui.bot.texts import Texts, languages, texts

log = logging.getLogger(__name__)

_AT_ONCE = 256
_DAY = 24 * 3600.0
ALLOWED_UPDATES = ("message", "callback_query", "my_chat_member")

Replies = Sequence[Reply]
AnyApplication = Application[Any, Any, Any, Any, Any, Any]


@dataclass(frozen=True)
class Scene:
    """Who speaks, where, and in which language to answer."""

    update: Update
    user: int
    place: Place
    texts: Texts

    @property
    def message(self) -> Message:
        """The message; only in updates that are one."""
        assert self.update.message is not None
        return self.update.message

    @property
    def args(self) -> list[str]:
        """The words of a button's data after its verb."""
        query = self.update.callback_query
        return (query.data or "").split(":")[1:] if query else []

    def reply(self, key: str, **values: object) -> list[Reply]:
        """An answer in words."""
        return [Reply(place=self.place, text=self.texts.say(key, **values))]


Handler = Callable[[Scene], Awaitable[Replies]]


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
    """The conversation.

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
        self._desk = desk
        self._errands = errands
        self._inbox = inbox
        self._drafts = drafts
        self._chats = chats
        self.albums = Albums(albums, desk.settings.rhythm, locks, self._decide)
        self._said: dict[int, Replies] = {}

    # How the library finds us

    def register(self, application: AnyApplication) -> None:
        """Adds all handlers."""
        commands: dict[str, Handler] = {
            "start": self._start,
            "help": self._help,
            "styles": self._styles,
            "status": self._status,
            "cancel": self._cancel,
            "settings": self._settings,
            "forget": self._forget,
            "queue": self._for_admins(self._queue),
            "pause": self._for_admins(self._pause),
            "resume": self._for_admins(self._resume),
            "stats": self._for_admins(self._stats),
        }
        for name, handler in commands.items():
            application.add_handler(CommandHandler(name, self._handler(handler)))
        application.add_handler(MessageHandler(filters.ALL, self._handler(self._message)))
        buttons = {
            "style": self._press_style,
            "album": self._press_album,
            "cancel": self._press_cancel,
            "retry": self._press_retry,
            "more": self._press_more,
            "file": self._press_file,
            "set": self._press_setting,
        }
        for verb, handler in buttons.items():
            application.add_handler(CallbackQueryHandler(self._handler(handler), pattern=f"^{verb}:"))
        application.add_handler(ChatMemberHandler(self._handler(self._back), ChatMemberHandler.MY_CHAT_MEMBER))
        application.add_error_handler(self._stumble)

    def said(self, update_id: int) -> Replies:
        """Takes what is to be said about an update."""
        return self._said.pop(update_id, ())

    def _handler(self, handle: Handler) -> Callable[[Update, Any], Coroutine[Any, Any, None]]:
        async def handler(update: Update, context: Any) -> None:
            scene = self._scene(update)
            if scene is None:
                return
            self._errands.release(scene.place.chat)  # whoever speaks can be spoken to
            if self._desk.access.admits(scene.user):
                self._said[update.update_id] = await handle(scene)
            else:
                self._said[update.update_id] = self._refuse(scene)

        return handler

    def _scene(self, update: Update) -> Scene | None:
        """None for what nobody in particular says, such as posts of a channel."""
        user, chat = update.effective_user, update.effective_chat
        if user is None or chat is None or chat.type == Chat.CHANNEL:
            return None
        return Scene(update, user.id, _place(update, chat), self._texts(chat.id, user))

    def _texts(self, chat: int, user: User) -> Texts:
        memory = self._chats.get(str(chat))
        return texts((memory and memory.language) or user.language_code)

    def _refuse(self, scene: Scene) -> Replies:
        log.info("user %s isn't on the list", scene.user)
        if scene.update.callback_query:
            self._answer(scene, "access.private", alert=True)
            return []
        spoken_to = not scene.place.group and scene.update.message is not None
        return scene.reply("access.private", id=scene.user) if spoken_to else []

    async def _stumble(self, update: object, context: CallbackContext[Any, Any, Any, Any]) -> None:
        """Whatever goes wrong in a handler: the person is told, and the operator's log has the rest."""
        error = context.error
        scene = self._scene(update) if isinstance(update, Update) else None
        if isinstance(update, Update) and scene is not None:
            if isinstance(error, UserError):
                self._said[update.update_id] = [Reply(place=scene.place, text=scene.texts.explain(error))]
                return
            short = name_of("update", update.update_id)[:6]
            log.error("update %s (%s) failed", update.update_id, short, exc_info=error)
            self._said[update.update_id] = scene.reply("error.update", id=short)
        else:
            log.error("the library reports", exc_info=error)

    def _answer(self, scene: Scene, key: str = "", *, alert: bool = False, **values: object) -> None:
        """Answers a press, so that its button stops turning; a note over the chat where there is something to say."""
        query = scene.update.callback_query
        if query is not None:
            text = scene.texts.say(key, id=scene.user, **values) if key else None
            self._desk.courier.aside(query.answer(text, show_alert=alert))

    # Commands

    async def _start(self, scene: Scene) -> Replies:
        return scene.reply("start")

    async def _help(self, scene: Scene) -> Replies:
        hours = self._desk.settings.keep_hours
        keep = scene.texts.duration(hours * 3600)
        return scene.reply("help", limit=self._desk.settings.limits.download >> 20, keep=keep)

    async def _styles(self, scene: Scene) -> Replies:
        """The gallery: for the picture that waits, or that is replied to, or for the next one."""
        if (part := self._replied_picture(scene)) and part.source:
            return await self._take(scene, part)
        draft = self._open_draft(scene.place.chat, scene.user)
        if draft is None or draft.content is None:
            draft = self._draft(scene, name_of("styles", scene.place.chat, scene.message.message_id))
            await self._drafts.put(draft.id, draft)
        return self._gallery(scene, draft)

    async def _status(self, scene: Scene) -> Replies:
        tasks = open_tasks(self._desk.tasks, scene.user, scene.place.chat)
        if not tasks:
            return scene.reply("status.nothing")
        lines = [f"{number}. {self._errands.summary(task, scene.texts)}" for number, task in enumerate(tasks, 1)]
        return [Reply(place=scene.place, text="\n".join(lines))]

    async def _cancel(self, scene: Scene) -> Replies:
        """Whatever this person has under way in this chat."""
        chat, user = scene.place.chat, scene.user
        collecting = await self.albums.cancel(chat, user)
        draft = self._open_draft(chat, user)
        if draft:
            await self._drafts.put(draft.id, draft.model_copy(update={"open": False}))
        tasks = [task for task in open_tasks(self._desk.tasks, user, chat) if not task.cancelled]
        for task in tasks:
            await self._errands.cancel(task)
        if tasks:
            return scene.reply("cancel.tasks", n=len(tasks))
        return scene.reply("cancel.pictures" if collecting or draft else "cancel.nothing")

    async def _settings(self, scene: Scene) -> Replies:
        return [self._settings_reply(scene, "text", scene.place)]

    async def _forget(self, scene: Scene) -> Replies:
        """At once: what is under way, what is finished, and what is remembered."""
        await self._errands.forget(scene.user)
        await self.albums.forget(scene.user)
        for draft in self._drafts:
            if draft.user == scene.user:
                await self._drafts.remove(draft.id)
        if not scene.place.group:
            await self._chats.remove(str(scene.place.chat))
        await self._desk.studio.forget(owner_of(scene.user))
        return scene.reply("forgotten")

    # Commands of admins

    def _for_admins(self, handle: Handler) -> Handler:
        async def handler(scene: Scene) -> Replies:
            return await (handle if self._desk.access.is_admin(scene.user) else self._message)(scene)

        return handler

    async def _queue(self, scene: Scene) -> Replies:
        studio = self._desk.studio
        jobs = await studio.jobs(states={JobState.RUNNING}) + studio.queue()
        if not jobs:
            return scene.reply("admin.empty")
        lines = [
            f"{job.id[:6]} · {job.owner} · {job.width} × {job.height} · {job.state}"
            + (f" {job.progress.fraction:.0%}" if job.progress else "")
            for job in jobs[:30]
        ]
        head = scene.texts.say("admin.paused") + "\n" if studio.queue_paused else ""
        return [Reply(place=scene.place, text=head + "\n".join(lines))]

    async def _pause(self, scene: Scene) -> Replies:
        await self._desk.studio.pause_queue()
        return scene.reply("admin.paused")

    async def _resume(self, scene: Scene) -> Replies:
        await self._desk.studio.resume_queue()
        return scene.reply("admin.resumed")

    async def _stats(self, scene: Scene) -> Replies:
        counts = await self._desk.studio.counts()
        recent = [task for task in self._desk.tasks if task.created > time.time() - _DAY]
        return scene.reply(
            "admin.stats",
            states=", ".join(f"{state} {n}" for state, n in counts.items() if n) or "–",
            tasks=len(recent),
            people=len({task.user for task in recent}),
            waiting=sum(not task.outcome for task in self._desk.tasks),
            slots=", ".join(f"{slot}: {(job or '–')[:6]}" for slot, job in self._desk.studio.slots.items()) or "–",
        )

    # Pictures

    async def _message(self, scene: Scene) -> Replies:
        """Anything that isn't a command of ours."""
        message = scene.message
        addressed = not scene.place.group or self._is_addressed(message)
        part = picture_in(message, self._desk.settings.limits, scene.texts)
        if message.media_group_id and part:
            return await self._collect(scene, part, message.media_group_id, addressed)
        if not addressed or _is_service(message):
            return []
        part = part or self._replied_picture(scene, ours=False)
        if part is None:
            unknown = (message.text or "").startswith("/")
            return scene.reply("hint.command" if unknown else "hint.text")
        if part.source is None:
            return [Reply(place=scene.place, text=part.problem)]
        return await self._take(scene, part)

    def _is_addressed(self, message: Message) -> bool:
        """In a group: whether somebody speaks to us, by a reply, a mention or a command."""
        bot = self._desk.courier.bot
        if message.reply_to_message and _is_from(message.reply_to_message, bot.id):
            return True
        entities = message.parse_entities() | message.parse_caption_entities()
        return any(_speaks_to(entity, text, bot.id, bot.username) for entity, text in entities.items())

    def _replied_picture(self, scene: Scene, *, ours: bool = True) -> Part | None:
        """The picture that a message without one answers to; `ours`: also one that we sent."""
        answered = scene.message.reply_to_message
        if answered is None or (not ours and _is_from(answered, self._desk.courier.bot.id)):
            return None
        return picture_in(answered, self._desk.settings.limits, scene.texts)

    async def _collect(self, scene: Scene, part: Part, group: str, addressed: bool) -> Replies:
        """A part of an album; one that comes too late may still be the second of two."""
        key = album_key(scene.place.chat, group)
        first = Album(place=scene.place, user=scene.user, language=scene.texts.code, addressed=addressed)
        if await self.albums.add(key, first, part):
            return []
        draft = self._open_draft(scene.place.chat, scene.user)
        if draft and draft.album == key and part.source:
            return await self._take(scene, part)
        return []

    async def _decide(self, key: str, album: Album) -> None:
        """What to do with an album that is complete. Doing it again leads to the same."""
        replies = await self._act_on(key, album) if album.addressed else []
        await self._inbox.settle(f"album {key}", replies)

    async def _act_on(self, key: str, album: Album) -> Replies:
        language = texts(album.language)
        place = reply_to(album.place, album.parts[0].message)
        problem = next((part.problem for part in album.parts if part.problem), "")
        if problem:
            return [Reply(place=place, text=problem)]
        content, *styles = [part.source for part in album.parts if part.source]
        draft = Draft(id=name_of("album", key), place=place, user=album.user, language=album.language, album=key)
        if len(styles) == 1:
            return await self._promise(draft, language, [(name_of("pair", key), content, styles[0])])
        draft = draft.model_copy(update={"content": content, "styles": tuple(styles), "open": not styles})
        await self._drafts.put(draft.id, draft)
        if not styles:
            return self._ask_for_style(draft, language)
        text = language.say("album.confirm", n=len(styles))
        return [Reply(place=place, text=text, keyboard=keyboards.confirmation(language, draft))]

    async def _take(self, scene: Scene, part: Part) -> Replies:
        """A picture by itself: the other half of what waits, or the first half of what is to come."""
        assert part.source is not None
        chat, source = scene.place.chat, part.source
        pair = name_of("pair", chat, scene.user, part.message)
        draft = self._open_draft(chat, scene.user)
        if draft and draft.place.message != part.message and (draft.content or draft.style):
            content, style = _halves(draft, source, part.message)
            replies = await self._promise(self._draft(scene, draft.id), scene.texts, [(pair, content, style)])
            # After the promise: the other way round, a crash in between would leave the picture alone.
            await self._drafts.put(draft.id, draft.model_copy(update={"open": False}))
            return replies
        if self._desk.tasks.get(pair):
            return []  # it came before
        fresh = self._draft(scene, name_of("draft", chat, part.message), content=source)
        fresh = fresh.model_copy(update={"place": reply_to(scene.place, part.message)})
        await self._drafts.put(fresh.id, fresh)
        return self._ask_for_style(fresh, scene.texts)

    def _draft(self, scene: Scene, draft_id: str, content: Source | None = None) -> Draft:
        return Draft(id=draft_id, place=scene.place, user=scene.user, language=scene.texts.code, content=content)

    def _open_draft(self, chat: int, user: int) -> Draft | None:
        """What this person began a few minutes ago."""
        since = time.time() - self._desk.settings.rhythm.pairing
        mine = (
            draft
            for draft in self._drafts
            if draft.open and (draft.place.chat, draft.user) == (chat, user) and draft.created > since
        )
        return max(mine, key=lambda draft: draft.created, default=None)

    def _ask_for_style(self, draft: Draft, language: Texts) -> Replies:
        styles = self._desk.gallery.styles()
        if not styles:
            return [Reply(place=draft.place, text=language.say("style.send"))]
        keyboard = keyboards.styles(language, draft, styles)
        return [Reply(place=draft.place, kind="gallery", text=language.say("style.which"), keyboard=keyboard)]

    def _gallery(self, scene: Scene, draft: Draft) -> Replies:
        styles = self._desk.gallery.styles()
        if not styles:
            return scene.reply("style.none")
        key = "style.which" if draft.content else "style.browse"
        keyboard = keyboards.styles(scene.texts, draft, styles)
        return [Reply(place=scene.place, kind="gallery", text=scene.texts.say(key), keyboard=keyboard)]

    # Promises

    async def _promise(self, draft: Draft, language: Texts, wanted: Sequence[tuple[str, Source, Source]]) -> Replies:
        """Accepts paintings (id, content, style) as far as there is room; the status message is the answer.

        Args:
            draft: Who asks, and where to answer.
            language: In which.
            wanted: In their order.
        """
        choices = self._choices(draft.place.chat, draft.user)
        fresh = [
            Task(
                id=task_id,
                place=draft.place,
                user=draft.user,
                language=language.code,
                content=content,
                style=style,
                choices=choices,
            )
            for task_id, content, style in wanted
            if self._desk.tasks.get(task_id) is None
        ]
        return await self._promise_tasks(fresh, language, draft.place)

    async def _promise_tasks(self, fresh: Sequence[Task], language: Texts, place: Place) -> Replies:
        if not fresh:
            return []
        user, settings, access = fresh[0].user, self._desk.settings, self._desk.access
        room, today = access.room(user), access.left_today(user)
        for task in fresh[: max(0, min(room, today))]:
            await self._errands.accept(task)
        if len(fresh) > today:
            return [Reply(place=place, text=language.say("access.today", n=settings.jobs_per_day))]
        if len(fresh) > room:
            return [Reply(place=place, text=language.say("access.pending", n=settings.pending_per_user))]
        return []

    def _choices(self, chat: int, user: int) -> Choices:
        """What is set in a chat, as far as this person may have it."""
        choices = (self._chats.get(str(chat)) or ChatMemory()).choices
        level = min(choices.level, self._desk.access.highest_level(user))
        return choices.model_copy(update={"level": level})

    # Buttons

    async def _press_style(self, scene: Scene) -> Replies:
        draft_id, key = scene.args
        draft = self._drafts.get(draft_id)
        if draft is None:
            self._answer(scene, "press.old", alert=True)
            return []
        if not self._may_press(scene, draft.user):
            return []
        if key == keyboards.NOTHING:
            return await self._put_aside(scene, draft)
        style = self._desk.gallery.find(key)
        if style is None:
            self._answer(scene, "press.style_gone", alert=True)
            return []
        source = Source(kind="gallery", name=key)
        if draft.content is None:
            self._answer(scene)
            chosen = {"style": source, "open": True, "created": time.time()}
            await self._drafts.put(draft.id, draft.model_copy(update=chosen))
            return scene.reply("style.chosen", style=scene.texts.name("styles", key, style.title))
        task_id = name_of("style", draft.id, key)
        self._answer(scene, "press.already" if self._desk.tasks.get(task_id) else "")
        await self._drafts.put(draft.id, draft.model_copy(update={"open": False}))
        return await self._promise(draft, scene.texts, [(task_id, draft.content, source)])

    async def _put_aside(self, scene: Scene, draft: Draft) -> Replies:
        self._answer(scene)
        await self._drafts.remove(draft.id)
        return [Reply(place=scene.place, kind="strip"), *scene.reply("cancel.pictures")]

    async def _press_album(self, scene: Scene) -> Replies:
        draft_id, which = scene.args
        draft = self._drafts.get(draft_id)
        if draft is None or draft.content is None:
            self._answer(scene, "press.old", alert=True)
            return []
        if not self._may_press(scene, draft.user):
            return []
        if which == keyboards.NOTHING:
            return await self._put_aside(scene, draft)
        self._answer(scene)
        styles = draft.styles if which == "all" else draft.styles[:1]
        wanted = [(name_of("album", draft.id, number), draft.content, style) for number, style in enumerate(styles)]
        replies = await self._promise(draft, scene.texts, wanted)
        return [Reply(place=scene.place, kind="strip"), *replies]

    async def _press_cancel(self, scene: Scene) -> Replies:
        task = self._pressed_task(scene)
        if task is not None:
            self._answer(scene, "press.too_late" if task.outcome else "")
            if not task.outcome:
                await self._errands.cancel(task)
        return []

    async def _press_retry(self, scene: Scene) -> Replies:
        task = self._pressed_task(scene)
        if task is None:
            return []
        self._answer(scene)
        if self._desk.access.room(scene.user) < 1:
            return scene.reply("access.pending", n=self._desk.settings.pending_per_user)
        await self._errands.retry(task)
        return []

    async def _press_more(self, scene: Scene) -> Replies:
        """Again, stronger, weaker, larger, swapped: another painting from the same pictures."""
        task, verb = self._pressed_task(scene), scene.args[-1]
        if task is None:
            return []
        children = [child for child in self._desk.tasks if (child.parent, child.verb) == (task.id, verb)]
        if any(not child.outcome for child in children):  # pressed twice
            self._answer(scene, "press.already")
            return []
        varied = self._varied(task, verb, len(children))
        if varied is None:
            self._answer(scene, "press.limit", alert=True, side=side_of(task.choices.level))
            return []
        self._answer(scene)
        place = reply_to(task.place, scene.place.message or task.place.message or 0)
        varied = varied.model_copy(update={"place": place, "language": scene.texts.code})
        return await self._promise_tasks([varied], scene.texts, place)

    def _varied(self, task: Task, verb: str, count: int) -> Task | None:
        """The task that a button asks for; none where this person may not have it."""
        choices, content, style = task.choices, task.content, task.style
        task_id = name_of("more", task.id, verb, count)
        match verb:
            case "again":
                choices = choices.model_copy(update={"seed": int(task_id[:8], 16)})
            case "stronger" | "weaker":
                strength = choices.strength + (1 if verb == "stronger" else -1)
                if strength not in STRENGTHS:
                    return None
                choices = choices.model_copy(update={"strength": strength})
            case "larger":
                if choices.level >= self._desk.access.highest_level(task.user):
                    return None
                choices = choices.model_copy(update={"level": choices.level + 1})
            case "swap":
                content, style = style, content
        return Task(
            id=task_id,
            place=task.place,
            user=task.user,
            language=task.language,
            content=content,
            style=style,
            choices=choices,
            parent=task.id,
            verb=verb,
        )

    async def _press_file(self, scene: Scene) -> Replies:
        task = self._pressed_task(scene)
        if task is None:
            return []
        self._answer(scene, "" if task.file else "press.old")
        return [Reply(place=scene.place, kind="file", file=task.file)] if task.file else []

    async def _press_setting(self, scene: Scene) -> Replies:
        owner, field, value = scene.args
        if not self._may_press(scene, int(owner)):
            return []
        self._answer(scene)
        key = str(scene.place.chat)
        memory = self._chats.get(key) or ChatMemory()
        changed = self._changed(memory, field, value, scene.user)
        await self._chats.put(key, changed)
        user = scene.update.effective_user
        assert user is not None
        spoken = Scene(scene.update, scene.user, scene.place, self._texts(scene.place.chat, user))
        return [self._settings_reply(spoken, "edit", scene.place)]

    def _changed(self, memory: ChatMemory, field: str, value: str, user: int) -> ChatMemory:
        """The settings with one changed, where the value is one that may be chosen."""
        known: dict[str, dict[str, Any]] = {
            "level": {str(level): level for level in range(self._desk.access.highest_level(user) + 1)},
            "preset": {preset.name: preset.name for preset in presets()},
            "strength": {str(step): step for step in STRENGTHS},
            "colours": {name: name for name in COLOURS},
        }
        if field == "language":
            return memory.model_copy(update={"language": value if value in languages() else None})
        if value not in known.get(field, {}):
            return memory
        chosen = memory.choices.model_copy(update={field: known[field][value]})
        return memory.model_copy(update={"choices": chosen})

    def _settings_reply(self, scene: Scene, kind: Any, place: Place) -> Reply:
        memory = self._chats.get(str(place.chat)) or ChatMemory()
        highest = self._desk.access.highest_level(scene.user)
        keyboard = keyboards.settings(scene.texts, memory, scene.user, highest)
        preset = next((known for known in presets() if known.name == memory.choices.preset), presets()[0])
        described = scene.texts.name("described", preset.name, preset.description)
        text = scene.texts.say(
            "settings", preset=scene.texts.name("presets", preset.name, preset.title), described=described
        )
        return Reply(place=place, kind=kind, text=text, keyboard=keyboard)

    def _pressed_task(self, scene: Scene) -> Task | None:
        """The task whose button was pressed, if it is there and the presser's."""
        task = self._desk.tasks.get(scene.args[0])
        if task is None:
            self._answer(scene, "press.old", alert=True)
            return None
        return task if self._may_press(scene, task.user) else None

    def _may_press(self, scene: Scene, owner: int) -> bool:
        """Buttons obey the person they were made for."""
        if scene.user == owner:
            return True
        self._answer(scene, "press.not_yours", alert=True)
        return False

    # Others

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
            await asyncio.sleep(3600)

    async def _forget_old(self) -> None:
        before = time.time() - min(self._desk.settings.keep_seconds, _DAY)
        for draft in self._drafts:
            if draft.created < before:
                await self._drafts.remove(draft.id)
        await self.albums.forget_old()
        await self._errands.forget_old()
        await self._inbox.forget_old()


def _place(update: Update, chat: Chat) -> Place:
    """Where to answer: in a group, in reply and in the thread."""
    message = update.effective_message
    accessible = message if isinstance(message, Message) else None
    group = chat.type in (Chat.GROUP, Chat.SUPERGROUP)
    in_topic = accessible is not None and bool(accessible.is_topic_message)
    reply = group or update.callback_query is not None
    return Place(
        chat=chat.id,
        group=group,
        thread=accessible.message_thread_id if accessible and in_topic else None,
        message=message.message_id if message and reply else None,
    )


def _halves(draft: Draft, source: Source, message: int) -> tuple[Source, Source]:
    """Content and style, of what waited and what has come."""
    if draft.content is None:
        assert draft.style is not None
        return source, draft.style
    came_before = draft.album is not None and message < (draft.place.message or 0)
    return (source, draft.content) if came_before else (draft.content, source)


def _speaks_to(entity: MessageEntity, text: str, bot_id: int, username: str) -> bool:
    name = f"@{username}".lower()
    match entity.type:
        case MessageEntity.MENTION:
            return text.lower() == name
        case MessageEntity.TEXT_MENTION:
            return entity.user is not None and entity.user.id == bot_id
        case MessageEntity.BOT_COMMAND:
            return text.lower().endswith(name)
    return False


def _is_from(message: Message, user: int) -> bool:
    return message.from_user is not None and message.from_user.id == user


def _is_service(message: Message) -> bool:
    """Somebody joined, a title changed …: nothing to answer."""
    return bool(filters.StatusUpdate.ALL.check_update(Update(0, message=message)))
