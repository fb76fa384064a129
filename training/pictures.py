"""What the compact network is trained on: crops of pictures, painted patterns, and noise laid over both.

A crop is a float tensor [1, 3, N, N], sRGB in [0, 1]. All randomness comes from the generator that is handed in.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from core.config import NoiseSettings
from core.errors import ImageError
from core.noise import blend

Pixels = NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Photographs and textures that come with scikit-image: the colourful or richly textured ones.
BUNDLED = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
LONGEST_SIDE = 900


@dataclass(frozen=True, eq=False)
class Library:
    """The pictures of a training run, and the first digits of each file's SHA-256 by its name."""

    pictures: tuple[Pixels, ...]
    digests: Mapping[str, str]


def load(folder: Path) -> Library:
    """Reads the pictures of `folder` and those that scikit-image brings.

    Raises:
        ImageError: There is no picture in `folder`.
    """
    own = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not own:
        raise ImageError(f"there is no picture in {folder}", f"Put files named *{', *'.join(SUFFIXES)} there")
    paths = [*own, *_bundled()]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}
    return Library(tuple(_read(path) for path in paths), digests)


def _bundled() -> list[Path]:
    import skimage  # noqa: PLC0415 - a large package, needed for its pictures alone

    folder = Path(skimage.__file__).parent / "data"
    return [folder / name for name in BUNDLED if (folder / name).exists()]


def _read(path: Path) -> Pixels:
    with Image.open(path) as file:
        picture = file.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


class Crops:
    """An endless source of random crops.

    Args:
        pictures: Where crops are taken from.
        noise: The noise of a starting picture, as the product makes it; its strength is drawn anew every time.
        generator: Draws everything.
    """

    def __init__(self, pictures: Sequence[Pixels], noise: NoiseSettings, generator: np.random.Generator) -> None:
        self.pictures = pictures
        self.noise = noise
        self.generator = generator

    def picture(self, side: int, shortest: float = 200, longest: float = 560) -> Tensor:
        """A crop of a picture whose shorter side was first resized to between `shortest` and `longest`."""
        draw = self.generator
        pixels = self.pictures[int(draw.integers(len(self.pictures)))]
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        resized = min(math.exp(draw.uniform(math.log(shortest), math.log(longest))), 1.3 * shorter)
        window = shorter * side / max(side, resized)
        left, top = draw.uniform(0, width - window), draw.uniform(0, height - window)
        box = (left, top, left + window, top + window)
        crop = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS, box=box))
        tensor = torch.from_numpy(crop.astype(np.float32) / 255).permute(2, 0, 1)[None]
        return self._turned(tensor).contiguous()

    def _turned(self, crop: Tensor) -> Tensor:
        if self.generator.random() < 0.5:
            crop = crop.flip(3)
        return crop.transpose(2, 3) if self.generator.random() < 0.25 else crop

    def style(self, side: int) -> Tensor:
        """A crop to be a style: sometimes in other colours or contrast, now and then a painted pattern."""
        if self.generator.random() < 0.05:
            return pattern(side, self.generator)
        return self._recoloured(self.picture(side, 220, 520))

    def content(self, side: int) -> Tensor:
        """A crop to be a content."""
        return self.picture(side, 180, 420)

    def any(self, side: int) -> Tensor:
        """Whatever a network may be shown: pictures, patterns, double exposures, and any of them under noise."""
        draw = self.generator
        crop = pattern(side, draw) if draw.random() < 0.07 else self._recoloured(self.picture(side))
        kind = draw.random()
        if kind < 0.12:
            return torch.lerp(crop, self.picture(side), float(draw.uniform(0.2, 0.8)))
        if kind < 0.30:
            return self.start(crop, self.picture(side), float(draw.uniform(0.1, 1)))
        if kind < 0.36:
            grain = torch.from_numpy(draw.normal(size=crop.shape).astype(np.float32))
            return (crop + float(draw.uniform(0.02, 0.2)) * grain).clamp(0, 1)
        return crop

    def start(self, content: Tensor, style: Tensor, strength: float) -> Tensor:
        """A starting picture as the product makes it: `content` under noise in the colours of `style`."""
        even = bool(self.generator.random() < 0.5)
        settings = self.noise.model_copy(update={"strength": strength, "gradient_weight": 0.0 if even else 1.0})
        seeded = torch.Generator().manual_seed(int(self.generator.integers(2**62)))
        return blend(settings, content, style, seeded).clamp(0, 1)

    def _recoloured(self, crop: Tensor) -> Tensor:
        """Channels permuted, or contrast and brightness changed up to saturation, each three times in ten."""
        draw = self.generator
        if draw.random() < 0.3:
            crop = crop[:, torch.from_numpy(draw.permutation(3))]
        if draw.random() < 0.3:
            mean, contrast = crop.mean(), math.exp(draw.uniform(-1, 1))
            crop = mean + contrast * (crop - mean) + float(draw.uniform(-0.15, 0.15))
        return crop.clamp(0, 1)


def pattern(side: int, draw: np.random.Generator) -> Tensor:
    """A painted pattern [1, 3, side, side]: coloured cells, a gradient, a grating, or discs and bars."""
    paint = (_cells, _gradient, _grating, _shapes)[draw.integers(4)]
    return torch.from_numpy(paint(side, draw).astype(np.float32))[None].clamp(0, 1)


Paint = Callable[[int, np.random.Generator], NDArray[np.float64]]


def _cells(side: int, draw: np.random.Generator) -> NDArray[np.float64]:
    count = int(draw.integers(2, side))
    cells = torch.from_numpy(draw.random((1, 3, count, count)))
    mode = ("nearest", "bicubic")[draw.integers(2)]
    smooth: NDArray[np.float64] = F.interpolate(cells, size=(side, side), mode=mode)[0].numpy()
    return smooth


def _coordinates(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:side, 0:side] / side
    return x, y


def _gradient(side: int, draw: np.random.Generator) -> NDArray[np.float64]:
    x, y = _coordinates(side)
    slope = draw.normal(size=(2, 3, 1, 1)) * 2
    return np.asarray(slope[0] * (x - 0.5) + slope[1] * (y - 0.5) + draw.random((3, 1, 1)))


def _grating(side: int, draw: np.random.Generator) -> NDArray[np.float64]:
    x, y = _coordinates(side)
    angle, frequency = draw.uniform(0, np.pi), draw.uniform(1, side / 3)
    along = np.cos(angle) * x + np.sin(angle) * y
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * along + draw.uniform(0, 6, (3, 1, 1)))
    return np.where(wave > 0.5, 1.0, 0.0) if draw.random() < 0.5 else np.asarray(wave)


def _shapes(side: int, draw: np.random.Generator) -> NDArray[np.float64]:
    picture = np.tile(draw.random((3, 1, 1)), (1, side, side))
    for mask in _masks(side, draw):
        picture[:, mask] = draw.random((3, 1))
    return picture


def _masks(side: int, draw: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    x, y = _coordinates(side)
    for _ in range(int(draw.integers(3, 40))):
        (left, top), angle = draw.random(2), draw.uniform(0, 2 * np.pi)
        across = np.cos(angle) * (x - left) + np.sin(angle) * (y - top)
        bar = (across > 0) & (across < draw.uniform(0.01, 0.3))
        disc = (x - left) ** 2 + (y - top) ** 2 < draw.uniform(0.001, 0.04)
        yield bar if draw.random() < 0.5 else disc
