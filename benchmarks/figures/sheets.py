"""Contact sheets: pictures in a grid, each under its name."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from core import images, noise
from core.config import Settings
from core.images import Size
from core.pyramid import level_size

_GAP = 6
_CAPTION = 22
_PAPER, _INK = "white", "#222222"
_LIMIT = 250_000
"""Bytes of a sheet at most: the quality falls until it fits."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture [1, 3, H, W] and what stands under it."""

    picture: Tensor
    caption: str


def sheet(rows: Sequence[Sequence[Cell]], width: int = 420, height: int | None = None) -> Image.Image:
    """The cells in rows; each is cut to the shape of the first and shown `width` pixels wide."""
    first = rows[0][0].picture
    tall = height or round(width * first.shape[2] / first.shape[3])
    columns = max(map(len, rows))
    page = Image.new("RGB", (columns * (width + _GAP) - _GAP, len(rows) * (tall + _CAPTION)), _PAPER)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(14)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            left, top = column * (width + _GAP), number * (tall + _CAPTION)
            page.paste(_shown(cell.picture, (tall, width)), (left, top))
            draw.text((left + 2, top + tall + 2), cell.caption, _INK, font=font)
    return page


def _shown(picture: Tensor, size: Size) -> Image.Image:
    """The middle of a picture in the shape of `size`, resized to it."""
    height, width = picture.shape[2:]
    scale = min(height / size[0], width / size[1])
    tall, wide = int(size[0] * scale), int(size[1] * scale)
    top, left = (height - tall) // 2, (width - wide) // 2
    fitted = images.resize(picture[:, :, top : top + tall, left : left + wide], size)
    return Image.fromarray(images.quantize(fitted)[0].mul(255).round().byte().permute(1, 2, 0).numpy())


def crop(picture: Tensor, centre: tuple[float, float], size: Size) -> Tensor:
    """A piece of `size` pixels around `centre` (down, across, as shares of the sides), moved inside the picture."""
    height, width = picture.shape[2:]
    top = min(max(0, round(centre[0] * height) - size[0] // 2), height - size[0])
    left = min(max(0, round(centre[1] * width) - size[1] // 2), width - size[1])
    return picture[:, :, top : top + size[0], left : left + size[1]]


def noise_map(settings: Settings, content: Tensor, style: Tensor) -> Tensor:
    """The noise of a run, without its content, at the size of the result."""
    size = level_size((content.shape[2], content.shape[3]), settings.levels)
    generator = torch.Generator().manual_seed(settings.seed)
    return noise.noise_alone(settings.noise, size, style, generator)


def save(path: Path, page: Image.Image) -> None:
    """Writes a sheet as JPEG, small enough for a repository."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(90, 20, -5):
        stream = io.BytesIO()
        page.save(stream, "JPEG", quality=quality, optimize=True, progressive=True)
        if stream.tell() <= _LIMIT:
            break
    path.write_bytes(stream.getvalue())
