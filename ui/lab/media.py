"""Pictures for the page: smaller copies, other formats, the noise behind a result.

A picture is asked for by the random id of an input or a job, and its content type follows from the route alone. Copies
are computed off the event loop, a few at a time, once for all who ask, and kept while there is room.
"""

import asyncio
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from core.studio import Job, Studio
from core.studio.jobs import NoSuchJobError
from ui.lab.shown import title
from ui.lab.threads import in_thread

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (320, 640, 1280, 2560)
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif", "mp4": "video/mp4"}
FILMS = ("mp4", "webp", "gif")

_CACHE_BYTES = 96 * 2**20
_WORKERS = 2
_QUALITY = 88
_SHOWN_LEVEL = 2
"""Noise is shown as it is at this level at most; finer grain than that nobody sees on a page."""
_FOREVER = "private, max-age=31536000, immutable"

Load = Callable[[], Awaitable[bytes]]


class Cache:
    """Computed files by name, the latest used, up to a number of bytes. Who asks while one is computed waits for it."""

    def __init__(self, room: int = _CACHE_BYTES) -> None:
        self._room = room
        self._size = 0
        self._known: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._coming: dict[tuple[str, ...], asyncio.Task[bytes]] = {}

    async def get(self, name: tuple[str, ...], make: Load) -> bytes:
        """The file of this name, made if need be."""
        if name in self._known:
            self._known.move_to_end(name)
            return self._known[name]
        if name not in self._coming:
            self._coming[name] = asyncio.ensure_future(make())
            self._coming[name].add_done_callback(lambda made: self._keep(name, made))
        return await asyncio.shield(self._coming[name])

    def _keep(self, name: tuple[str, ...], made: "asyncio.Task[bytes]") -> None:
        del self._coming[name]
        if made.cancelled() or made.exception() is not None:
            return
        self._known[name] = made.result()
        self._size += len(made.result())
        while self._size > self._room:
            _, dropped = self._known.popitem(last=False)
            self._size -= len(dropped)


class Media:
    """Makes what pages show out of what the studio keeps."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._cache = Cache()
        self._workers = asyncio.Semaphore(_WORKERS)

    async def input(self, input_id: str, width: int) -> bytes:
        """A content or style as a JPEG of at most this width.

        Raises:
            NoSuchJobError: There is none of that id.
        """
        return await self._made(("input", input_id, str(width)), lambda: self._studio.input_bytes(input_id), width)

    async def result(self, job: Job, width: int) -> bytes:
        """A result as a JPEG of at most this width.

        Raises:
            NoSuchJobError: There is no result.
        """
        name = ("result", job.id, str(job.attempt), str(width))
        return await self._made(name, lambda: self._studio.result_bytes(job.id), width)

    async def converted(self, job: Job, format: str) -> bytes:
        """A result in full size, with its recipe, as PNG, JPEG or WebP.

        Raises:
            NoSuchJobError: There is no result.
        """
        data = await self._studio.result_bytes(job.id)
        if job.result and job.result.format == format:
            return data
        async with self._workers:
            return await in_thread(_converted, data, format)

    async def film(self, job: Job, kind: str) -> bytes:
        """How a result came to be, as a file of this kind.

        Raises:
            NoSuchJobError: There is no film, or none of this kind.
        """
        path = await self._studio.film_path(job.id)
        if path.suffix != f".{kind}":
            raise NoSuchJobError(f"this film is a file of the kind {path.suffix[1:]}")
        return await asyncio.to_thread(path.read_bytes)

    async def noise(self, job: Job) -> bytes:
        """The noise that a job's picture began with, on a plain ground, as a JPEG."""
        settings = job.settings.changed({"start": "noise"})
        return await self._drawn("noise", job.model_copy(update={"settings": settings, "start": None}))

    async def start(self, job: Job) -> bytes:
        """The picture that a job's optimisation began with, as a JPEG."""
        return await self._drawn("start", job)

    async def _made(self, name: tuple[str, ...], load: Load, width: int) -> bytes:
        async def make() -> bytes:
            data = await load()
            async with self._workers:
                return await in_thread(_smaller, data, width)

        return await self._cache.get(name, make)

    async def _drawn(self, kind: str, job: Job) -> bytes:
        """The starting picture of a job that is like this."""

        async def make() -> bytes:
            inputs = {name: await self._studio.input_bytes(name) for name in job.inputs}
            async with self._workers:
                return await in_thread(_starting_picture, job, inputs)

        return await self._cache.get((kind, job.id), make)


MEDIA = web.AppKey("media", Media)


def picture_response(request: web.Request, data: bytes, kind: str) -> web.Response:
    """A picture of a fixed type. One whose address names a version never changes."""
    lasting = _FOREVER if "v" in request.query else "private, no-cache"
    return web.Response(body=data, content_type=TYPES[kind], headers={"Cache-Control": lasting})


def file_name(job: Job, kind: str) -> str:
    """What to call a downloaded result: plain letters of its title, and its size."""
    plain = unicodedata.normalize("NFKD", title(job)).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain)
    return f"{'-'.join(words) or 'picture'}-{job.width}x{job.height}.{'jpg' if kind == 'jpeg' else kind}"


# ── In threads ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _jpeg(pixels: "Tensor", width: int) -> bytes:
    from core import images  # noqa: PLC0415

    rows, columns = pixels.shape[2:]
    if columns > width:
        pixels = images.resize(pixels, (max(1, round(rows * width / columns)), width)).clamp(0, 1)
    return images.encode(pixels, "jpeg", quality=_QUALITY)


def _smaller(data: bytes, width: int) -> bytes:
    from core import images  # noqa: PLC0415

    picture = images.read(data)
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = pixels * picture.alpha + 1 - picture.alpha
    return _jpeg(pixels, width)


def _converted(data: bytes, format: str) -> bytes:
    from core import images  # noqa: PLC0415

    picture = images.read(data)
    return images.encode(picture.pixels, format, alpha=picture.alpha, recipe=picture.recipe)


def _starting_picture(job: Job, inputs: Mapping[str, bytes]) -> bytes:
    from core import images  # noqa: PLC0415
    from core.transfer import Transfer  # noqa: PLC0415

    transfer = Transfer(
        images.read(inputs[job.content]).pixels,
        [images.read(inputs[style]).pixels for style in job.styles],
        job.settings.changed({"levels": min(job.settings.levels, _SHOWN_LEVEL)}),
        device="cpu",
        start=images.read(inputs[job.start]).pixels if job.start else None,
        masks=[images.read_mask(inputs[mask]) if mask else None for mask in job.masks],
        protect=images.read_mask(inputs[job.protect]) if job.protect else None,
    )
    return _jpeg(transfer.starting_picture, WIDTHS[2])
