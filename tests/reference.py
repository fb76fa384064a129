"""The method a second time: plain formulas of the papers, whole pictures, float64. The engine is held against it.

Nothing here comes from `core` but the record of settings, whose numbers are read. Features are [1, C, H, W], pictures
[1, 3, H, W] in [0, 1]. Gradients are autograd's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import Settings

# scale, mean and deviation of the networks' inputs: Simonyan & Zisserman 2014 (pixel values 0 to 255, less the mean of
# the training pictures) and torchvision's documentation of its own training.
INPUTS = {
    "vgg19-oxford": (255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "compact": (255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "vgg19": (1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Vgg:
    """Weights with torchvision's keys, and how they are run."""

    tensors: Mapping[str, Tensor]
    network: str = "vgg19-oxford"
    pooling: str = "max"
    padding: str = "replicate"


def activations(vgg: Vgg, picture: Tensor) -> dict[str, Tensor]:
    """Every layer of configuration E (Simonyan & Zisserman 2014, table 1) that the weights hold."""
    scale, mean, deviation = INPUTS[vgg.network]
    features = (picture.double() * scale - _per_channel(mean)) / _per_channel(deviation)
    found: dict[str, Tensor] = {}
    position = 0  # in torchvision's list of layers: convolution, rectifier, …, pooling
    for block, convolutions in enumerate((2, 2, 4, 4, 4), 1):
        for number in range(1, convolutions + 1):
            if f"features.{position}.weight" not in vgg.tensors:
                return found
            weight = vgg.tensors[f"features.{position}.weight"].double()
            bias = vgg.tensors[f"features.{position}.bias"].double()
            mode = {"zeros": "constant"}.get(vgg.padding, vgg.padding)
            response = F.conv2d(F.pad(features, (1, 1, 1, 1), mode=mode), weight, bias)
            features = torch.relu(response)
            found |= {f"conv{block}_{number}": response, f"relu{block}_{number}": features}
            position += 2
        features = F.max_pool2d(features, 2) if vgg.pooling == "max" else F.avg_pool2d(features, 2)
        position += 1
    return found


def mapped(vgg: Vgg, layer: str, features: Tensor) -> Tensor:
    """A compact network's features in its teacher's space, position by position; others as they are."""
    if f"metric.{layer}.weight" not in vgg.tensors:
        return features
    weight, bias = (vgg.tensors[f"metric.{layer}.{kind}"].double() for kind in ("weight", "bias"))
    return torch.einsum("tc,nchw->nthw", weight, features) + bias[:, None, None]


def gram(features: Tensor) -> Tensor:
    """Gatys et al. 2015, equation 3: inner products of feature maps; [C, C]."""
    return torch.einsum("nihw,njhw->ij", features, features)


def gram_per_position(features: Tensor) -> Tensor:
    return gram(features) / (features.shape[2] * features.shape[3])


def total_variation(picture: Tensor) -> Tensor:
    """Mean squared difference between vertical neighbours, plus that between horizontal ones."""
    return torch.diff(picture, dim=2).pow(2).mean() + torch.diff(picture, dim=3).pow(2).mean()


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased."""
    if tuple(picture.shape[2:]) == size:
        return picture
    return F.interpolate(picture, size=size, mode="bicubic", antialias=True)


def level_size(size: tuple[int, int], level: int) -> tuple[int, int]:
    """The shorter side is 256·2^l, the longer that of level 0 doubled l times."""
    height, width = size
    if height <= width:
        return 256 * 2**level, round(256 * width / height) * 2**level
    return round(256 * height / width) * 2**level, 256 * 2**level


def at_level(picture: Tensor, level: int) -> Tensor:
    """A given picture, resized from its original; what bicubic overshoots at edges is cut off."""
    size = level_size((picture.shape[2], picture.shape[3]), level)
    return resize(picture.double(), size).clamp(0, 1)


def style_statistics(vgg: Vgg, style: Tensor, level: int, layers: Sequence[str]) -> dict[str, Tensor]:
    """Gram matrices per position of the style, without the outermost 1/64 of it."""
    picture = at_level(style, level)
    rim = min(picture.shape[2:]) // 64
    found = activations(vgg, picture[:, :, rim : picture.shape[2] - rim, rim : picture.shape[3] - rim])
    return {layer: gram_per_position(mapped(vgg, layer, found[layer])) for layer in layers}


@dataclass(frozen=True)
class Terms:
    """The terms of one level, unweighted; scalars."""

    content: Tensor
    style: Tensor
    tv: Tensor


@dataclass(frozen=True)
class Reference:
    """The objective of one run."""

    vgg: Vgg
    settings: Settings
    content: Tensor
    styles: Sequence[Tensor]
    style_layers: tuple[str, ...]
    content_layers: tuple[str, ...]

    def terms(self, picture: Tensor, level: int) -> Terms:
        """The terms of one level, of a picture of this level's size or a finer one's."""
        resized = resize(picture, level_size((self.content.shape[2], self.content.shape[3]), level))
        found = {layer: mapped(self.vgg, layer, value) for layer, value in activations(self.vgg, resized).items()}
        return Terms(self._content(found, level), self._style(found, level), total_variation(resized))

    def _content(self, found: Mapping[str, Tensor], level: int) -> Tensor:
        wanted = activations(self.vgg, at_level(self.content, level))
        terms = []
        for layer in self.content_layers:
            target = mapped(self.vgg, layer, wanted[layer])
            squared = (found[layer] - target).pow(2).sum()
            if self.settings.loss.normalisation == "gatys":
                terms.append(squared / 2 * self._pixel_scale() ** 2)  # equation 1
            else:
                terms.append(squared / target.pow(2).sum())
        return torch.stack(terms).mean()

    def _style(self, found: Mapping[str, Tensor], level: int) -> Tensor:
        terms = []
        for style in self.styles:
            targets = style_statistics(self.vgg, style, level, self.style_layers)
            for layer in self.style_layers:
                value, target = gram_per_position(found[layer]), targets[layer]
                squared = (value - target).pow(2).sum()
                if self.settings.loss.normalisation == "gatys":
                    # Equation 4 of the paper, whose Gram matrices are sums over M positions: M cancels.
                    terms.append(squared / (4 * len(target) ** 2) * self._pixel_scale() ** 4)
                else:
                    terms.append(squared / target.pow(2).sum())
        return torch.stack(terms).mean()  # equation 5, all layers alike

    def _pixel_scale(self) -> float:
        """Features of a network that is given pixel values 0 to 255 are larger by this."""
        scale, _, deviation = INPUTS[self.vgg.network]
        return 255 / scale * sum(deviation) / 3

    def loss(self, picture: Tensor, finest: int | None = None) -> Tensor:
        """The weighted sum over the levels up to `finest`."""
        wanted = self.settings.loss
        top = self.settings.levels if finest is None else finest
        total = torch.zeros((), dtype=torch.float64)
        for level in range(0 if self.settings.all_levels else self.settings.levels, top + 1):
            weight = wanted.level_weights[level] if level < len(wanted.level_weights) else wanted.level_weights[-1]
            terms = self.terms(picture, level)
            total = total + weight * (
                wanted.content_weight * terms.content + wanted.style_weight * terms.style + wanted.tv_weight * terms.tv
            )
        return total

    def loss_and_gradient(self, picture: Tensor, finest: int | None = None) -> tuple[float, Tensor]:
        """The loss, and its gradient with respect to the picture."""
        leaf = picture.detach().double().requires_grad_()
        value = self.loss(leaf, finest)
        return float(value.detach()), torch.autograd.grad(value, leaf)[0]


def _per_channel(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None, None]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
