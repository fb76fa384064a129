"""The teacher, VGG-19's first eight convolutions, and what the student is shown of it: samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core import weights
from core.features import Network
from training.student import LAYERS, STYLE_LAYERS, Grams, gram


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture as the teacher sees it.

    Attributes:
        picture: [1, 3, N, N], sRGB in [0, 1].
        features: Of `LAYERS`, in units of each layer's root mean square. relu1_1 is not kept, being large and cheap.
        grams: Of the style layers.
        style: The style that the picture was being optimised towards, if it was.
    """

    picture: Tensor
    features: Mapping[str, Tensor]
    grams: Grams
    style: "Sample | None" = None


class Teacher:
    """Frozen features of VGG-19.

    Args:
        file: The Oxford weights, at least up to conv3_4.
        device: Where it runs.
        dtype: Precision of its weights and activations.
    """

    def __init__(self, file: Path, device: torch.device, dtype: torch.dtype) -> None:
        loaded = weights.load("vgg19-oxford", file)
        self.sha256 = loaded.sha256
        self.tensors = {name: tensor.float() for name, tensor in loaded.tensors.items()}
        self.network = Network(loaded, device=device, dtype=dtype)
        self.units: dict[str, float] = dict.fromkeys(LAYERS, 1.0)

    @torch.no_grad()
    def calibrate(self, pictures: Tensor) -> None:
        """Takes the layers' root mean squares over pictures [B, 3, H, W] as units."""
        found = self.network.activations(pictures, LAYERS)
        self.units = {layer: float(found[layer].float().square().mean().sqrt()) for layer in LAYERS}

    def features(self, pictures: Tensor, layers: Sequence[str] = LAYERS) -> dict[str, Tensor]:
        """Features [B, C, H, W] of pictures [B, 3, H, W], in units of each layer; differentiable."""
        found = self.network.activations(pictures, layers)
        return {layer: features / self.units[layer] for layer, features in found.items()}

    @torch.no_grad()
    def sample(self, picture: Tensor, style: Sample | None = None) -> Sample:
        """What the student may learn from a picture [1, 3, N, N]."""
        features = self.features(picture)
        grams = {layer: gram(features[layer]) for layer in STYLE_LAYERS}
        return Sample(picture, {layer: features[layer] for layer in LAYERS[1:]}, grams, style)
