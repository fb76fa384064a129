"""What people say and send."""

import time

from telegram import Message, MessageEntity, Update
from telegram.ext import filters

from ui.bot import keyboards
from ui.bot.albums import Albums, ChatLocks, album_key
from ui.bot.buttons import Buttons
from ui.bot.delivery import Desk, Errands, open_tasks, reply_to
from ui.bot.inbox import Inbox
from ui.bot.pictures import picture_in
from ui.bot.promises import Promises, Wanted
from ui.bot.records import Album, ChatMemory, Draft, Part, Reply, Shelf, Source, name_of, owner_of
from ui.bot.scenes import Handler, Replies, Scene
from ui.bot.texts import Texts, texts


class Conversation:
    """Commands and pictures.

    Args:
        desk: What errands work with.
        errands: The paintings.
        promises: Makes them.
        buttons: What is pressed.
        inbox: Where replies go that no update leads to.
        locks: One for each chat.
        albums: Shelf of albums.
        drafts: What waits for its other half.
        chats: What chats have set.
    """

    def __init__(
        self,
        desk: Desk,
        errands: Errands,
        promises: Promises,
        buttons: Buttons,
        inbox: Inbox,
        locks: ChatLocks,
        albums: Shelf[Album],
        drafts: Shelf[Draft],
        chats: Shelf[ChatMemory],
    ) -> None:
        self._desk = desk
        self._errands = errands
        self._promises = promises
        self._buttons = buttons
        self._inbox = inbox
        self._drafts = drafts
        self._chats = chats
        self.albums = Albums(albums, desk.settings.rhythm, locks, self._decide)

    def commands(self) -> dict[str, Handler]:
        """What to do about everybody's commands, by name."""
        return {
            "start": self._start,
            "help": self._help,
            "styles": self._styles,
            "status": self._status,
            "cancel": self._cancel,
            "settings": self._settings,
            "forget": self._forget,
        }

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
            return await self._begin_with(scene, part, part.source)
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
        return [self._buttons.settings(scene, "text")]

    async def _forget(self, scene: Scene) -> Replies:
        """At once: what is under way, what is finished, and what is remembered."""
        stale = await self._errands.forget(scene.user)
        await self.albums.forget(scene.user)
        for draft in self._drafts:
            if draft.user == scene.user:
                await self._drafts.remove(draft.id)
        if not scene.place.group:
            await self._chats.remove(str(scene.place.chat))
        await self._desk.studio.forget(owner_of(scene.user))
        return [*scene.reply("forgotten"), *(Reply(place=place, kind="strip") for place in stale)]

    # Pictures

    async def message(self, scene: Scene) -> Replies:
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
        draft = Draft(id=name_of("album", key), place=place, user=album.user, album=key)
        if len(styles) == 1:
            return await self._promises.make(draft, language, [Wanted(name_of("pair", key), content, styles[0])])
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
            wanted = [Wanted(pair, content, style)]
            replies = await self._promises.make(self._draft(scene, draft.id), scene.texts, wanted)
            # After the promise: the other way round, a crash in between would leave the picture alone.
            await self._drafts.put(draft.id, draft.model_copy(update={"open": False}))
            return replies
        if self._desk.tasks.get(pair):
            return []  # it came before
        return await self._begin_with(scene, part, source)

    async def _begin_with(self, scene: Scene, part: Part, content: Source) -> Replies:
        fresh = self._draft(scene, name_of("draft", scene.place.chat, scene.user, part.message), content)
        fresh = fresh.model_copy(update={"place": reply_to(scene.place, part.message)})
        await self._drafts.put(fresh.id, fresh)
        return self._ask_for_style(fresh, scene.texts)

    def _draft(self, scene: Scene, draft_id: str, content: Source | None = None) -> Draft:
        return Draft(id=draft_id, place=scene.place, user=scene.user, content=content)

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
