"""Small networks and pictures: VGG-19's topology with few channels, and pictures with something to see in them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from core.features import Network
from core.weights import Weights

# The sixteen convolutions in torchvision's `vgg19().features`, and how wide they are here.
POSITIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
WIDTHS = (4, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8)


def vgg(depth: int = 16, *, widths: Sequence[int] = WIDTHS, seed: int = 0) -> dict[str, Tensor]:
    """Random weights that keep the activations' size from layer to layer (He et al. 2015), as trained ones do."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    channels = 3
    for position, width in list(zip(POSITIONS, widths, strict=True))[:depth]:
        deviation = (2 / (9 * channels)) ** 0.5
        tensors[f"features.{position}.weight"] = deviation * torch.randn(width, channels, 3, 3, generator=draw)
        tensors[f"features.{position}.bias"] = 0.1 * torch.randn(width, generator=draw)
        channels = width
    return tensors


def with_metric(tensors: Mapping[str, Tensor], layers: Mapping[str, int], *, outputs: int = 11) -> dict[str, Tensor]:
    """The same network as a compact one: an affine map to `outputs` channels for each of `layers` (name: its width)."""
    draw = torch.Generator().manual_seed(99)
    found = dict(tensors)
    for layer, width in layers.items():
        found[f"metric.{layer}.weight"] = torch.randn(outputs, width, generator=draw)
        found[f"metric.{layer}.bias"] = 30 * torch.randn(outputs, generator=draw)
    return found


def network(tensors: Mapping[str, Tensor], name: str = "vgg19-oxford", **options: Any) -> Network:
    """A network of these weights; in float64 unless told otherwise."""
    options.setdefault("dtype", torch.float64)
    return Network(Weights(name, tensors, _sha256(tensors), {}), **options)


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(dict(tensors))).hexdigest()


def save(tensors: Mapping[str, Tensor], directory: Path) -> Path:
    """Writes weights as a file, named by what is in it."""
    data = safetensors.torch.save(dict(tensors))
    path = directory / f"small_{hashlib.sha256(data).hexdigest()[:8]}.safetensors"
    path.write_bytes(data)
    return path


def picture(height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Blots of colour with hard black and white edges: [1, 3, height, width] in [0, 1].

    Fine grain lies over them, so that no two neighbours are equal and the largest of a pooling window is one pixel.
    """
    draw = torch.Generator().manual_seed(seed)
    blots = torch.rand(1, 3, max(2, height // 24), max(2, width // 24), generator=draw, dtype=torch.float64)
    grain = torch.rand(1, 3, height, width, generator=draw, dtype=torch.float64)
    smooth = F.interpolate(blots, size=(height, width), mode="bilinear")
    return (0.9 * (1.5 * smooth - 0.25).clamp(0, 1) + 0.1 * grain).to(dtype)
