"""Where each style paints, and where the content is kept: masks, from the picture down to every layer.

A mask is [1, 1, H, W] in [0, 1] at any size, stretched over the content's frame.

The rule where masks meet: at every place the styles share it in proportion to weight times mask; together they have as
much of it as the masks there add up to, the whole at most. So two styles everywhere mix by their weights, two halves
have a half each, a grey mask paints half as strongly, and where no mask is, no style is and the photograph stays.

A protected region belongs to no style and gets no noise, and the content counts more there. Where it is protected more
than half, the photograph itself is mixed in, up to all of it; the mixing is a part of the picture that is optimised, so
that the brushwork around grows up to the region and leaves no seam.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from core.images import Size
from core.parametrisation import Parametrisation

_FEATHER = 1 / 64
"""Standard deviation of the soft rim of a protected region, as a share of the picture's shorter side."""
_LEAST_AREA = 1e-4
"""A mask that covers a smaller share of the picture is taken for an empty one."""


@dataclass(frozen=True, eq=False)
class Guidance:
    """The masks of one run.

    Attributes:
        masks: One for each style; None is everywhere.
        protect: Where the content is kept; None is nowhere.
    """

    masks: tuple[Tensor | None, ...]
    protect: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every style is everywhere and nothing is protected."""
        return self.protect is None and all(mask is None for mask in self.masks)

    def shares(self, size: Size, weights: Sequence[float]) -> Tensor:
        """How much of every place each style has: [S, 1, *size], in sum 1 at most.

        Args:
            size: Height and width.
            weights: Of the styles; only their proportions matter.
        """
        masks = torch.cat([torch.ones(1, 1, *size) if mask is None else stretch(mask, size) for mask in self.masks])
        present = torch.tensor(weights, dtype=masks.dtype)[:, None, None, None]
        weighed = masks * present
        coverage = (masks * (present > 0)).sum(0, keepdim=True).clamp_max(1)
        shares = coverage * weighed / weighed.sum(0, keepdim=True).clamp_min(torch.finfo(masks.dtype).tiny)
        return shares if self.protect is None else shares * (1 - self.protection(size))

    def protection(self, size: Size) -> Tensor:
        """How much every place is protected, with a soft rim: [1, 1, *size] in [0, 1]."""
        if self.protect is None:
            return torch.zeros(1, 1, *size)
        return _blurred(stretch(self.protect, size), _FEATHER * min(size))

    def kept(self, size: Size) -> Tensor:
        """The share of the photograph itself that is mixed in: 0 up to half protection, then smoothly up to 1."""
        beyond = (2 * self.protection(size) - 1).clamp_min(0)
        return beyond.square() * (3 - 2 * beyond)


def check(guidance: Guidance) -> Guidance:
    """The guidance itself.

    Raises:
        UserError: A mask covers nothing, or nothing is left that may be painted.
    """
    for number, mask in enumerate(guidance.masks, 1):
        if mask is not None and float(mask.mean()) < _LEAST_AREA:
            raise UserError(
                f"the mask of style {number} is empty: there is nothing white in it", "Paint its region white"
            )
    if guidance.protect is not None and float(guidance.protect.mean()) < _LEAST_AREA:
        raise UserError("the mask of what is protected is empty", "Paint white what should stay, or leave it out")
    if guidance.protect is not None and float(guidance.protect.mean()) > 1 - _LEAST_AREA:
        raise UserError("all of the picture is protected: there is nothing left to paint", "Protect less of it")
    return guidance


def stretch(mask: Tensor, size: Size) -> Tensor:
    """A mask [1, 1, H, W] at another size; it stays in [0, 1], for nothing overshoots."""
    return F.interpolate(mask.float().cpu(), size=size, mode="bilinear", antialias=True, align_corners=False)


def at_block(maps: Tensor, block: int) -> Tensor:
    """Maps [N, 1, H, W] of a picture's positions at the resolution of a block (from 0), averaged as pooling goes."""
    for _ in range(block):
        maps = F.avg_pool2d(maps, 2)
    return maps


def _blurred(mask: Tensor, deviation: float) -> Tensor:
    """Gaussian blur; the mask goes on beyond the border as it is there."""
    reach = max(1, round(3 * deviation))
    offsets = torch.arange(-reach, reach + 1, dtype=mask.dtype)
    bell = torch.exp(-0.5 * (offsets / deviation).square())
    bell = bell / bell.sum()
    padded = F.pad(mask, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, bell[None, None, None])
    return F.conv2d(across, bell[None, None, :, None]).clamp(0, 1)


class Protected:
    """A parametrisation whose picture is mixed with the content where that is to be kept.

    Args:
        rule: From the variable to the picture before it is mixed.
        content: [1, 3, H, W], of the picture's size.
        kept: [1, 1, H, W], the content's share.
    """

    def __init__(self, rule: Parametrisation, content: Tensor, kept: Tensor) -> None:
        self._rule = rule
        self._content = kept * content
        self._free = 1 - kept

    def start(self) -> Tensor:
        """The variable of the starting picture."""
        return self._rule.start()

    def picture(self, variable: Tensor) -> Tensor:
        """The rule's picture with the content mixed in."""
        return torch.addcmul(self._content, self._free, self._rule.picture(variable))

    def pull_back(self, variable: Tensor, gradient: Tensor) -> Tensor:
        """Only the free share of the picture moves."""
        return self._rule.pull_back(variable, gradient * self._free)

    def movement(self, variable: Tensor, step: Tensor) -> float:
        """That of the rule: the first step is as long as in a picture without a protected region."""
        return self._rule.movement(variable, step)
