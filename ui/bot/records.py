"""What the bot must not forget, as frozen values on typed shelves over the studio's records."""

import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.config import DEFAULT_PRESET, Colour
from core.studio import Records
from core.studio.jobs import StorageError

log = logging.getLogger(__name__)

M = TypeVar("M", bound="Record")


class Record(BaseModel):
    """A value on a shelf. Keys of a newer version are left out, so that going back a version loses no chat."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Shelf(Generic[M]):
    """One space of the records, held in memory as well: reading is free, writing returns after it is on the disk.

    Args:
        records: Of the studio.
        space: Its name.
        model: What lies there.
    """

    def __init__(self, records: Records, space: str, model: type[M]) -> None:
        self._records = records
        self._space = space
        self._model = model
        self._values: dict[str, M] = {}

    async def load(self) -> None:
        """Reads what is there; a value that can't be understood must not hide all the others."""
        self._values = {}
        for key, value in (await self._records.all(self._space)).items():
            try:
                self._values[key] = self._model.model_validate(value)
            except ValidationError as error:
                log.error("%s '%s' can't be read and is left out: %s", self._space, key, error)

    def get(self, key: str) -> M | None:
        """The value, if there is one."""
        return self._values.get(key)

    def items(self) -> list[tuple[str, M]]:
        """All keys and values, the oldest first."""
        return list(self._values.items())

    def __iter__(self) -> Iterator[M]:
        return iter(list(self._values.values()))

    async def put(self, key: str, value: M) -> None:
        """Keeps a value in place of what was there.

        Others see it while it is still being written, so that of two who change a value at the same time neither undoes
        what the other did; the disk sees both in the same order.
        """
        before = self._values.get(key)
        self._values[key] = value
        try:
            await self._records.put(self._space, key, value.model_dump(mode="json"))
        except StorageError:
            if self._values.get(key) is value:
                self._restore(key, before)
            raise

    def _restore(self, key: str, value: M | None) -> None:
        if value is None:
            del self._values[key]
        else:
            self._values[key] = value

    async def remove(self, key: str) -> None:
        """Forgets a value, if there is one."""
        self._values.pop(key, None)
        await self._records.remove(self._space, key)


def name_of(*parts: object) -> str:
    """A name of 16 hexadecimal digits that follows from its parts: what happens twice has the same name twice."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


class Place(Record):
    """Where to answer."""

    chat: int
    group: bool = False
    thread: int | None = None
    """Topic of a forum."""
    message: int | None = None
    """Message to reply to."""


class Source(Record):
    """Where a picture comes from; its bytes are fetched when they are needed."""

    kind: Literal["telegram", "gallery"]
    name: str
    """Telegram's id of the file, or the style's key in the gallery."""
    input: str | None = None
    """The studio's id of it, once it has been fetched."""
    weight: float = 1.0
    """As one of several styles of a painting: against the others."""


class Choices(Record):
    """What a person may choose about a painting; core's settings are made of it."""

    level: int = 1
    preset: str = DEFAULT_PRESET
    content: int = 5
    """Where the dials stand, from 0 to 10; 5 is as the preset has it."""
    style: int = 5
    noise: int = 5
    colours: Colour = "style"
    """Whose colours the painting has."""
    film: bool = False
    """Whether to send a film of how it came to be, too."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _of_former_versions(cls, kept: Any) -> Any:
        """There was one strength once, from −2 to 2, and but two kinds of colours."""
        if isinstance(kept, dict) and "strength" in kept:
            kept = kept | {"style": 5 + int(kept["strength"])}
        if isinstance(kept, dict) and kept.get("colours") == "photo":
            kept = kept | {"colours": "matched"}
        return kept


class ChatMemory(Record):
    """What `/settings` remembers of a chat."""

    choices: Choices = Choices()
    language: str | None = None
    """None: each person's own, as Telegram tells it."""


class Person(Record):
    """How much somebody has asked for."""

    accepted: tuple[float, ...] = ()
    """When paintings of the last day were asked for."""


