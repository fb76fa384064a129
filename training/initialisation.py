"""A student to begin with, made of its teacher by least squares, layer by layer.

Each convolution gets the teacher's channels that tell most of the others, and the weights with which the student's own
features before it predict those channels' responses best. (So the first convolution is a choice of the teacher's, and
exact.) The maps to the teacher's features are least squares too. This alone lets the student stand in for its teacher.

Instead of the teacher's, the channels may be those of a wider student that has learnt already, its *guide*: what that
has learnt is then not lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from core.features import NAMES
from core.weights import conv_indices
from training.student import INPUT_SCALE, Affine, Student, Whitened, centred, opens_block, padded, tapped
from training.teacher import Teacher

_RIDGE = 1e-4
_SAMPLES = 60_000


@dataclass(frozen=True, eq=False)
class _Responses:
    """A convolution before and after its rectifier, in units of the root mean square after it; and `after` unscaled."""

    before: Tensor
    after: Tensor
    raw: Tensor


@torch.no_grad()
def initialise(student: Student, teacher: Teacher, pictures: Tensor, guide: Mapping[str, Tensor] | None = None) -> None:
    """Sets all of the student's parameters from responses to pictures [B, 3, H, W]; on the CPU.

    Args:
        student: Its first convolution becomes a choice of the teacher's in any case.
        teacher: Whose features the maps lead to.
        pictures: sRGB in [0, 1].
        guide: Weights `features.N.weight`, `.bias` of the network that is reduced; none: the teacher's.
    """
    guide = teacher.tensors if guide is None else guide
    targets = teacher.features(pictures.to(teacher.network.device))
    theirs, ours = centred(pictures), centred(pictures) * INPUT_SCALE
    for index, width in enumerate(student.widths):
        if opens_block(index):
            theirs, ours = F.max_pool2d(theirs, 2), F.max_pool2d(ours, 2)
        responses = _responses(guide if index else teacher.tensors, index, theirs)
        ours = _convolution(cast("Whitened", student.convolutions[index]), responses, ours, width, index)
        theirs = _responses(guide, index, theirs).raw
        layer = tapped(index)
        if layer is not None:
            _map(cast("Whitened", student.maps[layer]), targets[layer].float().cpu(), ours)


def _responses(tensors: Mapping[str, Tensor], index: int, features: Tensor) -> _Responses:
    key = f"features.{conv_indices[index]}"
    before = F.conv2d(padded(features), tensors[f"{key}.weight"], tensors[f"{key}.bias"])
    after = torch.relu(before)
    unit = float(after.square().mean().sqrt())
    return _Responses(before / unit, after / unit, after)


def _convolution(module: Whitened, responses: _Responses, features: Tensor, width: int, seed: int) -> Tensor:
    """Fits one convolution to `width` of the responses' channels; returns the student's features after it."""
    second_moments = _rows(responses.after).T @ _rows(responses.after) / len(_rows(responses.after))
    chosen = representatives(second_moments, width)
    inputs, outputs = _patches(features), _rows(responses.before[:, chosen])
    some = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:_SAMPLES]
    plain = least_squares(inputs[some], outputs[some])
    module.adopt(plain, inputs[some])
    kernel = plain.weight.view(width, -1, 3, 3)
    return torch.relu(F.conv2d(padded(features), kernel, plain.bias))


def _map(module: Whitened, theirs: Tensor, ours: Tensor) -> None:
    inputs = _rows(ours)
    module.adopt(least_squares(inputs, _rows(theirs), with_bias=module.with_bias), inputs)


def _rows(features: Tensor) -> Tensor:
    """[B, C, H, W] → [B·H·W, C]."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def _patches(features: Tensor) -> Tensor:
    """[B, C, H, W] → [B·H·W, 9·C], in the order of a convolution's weights."""
    return F.unfold(padded(features), 3).transpose(1, 2).flatten(0, 1)


def representatives(second_moments: Tensor, count: int) -> list[int]:
    """The `count` channels from which all channels can be told best, chosen one by one.

    The next channel is the one that explains most of what is left of all (pivoted Cholesky decomposition, the pivot by
    largest gain).

    Args:
        second_moments: [C, C], E[f fᵀ].
        count: At most C.
    """
    left = second_moments.double().clone()
    floor = 1e-9 * left.diagonal().mean()
    chosen: list[int] = []
    for _ in range(count):
        gain = left.square().sum(0) / left.diagonal().clamp_min(floor)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        left = left - torch.outer(left[:, best], left[best]) / left[best, best].clamp_min(floor)
    return sorted(chosen)


def least_squares(inputs: Tensor, outputs: Tensor, *, with_bias: bool = True) -> Affine:
    """The affine map from inputs [n, in] to outputs [n, out] with the least squared error, slightly damped."""
    ones = torch.full((len(inputs), 1), float(with_bias))
    extended = torch.cat([inputs, ones], 1)
    normal = (extended.T @ extended).double()
    normal += _RIDGE * normal.diagonal().mean() * torch.eye(len(normal))
    solution = torch.linalg.solve(normal, (extended.T @ outputs).double()).float()
    return Affine(solution[:-1].T.contiguous(), solution[-1])


def describe(widths: tuple[int, ...]) -> str:
    """Widths by name: "conv1_1 24, conv1_2 32, …"."""
    return ", ".join(f"conv{name} {width}" for name, width in zip(NAMES, widths, strict=False))
