"""What the optimiser moves: a variable from which the picture follows, always inside [0, 1].

Without bounds the written picture gets worse while the loss of the float picture falls, since clipping undoes what the
optimiser did. So the variable z [1, 3, H, W] is mapped to the picture by one of three rules with the same methods:
`picture` (z → picture), `pull_back` (gradient at the picture → gradient at z) and `movement` (how far a small step of z
moves the picture).
"""

from typing import Protocol

import torch
from torch import Tensor

from core.config import OptimizerSettings

# A start at exactly 0 or 1 would be an infinitely far point of the sigmoid, and one close to it could hardly leave.
_MARGIN = 0.01


def packed(picture: Tensor) -> Tensor:
    """A picture in [0, 1] in 16 bit, for what is held beside an optimisation; rounded as no eye can tell."""
    return (picture * 65535 - 32768).round().to(torch.int16)


def unpacked(picture: Tensor) -> Tensor:
    """A packed picture as float32 in [0, 1]; any other as it is."""
    return (picture.float() + 32768) / 65535 if picture.dtype == torch.int16 else picture


class Parametrisation(Protocol):
    """Maps a free variable to a picture; both are [1, 3, H, W]."""

    def start(self) -> Tensor:
        """The variable of the starting picture."""

    def picture(self, variable: Tensor) -> Tensor:
        """The picture, sRGB; in [0, 1] unless the rule has no bounds."""

    def pull_back(self, variable: Tensor, gradient: Tensor) -> Tensor:
        """From the gradient with respect to the picture to that with respect to the variable."""

    def movement(self, variable: Tensor, step: Tensor) -> float:
        """Root mean square by which the picture moves per unit of `step`, to first order."""


class Unbounded:
    """The variable is the picture."""

    def __init__(self, picture: Tensor) -> None:
        self._start = picture

    def start(self) -> Tensor:
        """The starting picture itself."""
        return self._start.clone()

    def picture(self, variable: Tensor) -> Tensor:
        """The variable itself."""
        return variable

    def pull_back(self, variable: Tensor, gradient: Tensor) -> Tensor:
        """The gradient itself."""
        return gradient

    def movement(self, variable: Tensor, step: Tensor) -> float:
        """Root mean square of the step."""
        return _rms(step)


class Clamped(Unbounded):
    """The picture is the variable, clamped to [0, 1]; outside, only gradients that lead back inside count."""

    def picture(self, variable: Tensor) -> Tensor:
        """The clamped variable."""
        return variable.clamp(0, 1)

    def pull_back(self, variable: Tensor, gradient: Tensor) -> Tensor:
        """The gradient, without what would lead further out."""
        outwards = ((variable < 0) & (gradient > 0)) | ((variable > 1) & (gradient < 0))
        return gradient.masked_fill(outwards, 0)


class Sigmoid:
    """picture = sigmoid(logit(start) + P z), with P a frequency weighting that preconditions the problem.

    P multiplies the spectrum by (f + 2/n)^(−p), f in cycles per pixel and n the shorter side: with p > 0 coarse
    structure moves first, which is where the loss has the most to win. P is symmetric, so it is its own adjoint.

    Args:
        picture: The start, [1, 3, H, W] in [0, 1] or packed. It is held as it is: large pictures better in 16 bit.
        exponent: p.
    """

    def __init__(self, picture: Tensor, exponent: float) -> None:
        self._start = picture
        self._size = (picture.shape[2], picture.shape[3])
        self._spectrum = _frequency_weights(self._size, exponent, unpacked(picture[:, :, :1])) if exponent else None
        self._latest: tuple[Tensor, Tensor] | None = None

    def start(self) -> Tensor:
        """Zero: the starting picture is the sigmoid's offset."""
        return torch.zeros_like(self._start, dtype=unpacked(self._start[:, :, :1]).dtype)

    def picture(self, variable: Tensor) -> Tensor:
        """The sigmoid of the preconditioned variable; the latest is kept, since its slope is asked for next."""
        if self._latest is None or self._latest[0] is not variable:
            self._latest = None
            offset = torch.logit(unpacked(self._start).clamp(_MARGIN, 1 - _MARGIN))
            moved = offset + self._precondition(variable)
            self._latest = (variable, moved.sigmoid_())
        return self._latest[1]

    def pull_back(self, variable: Tensor, gradient: Tensor) -> Tensor:
        """Through the sigmoid's slope, then through P."""
        return self._precondition(self._slope(variable).mul_(gradient))

    def movement(self, variable: Tensor, step: Tensor) -> float:
        """Root mean square of the slope times P step."""
        return _rms(self._slope(variable) * self._precondition(step))

    def _slope(self, variable: Tensor) -> Tensor:
        picture = self.picture(variable)
        return torch.addcmul(picture, picture, picture, value=-1)

    def _precondition(self, plane: Tensor) -> Tensor:
        """P times a plane [1, 3, H, W], one channel after the other: spectra of large pictures are large."""
        if self._spectrum is None:
            return plane
        filtered = torch.empty_like(plane)
        for channel in range(plane.shape[1]):
            spectrum = torch.fft.rfft2(plane[0, channel]) * self._spectrum
            filtered[0, channel] = torch.fft.irfft2(spectrum, s=self._size)
        return filtered


def _frequency_weights(size: tuple[int, int], exponent: float, like: Tensor) -> Tensor:
    """(f + 2/n)^(−exponent) over the half spectrum [H, W // 2 + 1] of a real picture."""
    down = torch.fft.fftfreq(size[0], device=like.device, dtype=like.dtype)
    right = torch.fft.rfftfreq(size[1], device=like.device, dtype=like.dtype)
    frequency = torch.hypot(down[:, None], right[None])
    return (frequency + 2 / min(size)) ** -exponent


def parametrise(settings: OptimizerSettings, picture: Tensor) -> Parametrisation:
    """The rule that the settings name, starting at `picture` [1, 3, H, W], which may be packed."""
    if settings.parametrisation == "sigmoid":
        return Sigmoid(picture, settings.preconditioning)
    picture = unpacked(picture)
    return Clamped(picture) if settings.parametrisation == "clamp" else Unbounded(picture)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
