"""Bytes from strangers, until they are pictures.

A form with pictures is read part by part and counted while it streams; whatever was promised about its size is only
ever used to refuse it early. What is kept is not what was sent: the picture is decoded by an allow-list of formats, off
the event loop and a few at a time, and written anew, so that neither scripts nor places nor names come with it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from aiohttp import BodyPartReader, hdrs, web

from core import config
from core.config import Settings
from core.errors import ImageError, RecipeError, SettingsError
from core.steering import parse, steered
from ui.lab.shown import Model
from ui.lab.threads import in_thread


class UploadLimits(Model):
    """How much may be sent at once."""

    file_bytes: int = 40 * 2**20
    files: int = 16
    request_bytes: int = 200 * 2**20
    pixels: int = 60_000_000
    mask_bytes: int = 8 * 2**20
    mask_pixels: int = 4_000_000
    """Of a region painted over a content, or given as a file."""
    seconds: float = 120.0
    """For the whole of a request, from its first byte to its last."""


FIELD = "picture"
_DECODERS = 2
_EMPTY = 1e-4
"""A mask of less than this share has been left empty by mistake."""
_CHUNK = 64 * 1024
_MOST_FIELDS = 100
_FIELD_BYTES = 4096
_PART_HEADERS = frozenset({"Content-Disposition", "Content-Type"})


@dataclass(frozen=True)
class Mask:
    """A region over a content.

    Attributes:
        title: From its file name.
        data: A grey PNG file: white is inside.
        width: In pixels.
        height: In pixels.
        share: Of the content that lies in it, from 0 to 1.
    """

    title: str
    data: bytes
    width: int
    height: int
    share: float


@dataclass(frozen=True)
class Form:
    """What a page without scripts sends.

    Attributes:
        fields: Texts by their names.
        files: Name of the field, title and bytes of every file that was chosen.
    """

    fields: Mapping[str, str]
    files: tuple[tuple[str, str, bytes], ...]


@dataclass(frozen=True)
class Upload:
    """One picture that is fit to be kept.

    Attributes:
        title: From its file name, for people; it never names a file here.
        data: A PNG file of nothing but the picture.
        width: In pixels.
        height: In pixels.
        notices: What its owner may like to know.
        settings: That the job which made it ended with, if this project did.
    """

    title: str
    data: bytes
    width: int
    height: int
    notices: tuple[str, ...]
    settings: Settings | None


class Uploads:
    """The door for pictures.

    Args:
        limits: How much may be sent at once.
    """

    def __init__(self, limits: UploadLimits) -> None:
        self.limits = limits
        self._decoding = asyncio.Semaphore(_DECODERS)

    async def receive(self, request: web.Request) -> list[Upload]:
        """All pictures of a multipart form, in order.

        Raises:
            web.HTTPException: Too large, too many, too slow, or no such form.
            ImageError: A part is no picture; its cause names it.
        """
        return [await self.picture(data, title) for title, data in await self._files(request)]

    async def receive_masks(self, request: web.Request) -> list[Mask]:
        """All masks of a multipart form, in order.

        Raises:
            web.HTTPException: As `receive`.
            ImageError: A part is no picture, too large for a mask, or empty; its cause names it.
        """
        return [await self.mask(data, title) for title, data in await self._files(request)]

    async def form(self, request: web.Request) -> Form:
        """A form of a page without scripts: fields, and files under names of their own.

        Raises:
            web.HTTPException: As `receive`.
        """
        parts = await self._received(request, _MOST_FIELDS, any_name=True)
        fields = {
            part.name or "": data[:_FIELD_BYTES].decode(errors="replace").strip()
            for part, data in parts
            if part.filename is None
        }
        # A file that nobody chose comes as an empty one.
        files = [(part.name or "", _title(part), data) for part, data in parts if part.filename is not None and data]
        return Form(fields, tuple(files))

    async def _files(self, request: web.Request) -> list[tuple[str, bytes]]:
        """Titles and bytes of all files of a form."""
        parts = await self._received(request, self.limits.files)
        if not parts:
            raise web.HTTPBadRequest(text="There is no picture in this form.")
        return [(_title(part), data) for part, data in parts]

    async def _received(
        self, request: web.Request, most: int, *, any_name: bool = False
    ) -> list[tuple[BodyPartReader, bytes]]:
        """The parts of a form, in order."""
        if not request.content_type == "multipart/form-data":
            raise web.HTTPUnsupportedMediaType(text="Send pictures as multipart/form-data.")
        if (request.content_length or 0) > self.limits.request_bytes:
            raise _too_large(request, self.limits.request_bytes)
        try:
            async with asyncio.timeout(self.limits.seconds):
                return [part async for part in self._parts(request, most, any_name)]
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"Sending took more than {self.limits.seconds:g} seconds.") from None

    async def picture(self, data: bytes, title: str) -> Upload:
        """Decodes and rewrites one picture.

        Raises:
            ImageError: It is no picture, broken, or too large.
        """
        async with self._decoding:
            return await in_thread(_rewritten, data, title, self.limits.pixels)

    async def mask(self, data: bytes, title: str) -> Mask:
        """Decodes and rewrites one mask.

        Raises:
            ImageError: It is no picture, too large for a mask, or all black.
        """
        if len(data) > self.limits.mask_bytes:
            limit = self.limits.mask_bytes / 2**20
            raise ImageError(f"{title}: a mask has at most {limit:.3g} MB", "Make it smaller; it is stretched anyway")
        async with self._decoding:
            return await in_thread(_mask, data, title, self.limits.mask_pixels)

    async def _parts(
        self, request: web.Request, most: int, any_name: bool
    ) -> AsyncIterator[tuple[BodyPartReader, bytes]]:
        received = count = 0
        try:
            async for part in await request.multipart():
                count += 1
                if count > most:
                    raise web.HTTPRequestEntityTooLarge(most, count, text=f"At most {most} pictures at once.")
                checked = _checked(part, any_name)
                data = await self._read(request, checked, self.limits.request_bytes - received)
                received += len(data)
                yield checked, data
        except ValueError as error:  # what aiohttp raises for a form that breaks off or isn't one
            raise web.HTTPBadRequest(text="This form is damaged, or was not sent to its end.") from error

    async def _read(self, request: web.Request, part: BodyPartReader, left: int) -> bytes:
        limit = min(self.limits.file_bytes, left)
        data = bytearray()
        while chunk := await part.read_chunk(_CHUNK):
            data += chunk
            if len(data) > limit:
                raise _too_large(request, limit)
        return bytes(data)


UPLOADS = web.AppKey("uploads", Uploads)


def _checked(part: Any, any_name: bool) -> BodyPartReader:
    """A part as a browser sends it: no part within a part, no length or coding of its own."""
    if not isinstance(part, BodyPartReader) or (part.name != FIELD and not any_name):
        raise web.HTTPBadRequest(text=f"Every part of the form must be a file called {FIELD!r}.")
    strange = {name.title() for name in part.headers} - _PART_HEADERS
    if strange:
        raise web.HTTPBadRequest(text=f"A part of the form must not have {', '.join(sorted(strange))}.")
    return part


def _too_large(request: web.Request, limit: int) -> web.HTTPException:
    """The rest is not read: the connection ends with the answer."""
    error = web.HTTPRequestEntityTooLarge(limit, limit + 1, text=f"This is more than {limit / 2**20:.3g} MB.")
    error.headers[hdrs.CONNECTION] = "close"
    error.force_close()
    return error


def _title(part: BodyPartReader) -> str:
    """A file name as a title: without folders, suffix, and letters that can't be seen."""
    name = (part.filename or "").replace("\\", "/").rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    return " ".join("".join(letter for letter in stem if letter.isprintable()).split())[:60] or "Picture"


