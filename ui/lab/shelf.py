"""The pictures that are always at hand: samples, and the files in the operator's folder.

A picture gets ready, that is painted or read and kept as an input of the studio, when it is first wanted; which input
it is, the studio's records know, so that nothing is painted again after a restart.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from core import __version__, samples
from core.errors import UserError
from core.studio import Studio
from core.studio.jobs import NoSuchJobError
from ui.lab.tables import Head
from ui.lab.threads import in_thread
from ui.lab.uploads import Uploads

SHELF_OWNER = "table"
"""Of the inputs that pictures become."""

_SPACE = "lab.inputs"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".heic", ".heif"})
_STYLE_SIDE = 1024


@dataclass(frozen=True)
class Picture:
    """A picture that can be had by its key."""

    head: Head
    kind: str
    """`content` or `style`."""
    file: Path | None = None
    """Where it lies; none for samples."""


class Shelf:
    """All pictures that can be chosen.

    Args:
        studio: Keeps them as inputs.
        uploads: Reads files, with the same care as those of strangers.
        folder: Of the operator's own pictures, in `content/` and `style/`.
        tell: Called with the key of each picture that has got ready.
    """

    def __init__(self, studio: Studio, uploads: Uploads, folder: Path, tell: Callable[[str], None]) -> None:
        self._studio = studio
        self._uploads = uploads
        self._folder = folder
        self._tell = tell
        self._inputs: dict[str, str] = {}
        self._coming: dict[str, asyncio.Task[str]] = {}
        self._broken: dict[str, UserError] = {}
        self.pictures: dict[str, Picture] = _sample_pictures()
        """By key."""

    async def load(self) -> None:
        """Takes in what was ready before."""
        for name, input_id in (await self._studio.records.all(_SPACE)).items():
            key, _, version = name.partition(" ")
            if version == __version__ and await self._is_kept(input_id):
                self._inputs[key] = input_id
        await self.look()

    async def look(self) -> None:
        """Looks for files that came, went or changed (a changed one is another picture)."""
        files = await in_thread(_files_in, self._folder)
        self.pictures = _sample_pictures() | {picture.head.key: picture for picture in files}

    def ready(self, key: str) -> str | None:
        """The input of a picture, if it is ready."""
        return self._inputs.get(key)

    def adopt(self, input_id: str) -> None:
        """An input as a picture of its own, whose key is its id."""
        self._inputs[input_id] = input_id

    async def get(self, key: str) -> str:
        """The input of a picture, painted or read if need be.

        Raises:
            NoSuchJobError: There is no picture of this key.
            UserError: It can't be read.
        """
        if key in self._inputs and (key not in self.pictures or await self._is_kept(self._inputs[key])):
            return self._inputs[key]
        if key not in self.pictures:
            raise NoSuchJobError("there is no such picture")
        if key in self._broken:
            raise self._broken[key]
        if key not in self._coming:
            self._coming[key] = asyncio.create_task(self._prepare(self.pictures[key]))
            self._coming[key].add_done_callback(lambda _: self._coming.pop(key))
        return await asyncio.shield(self._coming[key])

    async def close(self) -> None:
        """Waits for nothing that is still to get ready."""
        tasks = list(self._coming.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _is_kept(self, input_id: str) -> bool:
        """Whether the studio still has it: what no job uses is deleted after a while."""
        try:
            await self._studio.input_path(input_id)
        except NoSuchJobError:
            return False
        return True

    async def _prepare(self, picture: Picture) -> str:
        key = picture.head.key
        try:
            data = await (self._read(picture.file) if picture.file else in_thread(_painted, key))
        except UserError as error:
            self._broken[key] = error
            raise
        input_id = await self._studio.add_input(SHELF_OWNER, data)
        await self._studio.records.put(_SPACE, f"{key} {__version__}", input_id)
        self._inputs[key] = input_id
        self._tell(key)
        return input_id

    async def _read(self, file: Path) -> bytes:
        data = await in_thread(_file_bytes, file, self._uploads.limits.file_bytes)
        return (await self._uploads.picture(data, file.stem)).data


SHELF = web.AppKey("shelf", Shelf)


def _sample_pictures() -> dict[str, Picture]:
    kinds = {"photograph": "content", "style": "style"}
    known = (*samples.photographs(), *samples.styles())
    return {sample.name: Picture(Head(sample.name, sample.title, sample.name), kinds[sample.kind]) for sample in known}


def _files_in(folder: Path) -> list[Picture]:
    found = []
    for kind in ("content", "style"):
        with contextlib.suppress(OSError):  # there need not be a folder
            for path in sorted((folder / kind).iterdir()):
                if path.suffix.lower() in _SUFFIXES and path.is_file():
                    found.append(_file_picture(path, kind))
    return found


def _file_picture(path: Path, kind: str) -> Picture:
    about = path.stat()
    name = f"{kind} {path.name} {about.st_mtime_ns} {about.st_size}"
    key = f"f-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}"
    return Picture(Head(key, path.stem[:60], key), kind, path)


def _file_bytes(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise UserError(f"{path.name} is larger than {limit / 2**20:.0f} MB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} can't be read: {error.strerror or error}") from error


def _painted(key: str) -> bytes:
    from core import images  # noqa: PLC0415

    return images.encode(samples.load(key, _STYLE_SIDE, _STYLE_SIDE))
