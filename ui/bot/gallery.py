"""Styles to choose from: the project's own, painted once and kept, and the operator's; and a sheet of them all."""

import asyncio
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core import __version__, samples
from core.errors import ImageError, UserError
from ui.bot.pictures import Workshop, stripped

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
_MOST_OF_FOLDER = 40
_COLUMNS = 4
_TILE, _GAP = 320, 12
"""Sides of the sheet's tiles and the space between them, in pixels."""


@dataclass(frozen=True)
class Style:
    """A style that can be chosen.

    Attributes:
        key: Short enough for a button.
        title: In English; catalogues translate the project's own.
        path: Of a file in the operator's folder; none: painted.
    """

    key: str
    title: str
    path: Path | None = None


class Gallery:
    """The styles.

    Args:
        directory: Where painted styles are kept.
        folder: The operator's; it may change at any time.
        workshop: Where pictures are worked on.
        painted: Whether to offer the project's own.
    """

    def __init__(self, directory: Path, folder: Path | None, workshop: Workshop, painted: bool = True) -> None:
        self._workshop = workshop
        self._directory = directory
        self._folder = folder
        self._painted = painted
        self._painting = asyncio.Lock()

    def styles(self) -> list[Style]:
        """All styles, in their order on the sheet."""
        own = [Style(sample.name, sample.title) for sample in samples.styles()] if self._painted else []
        return own + self._in_folder()

    def _in_folder(self) -> list[Style]:
        if self._folder is None or not self._folder.is_dir():
            return []
        paths = sorted(path for path in self._folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        return [_of_file(path) for path in paths[:_MOST_OF_FOLDER]]

    def find(self, key: str) -> Style | None:
        """The style of this key, if it is there (still)."""
        return next((style for style in self.styles() if style.key == key), None)

    @property
    def version(self) -> str:
        """Changes when the sheet would look different."""
        return hashlib.sha256(repr((__version__, self.styles())).encode()).hexdigest()[:16]

    async def picture(self, key: str) -> bytes:
        """The style as an encoded picture.

        Raises:
            UserError: It isn't there any more, or can't be read.
        """
        style = self.find(key)
        if style is None:
            raise UserError("this style isn't in the gallery any more", "Choose another one")
        if style.path is not None:
            return await self._workshop.do(_read, style.path)
        path = self._directory / "styles" / f"{key}-{__version__}.png"
        async with self._painting:  # so that none is painted twice
            if not path.exists():
                await self._workshop.do(_paint, key, path)
        return await asyncio.to_thread(path.read_bytes)

    async def sheet(self) -> bytes:
        """A JPEG file that shows all styles, numbered from 1."""
        pictures: list[bytes | None] = []
        for style in self.styles():
            try:
                pictures.append(await self.picture(style.key))
            except UserError:
                pictures.append(None)
        return await self._workshop.do(_sheet, pictures)


def _of_file(path: Path) -> Style:
    stamp = path.stat().st_mtime_ns
    title = path.stem.replace("_", " ").strip()[:40]
    return Style(hashlib.sha256(f"{path.name} {stamp}".encode()).hexdigest()[:12], title or path.stem, path)


def _read(path: Path) -> bytes:
    try:
        return stripped(path.read_bytes())
    except OSError as error:
        raise ImageError(f"the style {path.stem} can't be read", "Choose another one") from error


def _paint(name: str, path: Path) -> None:
    from core import images  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    images.save(path, samples.load(name))


def _sheet(pictures: list[bytes | None]) -> bytes:
    import torch  # noqa: PLC0415

    from core import images  # noqa: PLC0415

    columns = min(_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    step = _TILE + _GAP
    sheet = torch.ones(1, 3, rows * step + _GAP, columns * step + _GAP)
    for number, picture in enumerate(pictures):
        top, left = number // columns * step + _GAP, number % columns * step + _GAP
        sheet[..., top : top + _TILE, left : left + _TILE] = _tile(picture, number + 1)
    return images.encode(sheet, "jpeg", quality=88)


def _tile(data: bytes | None, number: int) -> "Tensor":
    """The middle of a picture, [1, 3, side, side], with a number in its corner."""
    import torch  # noqa: PLC0415

    tile = torch.full((1, 3, _TILE, _TILE), 0.8) if data is None else _middle(data)
    badge = _badge(number)
    height, width = badge.shape[-2:]
    tile[..., _TILE - height :, :width] = badge
    return tile


def _middle(data: bytes) -> "Tensor":
    from core import images  # noqa: PLC0415

    pixels = images.read(data).pixels
    height, width = pixels.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images.resize(pixels[..., top : top + side, left : left + side], (_TILE, _TILE)).clamp(0, 1)


def _badge(number: int) -> "Tensor":
    """Black figures on white, [1, 3, H, W]."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    font, text = ImageFont.load_default(40), str(number)
    width = round(font.getlength(text)) + 24
    badge = Image.new("RGB", (width, 56), "white")
    ImageDraw.Draw(badge).text((width / 2, 28), text, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.asarray(badge, dtype=np.float32).copy() / 255).permute(2, 0, 1)[None]
