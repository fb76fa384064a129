"""The compact network while it learns: VGG's first eight convolutions, narrower, and maps to its teacher's features.

Features are [B, C, H, W], or [B, M, C] where they are *flat* (M positions). Both networks' features are counted in
units of the teacher's root mean square of each layer, so that numbers are of order one.

The parameters are those of *whitened* convolutions. The inputs of a convolution (patches of 3×3 rectified features)
are strongly correlated, and far from zero on average: a gradient step on the weights themselves goes almost wholly
into a few directions. So a convolution is written W = diag(q) V diag(s) M, b = b' − W μ, with μ and Mᵀ M ≈ covariance⁻¹
taken from its inputs at the start, and M diagonalising it: V multiplies inputs that are not correlated (Desjardins et
al. 2015, "Natural neural networks"). s is how much each of them matters at the start, so that V is of order one
throughout, and Adam, which moves all of V alike, changes every direction by about the same share of itself. Without s
the many directions that hardly matter would drown the rest in noise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.features import NAMES, OXFORD
from core.weights import conv_indices

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu3_4")
CONTENT_LAYER = "relu3_2"
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu3_2", "relu3_4")
DEPTH = 8
TEACHER_WIDTHS: Mapping[str, int] = {"relu1_1": 64, "relu2_1": 128, "relu3_1": 256, "relu3_2": 256, "relu3_4": 256}
"""Channels of the teacher's layers that the student is to know."""

INPUT_SCALE = 1 / 60
"""Brings mean-subtracted pixel values to order one; folded into conv1_1 on export."""
_DAMPING = 1e-3
"""Added to the variance of every input direction, as a share of their mean."""
_LEAST_SHARE = 0.1
"""What an input direction matters at least, in units of their root mean square."""

Grams = dict[str, Tensor]
"""By style layer: Gram matrices per position [B, C, C] in float32."""


def opens_block(index: int) -> bool:
    """Whether convolution `index` (from 0) is preceded by pooling."""
    return index > 0 and NAMES[index].endswith("_1")


def tapped(index: int) -> str | None:
    """The layer of `LAYERS` that convolution `index` ends in."""
    layer = f"relu{NAMES[index]}"
    return layer if layer in LAYERS else None


def padded(features: Tensor) -> Tensor:
    """Features with the border repeated once, as the product pads them."""
    return F.pad(features, (1, 1, 1, 1), mode="replicate")


def centred(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] as the Oxford networks' input: 0–255, mean subtracted."""
    return pictures * OXFORD.scale - pictures.new_tensor(OXFORD.mean)[:, None, None]


def flat(features: Tensor) -> Tensor:
    """[B, C, H, W] → [B, M, C]: a view where the memory is channels-last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


class _Gram(torch.autograd.Function):
    """f [B, M, C] → fᵀ f / M in float32; one matrix product back, since the gradient may be made symmetric first."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, features: Tensor) -> Tensor:
        context.save_for_backward(features)
        return (features.transpose(1, 2) @ features).float() / features.shape[1]

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (features,) = cast("tuple[Tensor]", context.saved_tensors)  # type: ignore[attr-defined]
        symmetric = (gradient + gradient.transpose(1, 2)) / features.shape[1]
        return features @ symmetric.to(features.dtype)


def gram(features: Tensor) -> Tensor:
    """Gram matrix per position of every picture: [B, C, H, W] → [B, C, C], float32."""
    return cast("Tensor", _Gram.apply(flat(features)))


@dataclass(frozen=True, eq=False)
class Affine:
    """Plain weights [out, in, …] and bias [out]."""

    weight: Tensor
    bias: Tensor


