"""Who speaks, where, and in which language: what every handler begins with."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from telegram import Chat, Message, Update, User

from ui.bot.courier import Courier
from ui.bot.records import ChatMemory, Place, Reply, Shelf
from ui.bot.texts import Texts, texts

Replies = Sequence[Reply]


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

    def answer(self, courier: Courier, key: str = "", *, alert: bool = False, **values: object) -> None:
        """Answers a press, so that its button stops turning.

        Args:
            courier: Brings the answer.
            key: Of a note over the chat; none: there is nothing to say.
            alert: The note waits to be read.
            values: For its placeholders.
        """
        query = self.update.callback_query
        if query is not None:
            text = self.texts.say(key, id=self.user, **values) if key else None
            courier.aside(query.answer(text, show_alert=alert))


Handler = Callable[[Scene], Awaitable[Replies]]


def scene_of(update: Update, chats: Shelf[ChatMemory]) -> Scene | None:
    """The scene of an update; none for what nobody in particular says, such as posts of a channel.

    Args:
        update: Telegram's.
        chats: What chats have set.
    """
    user, chat = update.effective_user, update.effective_chat
    if user is None or chat is None or chat.type == Chat.CHANNEL:
        return None
    return Scene(update, user.id, _place(update, chat), _texts(chats, chat.id, user))


def _texts(chats: Shelf[ChatMemory], chat: int, user: User) -> Texts:
    memory = chats.get(str(chat))
    return texts((memory and memory.language) or user.language_code)


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
