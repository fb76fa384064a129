"""Promises: paintings that are accepted, as far as their person may have them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ui.bot.delivery import Desk, Errands
from ui.bot.records import ChatMemory, Choices, Draft, Place, Reply, Shelf, Source, Task
from ui.bot.scenes import Replies
from ui.bot.texts import Texts


@dataclass(frozen=True)
class Wanted:
    """A painting that somebody wants: the id of its task, and its pictures."""

    id: str
    content: Source
    style: Source
    further: tuple[Source, ...] = ()
    """Styles beside the first."""


class Promises:
    """Makes tasks of what people want.

    Args:
        desk: What errands work with.
        errands: The paintings.
        chats: What chats have set.
    """

    def __init__(self, desk: Desk, errands: Errands, chats: Shelf[ChatMemory]) -> None:
        self._desk = desk
        self._errands = errands
        self._chats = chats

    async def make(self, draft: Draft, language: Texts, wanted: Sequence[Wanted]) -> Replies:
        """Accepts paintings as far as there is room; the status message is the answer.

        Args:
            draft: Who asks, and where to answer.
            language: In which.
            wanted: In their order.
        """
        choices = self.choices(draft.place.chat, draft.user)
        fresh = [
            Task(
                id=painting.id,
                place=draft.place,
                user=draft.user,
                language=language.code,
                content=painting.content,
                style=painting.style,
                further=painting.further,
                choices=choices,
            )
            for painting in wanted
            if self._desk.tasks.get(painting.id) is None
        ]
        return await self.accept(fresh, language, draft.place)

    async def accept(self, fresh: Sequence[Task], language: Texts, place: Place) -> Replies:
        """Accepts tasks of one person as far as there is room, and says so where there isn't."""
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

    def choices(self, chat: int, user: int) -> Choices:
        """What is set in a chat, as far as this person may have it."""
        choices = (self._chats.get(str(chat)) or ChatMemory()).choices
        level = min(choices.level, self._desk.access.highest_level(user))
        return choices.model_copy(update={"level": level})