def _rewritten(data: bytes, title: str, max_pixels: int) -> Upload:
    # Here, because it loads torch, which takes seconds.
    from core import images  # noqa: PLC0415

    try:
        picture = images.read(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{title}: {error.cause}", error.remedy) from error
    height, width = picture.pixels.shape[2:]
    return Upload(
        title=title,
        data=images.encode(picture.pixels, "png", alpha=picture.alpha),
        width=width,
        height=height,
        notices=picture.notices,
        settings=_settings_in(picture.recipe),
    )


def _mask(data: bytes, title: str, max_pixels: int) -> Mask:
    from core import images  # noqa: PLC0415

    try:
        mask = images.read_mask(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{title}: {error.cause}", error.remedy) from error
    share = float(mask.mean())
    if share < _EMPTY:
        raise ImageError(f"{title}: this mask is empty", "Paint in white what is to lie inside")
    height, width = mask.shape[2:]
    return Mask(title, images.encode(mask.expand(1, 3, height, width), "png"), width, height, share)


def _settings_in(recipe: dict[str, Any] | None) -> Settings | None:
    """The settings that a picture says it ended with; a stranger may have written them."""
    known = recipe or {}
    if not isinstance(known.get("settings"), dict):
        return None
    try:
        begun, steering = config.parse(known["settings"]), parse(known.get("steering", ()))
        return reduce(lambda settings, steer: steered(settings, steer.changes), steering, begun)
    except (SettingsError, RecipeError):
        return None
