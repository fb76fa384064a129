"""A contact sheet: pictures side by side, each under its label."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from core.images import quantize, resize

_MOST = 6000
"""Pixels along a side of the sheet at most; cells shrink to fit."""
_GAP = 8
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def contact_sheet(rows: Sequence[Sequence[tuple[str, Tensor | None]]]) -> Tensor:
    """Draws the sheet.

    Args:
        rows: Label and picture [1, 3, H, W] of every cell; a cell without a picture stays empty. All are shown as large
            as the first.

    Returns:
        [1, 3, height, width] in [0, 1].
    """
    pictures = [picture for row in rows for _, picture in row if picture is not None]
    height, width = _cell_size(pictures[0], len(rows), max(len(row) for row in rows))
    font = ImageFont.load_default(max(11, min(24, width // 22)))
    caption = round(1.7 * font.size) if isinstance(font, ImageFont.FreeTypeFont) else 18
    columns = max(len(row) for row in rows)
    size = (_GAP + columns * (width + _GAP), _GAP + len(rows) * (caption + height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    for row, cells in enumerate(rows):
        for column, (label, picture) in enumerate(cells):
            left, top = _GAP + column * (width + _GAP), _GAP + row * (caption + height + _GAP)
            ImageDraw.Draw(sheet).text((left, top + caption / 2), label, fill=_INK, font=font, anchor="lm")
            if picture is not None:
                sheet.paste(_image(resize(picture, (height, width))), (left, top + caption))
    return (
        torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(1, *size[::-1], 3).permute(0, 3, 1, 2)
        / 255
    )


def _cell_size(picture: Tensor, rows: int, columns: int) -> tuple[int, int]:
    """Height and width of a cell."""
    height, width = picture.shape[2:]
    scale = min(1.0, _MOST / (rows * height), _MOST / (columns * width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((quantize(picture)[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy())
