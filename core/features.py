"""From a picture to the named activations of a VGG network.

One class serves every network of the VGG-19 topology: five blocks of 3×3 convolutions (Simonyan & Zisserman 2014,
table 1, column E), cut after the deepest layer that the weights hold. Layers have the papers' names: `conv3_1` is the
response of the first convolution of block 3, `relu3_1` the same after its rectifier.

Geometry: a block works at `1 / 2**(block - 1)` of the picture's resolution, pooled with windows of 2×2 that drop an odd
last row or column. Every convolution keeps the size: beyond the picture it sees what `padding` says.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.errors import WeightsError
from core.weights import Weights, conv_indices

Pooling = Literal["max", "average"]
Padding = Literal["replicate", "reflect", "zeros"]

CONVOLUTIONS_PER_BLOCK = (2, 2, 4, 4, 4)
NAMES = tuple(f"{block}_{k}" for block, n in enumerate(CONVOLUTIONS_PER_BLOCK, 1) for k in range(1, n + 1))

PAPER_CONTENT_LAYERS = ("relu4_2",)


@dataclass(frozen=True)
class Convention:
    """How a network wants its input: `(picture · scale − mean) / deviation`, channels R, G, B."""

    scale: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @property
    def feature_scale(self) -> float:
        """How much larger features would be if the network took pixel values from 0 to 255, as the paper's does."""
        return 255.0 / self.scale * sum(self.deviation) / 3