class Part(Record):
    """One picture of an album, or what stands in its place."""

    message: int
    source: Source | None = None
    problem: str = ""
    """Why it can't be used, in the person's language; empty: it can."""


class Album(Record):
    """Pictures that belong together, while and after they come in."""

    place: Place
    user: int
    language: str
    parts: tuple[Part, ...] = ()
    addressed: bool = True
    """In a group: whether any of them speaks to the bot."""
    began: float = Field(default_factory=time.time)
    decided: bool = False
    """It has been acted on; whatever still comes is too late."""


class Draft(Record):
    """A picture that waits for its other half, or an album that waits for a yes."""

    id: str
    place: Place
    user: int
    content: Source | None = None
    style: Source | None = None
    styles: tuple[Source, ...] = ()
    """Of an album of three or more."""
    album: str | None = None
    created: float = Field(default_factory=time.time)
    open: bool = True
    """The next picture of this person belongs to it."""


Outcome = Literal["", "done", "failed", "cancelled", "gone"]


class Task(Record):
    """A painting that somebody was promised, from the promise to the delivered file.

    `job` and the message ids are written down as soon as they are known, so that after a crash each step that was
    taken is known to be taken.
    """

    id: str
    place: Place
    user: int
    language: str
    content: Source
    style: Source
    further: tuple[Source, ...] = ()
    """Styles of the same painting beside the first."""
    choices: Choices
    created: float = Field(default_factory=time.time)
    parent: str | None = None
    """The task whose buttons led to this one."""
    verb: str = ""
    """Which button."""

    job: str | None = None
    cancelled: bool = False
    """Nobody waits for it any more."""
    again: bool = False
    """It failed or was cancelled, and is to be begun again."""
    error: str = ""
    """What went wrong, in the person's language."""
    outcome: Outcome = ""
    ended: float | None = None
    told: bool = False
    """The status message shows the outcome: nothing is left to do."""
    held: bool = False
    """The chat is out of reach (blocked, left); whatever is to be told waits until it comes back."""

    status: int | None = None
    """The status message; 0: somebody deleted it."""
    status_is_photo: bool = False
    photo: int | None = None
    """The result's message; 0: it can't be shown as a photo."""
    document: int | None = None
    """The file's message; 0: Telegram refuses it."""
    film: int | None = None
    """The film's message; 0: Telegram refuses it."""
    file: str | None = None
    """Telegram's id of the delivered file."""

    @property
    def owner(self) -> str:
        """The owner of its job in the studio."""
        return owner_of(self.user)

    @property
    def styles(self) -> tuple[Source, ...]:
        """All styles of the painting."""
        return (self.style, *self.further)

    @property
    def only_film(self) -> bool:
        """Whether the painting is there already, and but its film is wanted."""
        return self.verb == "film"

    @property
    def short_id(self) -> str:
        """What to name it by when something went wrong; the log knows it too."""
        return (self.job or self.id)[:6]


class Button(Record):
    """One button under a message."""

    text: str
    data: str
    """At most 64 bytes."""


Keyboard = tuple[tuple[Button, ...], ...]


class Reply(Record):
    """A message to send, or to change."""

    place: Place
    kind: Literal["text", "gallery", "edit", "strip", "file"] = "text"
    """A text; the sheet of styles with a caption; another text in a message; a message without its buttons; a file
    that Telegram has already."""
    text: str = ""
    keyboard: Keyboard = ()
    file: str = ""


class Letter(Record):
    """An update until it is handled; then, in the same record, the replies until they are sent; then a memory.

    That all three are one record is what makes handling happen once: it goes from one to the next in one transaction.
    """

    update: dict[str, Any] | None = None
    replies: tuple[Reply, ...] = ()
    time: float = Field(default_factory=time.time)

    @property
    def done(self) -> bool:
        """Whether it is but a memory, for recognising the same update when it comes again."""
        return self.update is None and not self.replies


def owner_of(user: int) -> str:
    """How the studio knows a person."""
    return f"tg:{user}"