class Whitened(nn.Module):
    """An affine map in whitened coordinates (see the head of this file); weights are flat, [out, in].

    Args:
        outputs: Number of outputs.
        inputs: Number of inputs; of a convolution, channels times nine.
        with_bias: Whether there is a bias; without, inputs are scaled but not centred.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, outputs: int, inputs: int, *, with_bias: bool = True) -> None:
        super().__init__()
        self.with_bias = with_bias
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=with_bias)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("basis", torch.eye(inputs))
        self.register_buffer("scale", torch.ones(outputs))

    @torch.no_grad()
    def adopt(self, plain: Affine, inputs: Tensor) -> None:
        """Takes the values of `plain` ([out, in], [out]), whitened for `inputs` [samples, in]."""
        self.mean.copy_(inputs.mean(0) * self.with_bias)
        spread = inputs - self.mean
        covariance = (spread.T @ spread / len(inputs)).double()
        variances, directions = torch.linalg.eigh(covariance)
        variances = variances.clamp_min(0)
        deviations = (variances + _DAMPING * variances.mean()).sqrt()
        energy = (plain.weight.double() @ covariance * plain.weight).sum(1)
        self.scale.copy_(energy.clamp_min(0).sqrt().clamp_min(0.05))
        whitened = plain.weight.double() @ (directions * deviations) / self.scale[:, None]
        power = whitened.square().mean(0)
        share = (power + _LEAST_SHARE**2 * power.mean()).sqrt()
        self.basis.copy_(directions.T * (share / deviations)[:, None])
        self.weight.copy_(whitened / share)
        self.bias.copy_((plain.bias + plain.weight @ self.mean) * self.with_bias)

    def plain(self) -> Affine:
        """The map in ordinary coordinates, differentiable."""
        weight = (self.scale[:, None] * self.weight) @ self.basis
        return Affine(weight, self.bias - weight @ self.mean)


@dataclass(frozen=True, eq=False)
class Frozen:
    """One moment's student: plain weights in the precision of `forward`, differentiable if it was made so."""

    convolutions: Sequence[Affine]
    maps: Mapping[str, Affine]
    dtype: torch.dtype

    def features(self, pictures: Tensor) -> dict[str, Tensor]:
        """The student's own features of pictures [B, 3, H, W] at `LAYERS`."""
        found: dict[str, Tensor] = {}
        features = (centred(pictures) * INPUT_SCALE).to(self.dtype).contiguous(memory_format=torch.channels_last)
        for index, convolution in enumerate(self.convolutions):
            features = F.max_pool2d(features, 2) if opens_block(index) else features
            features = torch.relu(F.conv2d(padded(features), convolution.weight, convolution.bias))
            layer = tapped(index)
            if layer is not None:
                found[layer] = features
        return found

    def mapped(self, features: Tensor, layer: str) -> Tensor:
        """The teacher's features, flat [B, M, C], as the student's [B, c, H, W] tell them."""
        affine = self.maps[layer]
        return F.linear(flat(features), affine.weight.to(self.dtype), affine.bias.to(self.dtype))

    def mapped_gram(self, features: Tensor, layer: str) -> Tensor:
        """The Gram matrix [B, C, C] of `mapped`, from that of the student's features: A G Aᵀ, and the bias's terms."""
        affine = self.maps[layer]
        mean = features.float().mean((2, 3)) @ affine.weight.T
        cross = mean[:, :, None] * affine.bias
        product = affine.weight @ gram(features) @ affine.weight.T
        return product + cross + cross.transpose(1, 2) + torch.outer(affine.bias, affine.bias)

    def mapped_grams(self, features: Mapping[str, Tensor]) -> Grams:
        """`mapped_gram` of every style layer."""
        return {layer: self.mapped_gram(features[layer], layer) for layer in STYLE_LAYERS}


class Student(nn.Module):
    """The trainable compact network.

    Args:
        widths: Channels of its eight convolutions.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) != DEPTH:
            raise ValueError(f"the compact network has {DEPTH} convolutions, not {len(widths)}")
        self.widths = tuple(widths)
        inputs = (3, *widths[:-1])
        self.convolutions = nn.ModuleList(Whitened(n, 9 * c) for n, c in zip(widths, inputs, strict=True))
        self.maps = nn.ModuleDict({layer: self._map(index) for index in range(DEPTH) if (layer := tapped(index))})

    def _map(self, index: int) -> Whitened:
        # The distance between contents does not see a bias, so the content layer's map has none.
        layer = f"relu{NAMES[index]}"
        return Whitened(TEACHER_WIDTHS[layer], self.widths[index], with_bias=layer != CONTENT_LAYER)

    def _plain_convolutions(self) -> Iterator[Affine]:
        for module in self.convolutions:
            affine = cast("Whitened", module).plain()
            yield Affine(affine.weight.view(len(affine.bias), -1, 3, 3), affine.bias)

    def _plain_maps(self) -> dict[str, Affine]:
        return {layer: cast("Whitened", module).plain() for layer, module in self.maps.items()}

    def freeze(self, dtype: torch.dtype) -> Frozen:
        """The student as it is now, its convolutions in `dtype`; gradients reach the parameters."""
        convolutions = [
            Affine(plain.weight.to(dtype).contiguous(memory_format=torch.channels_last), plain.bias.to(dtype))
            for plain in self._plain_convolutions()
        ]
        return Frozen(convolutions, self._plain_maps(), dtype)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """The convolutions as `features.N.weight` and `.bias` in float32, for input 0–255 mean-subtracted."""
        found: dict[str, Tensor] = {}
        for index, plain in enumerate(self._plain_convolutions()):
            scale = INPUT_SCALE if index == 0 else 1.0
            found[f"features.{conv_indices[index]}.weight"] = plain.weight * scale
            found[f"features.{conv_indices[index]}.bias"] = plain.bias
        return found

    @torch.no_grad()
    def export(self, units: Mapping[str, float]) -> dict[str, Tensor]:
        """Plain tensors in 16 bit, as `core` reads them: `tensors`, and maps to the teacher's own scale.

        Args:
            units: Root mean square of the teacher's layers, in which features were counted.
        """
        tensors = self.tensors()
        for layer, plain in self._plain_maps().items():
            tensors[f"metric.{layer}.weight"] = plain.weight * units[layer]
            tensors[f"metric.{layer}.bias"] = plain.bias * units[layer]
        return {name: tensor.half().cpu().contiguous() for name, tensor in tensors.items()}