OXFORD = Convention(255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
TORCHVISION = Convention(1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONVENTIONS: Mapping[str, Convention] = {"vgg19": TORCHVISION, "vgg19-oxford": OXFORD, "compact": OXFORD}


@dataclass(frozen=True, eq=False)
class Convolution:
    """A 3×3 convolution: weight [out, in, 3, 3], bias [out]; `name` is e.g. "3_1".

    `adjoint` [in, out, 3, 3] is the weight of the convolution that takes gradients back.
    """

    name: str
    weight: Tensor
    bias: Tensor
    adjoint: Tensor

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Metric:
    """An affine map from a compact network's features to its teacher's: weight [teacher, own], bias [teacher]."""

    weight: Tensor
    bias: Tensor


class Network:
    """A VGG network, ready to run on one device in one precision.

    Args:
        weights: Loaded weights; as many of the sixteen convolutions as they hold, from conv1_1 on.
        pooling: "max" as in VGG, or "average" as Gatys et al. (2015, section 2) advise.
        padding: What a convolution sees beyond the border. VGG's own "zeros" leave a frame around the picture.
        device: Where the network runs.
        dtype: Precision of weights and activations.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        pooling: Pooling = "max",
        padding: Padding = "replicate",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = weights.network
        self.sha256 = weights.sha256
        self.pooling: Pooling = pooling
        self.padding: Padding = padding
        self.device = torch.device(device)
        self.dtype = dtype
        self.convention = CONVENTIONS.get(weights.network, OXFORD)
        self._layers = layers_of(weights)
        self.convolutions = tuple(self._convolutions(weights))
        self.metrics = dict(self._metrics(weights))

    def _convolutions(self, weights: Weights) -> Iterator[Convolution]:
        for name, index in zip(NAMES, conv_indices, strict=True):
            if f"features.{index}.weight" not in weights.tensors:
                break
            weight = weights.tensors[f"features.{index}.weight"].to(self.device, self.dtype)
            bias = weights.tensors[f"features.{index}.bias"].to(self.device, self.dtype)
            weight = weight.contiguous(memory_format=torch.channels_last)
            adjoint = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            yield Convolution(name, weight, bias, adjoint)

    def _metrics(self, weights: Weights) -> Iterator[tuple[str, Metric]]:
        for key, weight in weights.tensors.items():
            if key.startswith("metric.") and key.endswith(".weight"):
                layer = key.removeprefix("metric.").removesuffix(".weight")
                bias = weights.tensors[f"metric.{layer}.bias"]
                wide = torch.promote_types(self.dtype, torch.float32)
                yield layer, Metric(weight.to(self.device, wide), bias.to(self.device, wide))

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that the weights offer (see `layers_of`)."""
        return self._layers

    @property
    def style_layers(self) -> tuple[str, ...]:
        """The default style layers (see `default_style_layers`)."""
        return default_style_layers(self.layers)

    @property
    def content_layers(self) -> tuple[str, ...]:
        """The default content layers (see `default_content_layers`)."""
        return default_content_layers(self.layers)

    def check(self, layers: Collection[str]) -> None:
        """Raises WeightsError where `layers` names one that these weights don't offer."""
        for layer in layers:
            if layer not in self.layers:
                raise WeightsError(
                    f"the network '{self.name}' has no layer '{layer}'",
                    f"Its weights offer {self.layers[0]} to {self.layers[-1]}",
                )

    def blocks(self, deepest: Collection[str]) -> list[list[Convolution]]:
        """The convolutions, block by block, that the layers `deepest` need."""
        last = max(NAMES.index(name_of_layer(layer)) for layer in deepest)
        blocks: list[list[Convolution]] = []
        for convolution in self.convolutions[: last + 1]:
            if convolution.name.endswith("_1"):
                blocks.append([])
            blocks[-1].append(convolution)
        return blocks

    def prepare(self, picture: Tensor) -> Tensor:
        """The network's input [1, 3, H, W] for an sRGB picture [1, 3, H, W] in [0, 1]; differentiable."""
        deviation = picture.new_tensor(self.convention.deviation)[:, None, None]
        offset = picture.new_tensor(self.convention.mean)[:, None, None] / deviation
        prepared = torch.addcmul(-offset, picture, self.convention.scale / deviation)
        return prepared.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def convolve(
        self,
        features: Tensor,
        convolution: Convolution,
        *,
        top: bool = True,
        bottom: bool = True,
        rectify: bool = False,
    ) -> Tensor:
        """`respond`, differentiable with respect to the features."""
        response: Tensor = _Convolve.apply(features, self, convolution, (top, bottom), rectify)
        return response

    def respond(
        self,
        features: Tensor,
        convolution: Convolution,
        *,
        top: bool = True,
        bottom: bool = True,
        rectify: bool = False,
    ) -> Tensor:
        """One convolution [1, in, H, W] → [1, out, H', W], followed by its rectifier where `rectify` says so.

        The left and right sides are padded; so are the top and bottom where they are the picture's own. Where they are
        not (a band cut out of a picture), the output is a row shorter there.
        """
        if self.padding == "zeros" and top and bottom:
            response = F.conv2d(features, convolution.weight, convolution.bias, padding=1)
        else:
            mode = "constant" if self.padding == "zeros" else self.padding
            padded = F.pad(features, (1, 1, int(top), int(bottom)), mode=mode)
            response = F.conv2d(padded, convolution.weight, convolution.bias)
        return response.relu_() if rectify else response

    def pull_back(self, gradient: Tensor, convolution: Convolution, *, top: bool = True, bottom: bool = True) -> Tensor:
        """The adjoint of `respond` without bias and rectifier: [1, out, H', W] → [1, in, H, W].

        The gradient of a convolution with respect to its input is a convolution with the flipped weights, and runs as
        fast as the forward one; only the borders need more.
        """
        if top and bottom:
            received = F.conv2d(gradient, convolution.adjoint, padding=1)
        else:
            received = F.conv2d(gradient, convolution.adjoint, padding=(2, 1))
            received = received[:, :, int(top) : received.shape[2] - int(bottom)]
        if self.padding != "zeros":
            _fold_borders(received, gradient, convolution.weight, self.padding, (top, bottom))
        return received

    def pool(self, features: Tensor) -> Tensor:
        """Halves the resolution: [1, C, H, W] → [1, C, ⌊H/2⌋, ⌊W/2⌋]."""
        return F.max_pool2d(features, 2) if self.pooling == "max" else F.avg_pool2d(features, 2)

    def activations(self, picture: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """The named activations [1, C, h, w] of a picture [1, 3, H, W]; differentiable, the whole picture at once."""
        self.check(layers)
        found: dict[str, Tensor] = {}
        features = self.prepare(picture)
        for number, block in enumerate(self.blocks(layers)):
            features = self.pool(features) if number else features
            for convolution in block:
                response = self.convolve(features, convolution)
                features = torch.relu(response)
                pair = {f"conv{convolution.name}": response, f"relu{convolution.name}": features}
                found.update({name: value for name, value in pair.items() if name in layers})
        return found


def default_style_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """The paper's style layers, or those spread likewise over a network that is cut short."""
    blocks = sorted({block_of(layer) + 1 for layer in layers})
    firsts = tuple(f"relu{block}_1" for block in blocks)
    return firsts if len(blocks) >= 4 or layers[-1] in firsts else (*firsts, layers[-1])


def default_content_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """The paper's content layer, or the second of the deepest block (or its first)."""
    if set(PAPER_CONTENT_LAYERS) <= set(layers):
        return PAPER_CONTENT_LAYERS
    block = block_of(layers[-1]) + 1
    second = f"relu{block}_2"
    return (second,) if second in layers else (f"relu{block}_1",)


def layers_of(weights: Weights) -> tuple[str, ...]:
    """Every layer that the weights offer, from the shallowest: conv1_1, relu1_1, conv1_2, …."""
    return tuple(
        f"{kind}{name}"
        for name, index in zip(NAMES, conv_indices, strict=True)
        if f"features.{index}.weight" in weights.tensors
        for kind in ("conv", "relu")
    )


class _Convolve(torch.autograd.Function):
    """A convolution and its rectifier, differentiable with respect to the features.

    Autograd would keep the padded input and the output of each; the backward pass needs no more than which outputs are
    positive. That halves the memory of a pass and saves copies.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, network: Network, convolution: Convolution, rows: tuple[bool, bool], rectify: bool
    ) -> Tensor:
        top, bottom = rows
        response = network.respond(features, convolution, top=top, bottom=bottom, rectify=rectify)
        ctx.save_for_backward(response if rectify else None)
        ctx.network, ctx.convolution, ctx.rows = network, convolution, rows
        return response

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (rectified,) = ctx.saved_tensors
        if rectified is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, rectified, 0)
        top, bottom = ctx.rows
        return ctx.network.pull_back(gradient, ctx.convolution, top=top, bottom=bottom), None, None, None, None


def _fold_borders(
    received: Tensor, gradient: Tensor, weight: Tensor, padding: Padding, rows: tuple[bool, bool]
) -> None:
    """The adjoint of padding: what the lines beyond the border would receive goes to those that they copy.

    Args:
        received: [1, in, H, W], what the picture's own positions received; added to.
        gradient: [1, out, H', W], with respect to the response.
        weight: [out, in, 3, 3], channels-last.
        padding: Which lines were copied.
        rows: Whether the top and the bottom were padded.
    """
    top, bottom = rows
    copied = {"replicate": 0, "reflect": 1}[padding]
    for beyond, wanted, edge, ky in ((top, copied, 0, 0), (bottom, -1 - copied, -1, 2)):
        if beyond:
            line, values = received[0, :, wanted].T, gradient[0, :, edge].T
            kernels = [weight[:, :, ky, kx] for kx in range(3)]
            _correlate(line, values, kernels, before=1)
            line[copied, None].addmm_(values[:1], kernels[0])  # the corners, which two paddings copied
            line[-1 - copied, None].addmm_(values[-1:], kernels[2])
    for wanted, edge, kx in ((copied, 0, 0), (-1 - copied, -1, 2)):
        kernels = [weight[:, :, ky, kx] for ky in range(3)]
        _correlate(received[0, :, :, wanted].T, gradient[0, :, :, edge].T, kernels, before=int(top))


def _correlate(line: Tensor, values: Tensor, kernels: Sequence[Tensor], before: int) -> None:
    """`line[i + k − before] += values[i] @ kernels[k]` wherever the line [n, in] has that position."""
    for k, kernel in enumerate(kernels):
        shift = k - before
        first, last = max(0, -shift), min(values.shape[0], line.shape[0] - shift)
        line[first + shift : last + shift].addmm_(values[first:last], kernel)


def name_of_layer(layer: str) -> str:
    """The convolution that a layer belongs to: "relu3_1" → "3_1"."""
    return layer[4:]


def block_of(layer: str) -> int:
    """The block that a layer lies in, from 0: "relu3_1" → 2."""
    return int(layer[4]) - 1
