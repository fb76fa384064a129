"""A bot for tests: quick, with an engine that paints flat colours, in this process or in one that may be killed."""

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import SecretStr

from core.studio import Job, Studio
from core.studio.executors.local import LocalExecutor, Moment
from core.studio.jobs import Output, Run
from tests.bot_api import TOKEN, BotApi, Person
from tests.studio_doubles import QUICK, Rehearsal
from ui.bot.app import Bot, serve
from ui.bot.limits import CLOUD, Pace
from ui.bot.settings import BotSettings, Rhythm

Colour = tuple[int, int, int]

RED, BLUE, GREEN, YELLOW, GREY = (200, 0, 0), (0, 0, 200), (0, 200, 0), (200, 200, 0), (90, 90, 90)

RHYTHM = Rhythm(album_quiet=0.3, album_longest=2.0, edit=0.05, preview=0.1, retry=0.1, group_factor=1.0, shutdown=2.0)
PACE = Pace(chat_seconds=0.01, group_seconds=0.5, all_seconds=0.001)


def flat(colour: Colour, size: tuple[int, int] = (48, 32), format: str = "PNG", **options: object) -> bytes:
    """A picture of one colour, (width, height)."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format, **options)
    return stream.getvalue()


def colours(data: bytes) -> tuple[Colour, Colour]:
    """The colours of the two halves of what a `Sketch` made."""
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
        width, height = rgb.size
        left, right = rgb.getpixel((width // 4, height // 2)), rgb.getpixel((3 * width // 4, height // 2))
    return left, right  # type: ignore[return-value]


class Sketch(Rehearsal):
    """An engine whose result shows the content's colour on the left and the style's on the right."""

    def compute(
        self, run: Run, device: str, checkpoint: bytes | None, remark: Callable[[str], None]
    ) -> Generator[Moment, None, Output]:
        content, style = _colour(run.content), _colour(run.styles[0])
        for moment in super().compute(run, device, checkpoint, remark):
            done = moment.progress.iteration
            yield Moment(moment.progress, moment.checkpoint, lambda done=done: flat((done % 256, 0, 0), format="JPEG"))  # type: ignore[misc]
        picture, stream = self.paint(content, style), io.BytesIO()
        picture.save(stream, "PNG")
        return Output(stream.getvalue(), "png", 64, 32)

    def paint(self, content: Colour, style: Colour) -> Image.Image:
        """The result."""
        picture = Image.new("RGB", (64, 32), content)
        picture.paste(style, (32, 0, 64, 32))
        return picture


def _colour(path: Path) -> Colour:
    with Image.open(path) as image:
        pixel = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    return pixel  # type: ignore[return-value]


def results(person: Person) -> list[object]:
    """What the delivered files show, in their order."""
    return [colours(person.api.files[message["document"]["file_id"]]) for message in person.documents]


def contains(message: dict[str, object], text: str) -> bool:
    return text in str(message)


class Gate:
    """Holds every run at an iteration until it is opened."""

    def __init__(self, iteration: int = 3) -> None:
        self._iteration = iteration
        self._open = threading.Event()

    def __call__(self, run: Run, iteration: int) -> None:
        if iteration == self._iteration:
            assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()


def settings(api: BotApi | str, data: Path, **changes: object) -> BotSettings:
    """Settings of a quick bot; its gallery is the folder `styles`, if that is there."""
    values: dict[str, object] = {
        "token": SecretStr(TOKEN),
        "directory": data / "bot",
        "api_url": api if isinstance(api, str) else api.url,
        "file_limits": CLOUD,
        "styles": data / "styles",
        "painted_styles": False,
        "rhythm": RHYTHM,
        "pace": PACE,
    }
    return BotSettings.model_validate(values | changes)


def fill_gallery(data: Path) -> None:
    """Two styles: Green and Yellow."""
    (data / "styles").mkdir(parents=True, exist_ok=True)
    (data / "styles" / "Green.png").write_bytes(flat((0, 200, 0)))
    (data / "styles" / "Yellow.png").write_bytes(flat((200, 200, 0)))


@dataclass(frozen=True)
class Stage:
    """A running bot and what is behind it."""

    bot: Bot
    studio: Studio

    async def job(self, number: int = 0) -> Job:
        """A job by its age; -1 is the newest."""
        return (await self.studio.jobs())[-1 - number if number >= 0 else -number - 1]


@contextlib.asynccontextmanager
async def running(
    api: BotApi | str, data: Path, backend: Rehearsal | None = None, **changes: object
) -> AsyncIterator[Stage]:
    """A bot over a studio of its own."""
    (data / "locks").mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(data / "locks", QUICK, backend or Sketch(5))
    async with Studio.open(data, QUICK, executor) as studio, serve(studio, settings(api, data, **changes)) as bot:
        yield Stage(bot, studio)


def live(data: str, url: str, step_seconds: float) -> None:
    """A process with a bot, until it is killed."""

    async def forever() -> None:
        patient = QUICK.model_copy(update={"crashes_in_a_row": 1_000_000})
        root = Path(data)
        (root / "locks").mkdir(parents=True, exist_ok=True)
        executor = LocalExecutor(root / "locks", patient, Sketch(20, step_seconds=step_seconds))
        async with Studio.open(root, patient, executor) as studio, serve(studio, settings(url, root)):
            print("begun", flush=True)
            await asyncio.Event().wait()

    asyncio.run(forever())
