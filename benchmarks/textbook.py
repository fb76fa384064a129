"""The method as one would write it down: float32, whole pictures, all levels from the start, L-BFGS with strong Wolfe.

Gatys et al. 2015 with the loss summed over the levels of a pyramid, and nothing done for speed or memory. It is what
the product is measured against, and a second opinion on its loss: both minimise the same function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = dict[str, Tensor]

_CONVOLUTIONS = (2, 2, 4, 4, 4)


class Vgg(nn.Module):
    """VGG-19's convolutions, rectifiers and max poolings, as deep as the weights go.

    Args:
        tensors: `features.N.weight` and `features.N.bias`, N as in torchvision's `vgg19().features`.
        mean: Subtracted from a picture in [0, scale].
        deviation: Divides it afterwards.
        scale: See there.
        padding: "zeros", as in the paper's network, or "replicate" or "reflect".
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        mean: Sequence[float],
        deviation: Sequence[float],
        scale: float,
        padding: Literal["zeros", "reflect", "replicate"] = "zeros",
    ) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(mean)[:, None, None])
        self.deviation = nn.Buffer(torch.tensor(deviation)[:, None, None])
        self.scale = scale
        self.layers = nn.ModuleDict()
        index = 0
        for block, count in enumerate(_CONVOLUTIONS, 1):
            for k in range(1, count + 1):
                weight = tensors.get(f"features.{index}.weight")
                if weight is None:
                    return
                convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, padding_mode=padding)
                bias = tensors[f"features.{index}.bias"]
                convolution.load_state_dict({"weight": weight, "bias": bias})
                self.layers[f"conv{block}_{k}"] = convolution
                self.layers[f"relu{block}_{k}"] = nn.ReLU()
                index += 2
            self.layers[f"pool{block}"] = nn.MaxPool2d(2)
            index += 1

    def forward(self, picture: Tensor, wanted: Sequence[str]) -> Features:
        """The activations of the layers `wanted` for a picture [1, 3, H, W] in [0, 1]."""
        found: Features = {}
        features = (picture * self.scale - self.mean) / self.deviation
        for name, layer in self.layers.items():
            features = layer(features)
            if name in wanted:
                found[name] = features
            if len(found) == len(wanted):
                break
        return found


def gram(features: Tensor) -> Tensor:
    """The Gram matrix of [1, C, H, W], divided by the number of positions."""
    matrix = features[0].flatten(1)
    return matrix @ matrix.T / matrix.shape[1]


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased; the picture itself where it has the size already."""
    if picture.shape[2:] == size:
        return picture
    return F.interpolate(picture, size=size, mode="bicubic", antialias=True)


@dataclass(frozen=True)
class Level:
    """The size of one level, and what should be seen there."""

    size: tuple[int, int]
    content: Features
    style: Features


class Loss:
    """The sum over levels of the content loss, and of the style loss, each relative to its target.

    Args:
        vgg: The network.
        contents: The content at every level's size.
        styles: The style at every level's size.
        content_layers: Their squared distances are averaged,
        style_layers: and so are those of these Gram matrices.
        content_weight: Of the content against the style.
    """

    def __init__(
        self,
        vgg: Vgg,
        contents: Sequence[Tensor],
        styles: Sequence[Tensor],
        content_layers: Sequence[str],
        style_layers: Sequence[str],
        content_weight: float,
    ) -> None:
        self.vgg = vgg
        self.content_layers, self.style_layers = tuple(content_layers), tuple(style_layers)
        self.content_weight = content_weight
        with torch.no_grad():
            self.levels = [self._level(content, style) for content, style in zip(contents, styles, strict=True)]

    def _level(self, content: Tensor, style: Tensor) -> Level:
        grams = {name: gram(found) for name, found in self.vgg(style, self.style_layers).items()}
        height, width = content.shape[2:]
        return Level((height, width), self.vgg(content, self.content_layers), grams)

    def __call__(self, picture: Tensor) -> Tensor:
        """The loss of a picture [1, 3, H, W] of the finest level's size."""
        return torch.stack([self._of_level(resize(picture, level.size), level) for level in self.levels]).sum()

    def _of_level(self, picture: Tensor, level: Level) -> Tensor:
        found = self.vgg(picture, (*self.style_layers, *self.content_layers))
        content = [_relative_distance(found[name], target) for name, target in level.content.items()]
        style = [_relative_distance(gram(found[name]), target) for name, target in level.style.items()]
        return self.content_weight * torch.stack(content).mean() + torch.stack(style).mean()


def _relative_distance(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).square().sum() / target.square().sum()


def optimise(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    evaluations: int,
    after_evaluation: Callable[[float, Tensor], None],
) -> None:
    """Minimises the loss from `start`, for so many evaluations of loss and gradient, each of which is told of."""
    picture = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [picture],
        max_iter=evaluations,
        max_eval=evaluations,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    count = 0

    def closure() -> Tensor:
        nonlocal count
        if count == evaluations:
            raise _EnoughError
        optimiser.zero_grad()
        value: Tensor = loss(picture)
        value.backward()  # type: ignore[no-untyped-call]
        count += 1
        after_evaluation(float(value.detach()), picture.detach())
        return value

    try:
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    except _EnoughError:
        return


class _EnoughError(Exception):
    """A line search may ask for more evaluations than `max_eval`."""
