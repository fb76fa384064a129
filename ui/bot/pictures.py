"""Pictures as they come from Telegram, and as they go there.

What comes is read, and stored anew without its metadata: where it was taken is nobody's business. What goes is made to
fit Telegram's limits before it is sent.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from telegram import Document, Message

from core.errors import RecipeError
from ui.bot.choices import weight_in
from ui.bot.limits import MIB, PHOTO_ASPECT, PHOTO_SIDES, FileLimits
from ui.bot.records import Part, Source
from ui.bot.texts import Texts

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_PHOTO_SIDE = 2560
"""Longest side of a photo in Telegram; what is larger would be made smaller there."""
_SMALLEST_SIDE = 64
_QUALITIES = (95, 90, 85, 78, 70)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif"}
_HEIC = {".heic", ".heif"}
_AT_ONCE = 2
"""Pictures that are read or written at the same time; each may take gigabytes."""


# ── What comes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def picture_in(message: Message, limits: FileLimits, texts: Texts) -> Part | None:
    """The picture in a message, or why what is there can't be used; none where there is nothing but text."""
    if message.photo:
        return _part(message, _source(message, message.photo[-1].file_id))
    if message.animation or message.video or message.video_note:
        return _part(message, problem=texts.say("problem.video"))
    if message.sticker:
        return _part(message, problem=texts.say("problem.sticker"))
    if message.document:
        return _document(message, message.document, limits, texts)
    if message.effective_attachment:
        return _part(message, problem=texts.say("problem.other"))
    return None


def _document(message: Message, document: Document, limits: FileLimits, texts: Texts) -> Part:
    suffix = PurePath(document.file_name or "").suffix.lower()
    kind = document.mime_type or ""
    if not kind.startswith("image/") and suffix not in _SUFFIXES:
        return _part(message, problem=texts.say("problem.document"))
    if (suffix in _HEIC or kind in ("image/heic", "image/heif")) and not _reads_heic():
        return _part(message, problem=texts.say("problem.heic"))
    size = document.file_size or 0
    if size > limits.download:
        problem = texts.say("problem.large", size=round(size / MIB), limit=limits.download // MIB)
        return _part(message, problem=problem)
    return _part(message, _source(message, document.file_id))


def _source(message: Message, file_id: str) -> Source:
    return Source(kind="telegram", name=file_id, weight=weight_in(message.caption))


def _part(message: Message, source: Source | None = None, problem: str = "") -> Part:
    return Part(message=message.message_id, source=source, problem=problem)


def _reads_heic() -> bool:
    from core import images  # noqa: PLC0415

    return "HEIF" in images.formats().read


class Workshop:
    """Threads for work on pictures beside the event loop: few, since each picture may be large."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pictures")

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls something in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def close(self) -> None:
        """Begins nothing more; what has begun ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def stripped(data: bytes) -> bytes:
    """The same picture, upright and in sRGB, as a PNG file without metadata.

    Raises:
        ImageError: It can't be read, or may not be.
    """
    from core import images  # noqa: PLC0415

    picture = images.read(data)
    return images.encode(picture.pixels, "png", alpha=picture.alpha)


# ── What goes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_photo(data: bytes, limits: FileLimits) -> bytes | None:
    """A JPEG file that Telegram takes as a photo; none where it takes none of this shape.

    Args:
        data: The encoded result.
        limits: Of the server.
    """
    from core import images  # noqa: PLC0415

    picture = images.read(data, max_pixels=2**40)
    height, width = picture.pixels.shape[-2:]
    if max(height, width) > PHOTO_ASPECT * min(height, width):
        return None
    scale = min(1.0, _PHOTO_SIDE / max(height, width), PHOTO_SIDES / (height + width))
    return _fitting(picture.pixels, picture.alpha, scale, limits.photo, None)


def as_document(data: bytes, limits: FileLimits) -> tuple[bytes, str]:
    """The file to send, and its suffix: the result as it is, or a JPEG where that is too large.

    Args:
        data: The encoded result.
        limits: Of the server.
    """
    from core import images  # noqa: PLC0415

    if len(data) <= limits.document:
        return data, "png"
    try:
        recipe = images.read_recipe(data)
    except RecipeError:
        recipe = None
    picture = images.read(data, max_pixels=2**40)
    return _fitting(picture.pixels, picture.alpha, 1.0, limits.document, recipe), "jpg"


def _fitting(
    pixels: "Tensor", alpha: "Tensor | None", scale: float, limit: int, recipe: dict[str, object] | None
) -> bytes:
    """The best JPEG file of at most `limit` bytes: first at a lower quality, then smaller."""
    from core import images  # noqa: PLC0415

    while True:
        size = (max(1, round(pixels.shape[2] * scale)), max(1, round(pixels.shape[3] * scale)))
        small, mask = images.resize(pixels, size), None if alpha is None else images.resize(alpha, size)
        for quality in _QUALITIES:
            data = _jpeg(small, mask, quality, recipe)
            if len(data) <= limit or max(size) < _SMALLEST_SIDE:
                return data
        scale *= 0.7


def _jpeg(pixels: "Tensor", alpha: "Tensor | None", quality: int, recipe: dict[str, object] | None) -> bytes:
    from core import images  # noqa: PLC0415

    try:
        return images.encode(pixels, "jpeg", alpha=alpha, recipe=recipe, quality=quality)
    except RecipeError:  # longer than a JPEG holds
        return images.encode(pixels, "jpeg", alpha=alpha, quality=quality)
