"""Statistics of features and the distances between them: small, pure, and sums over positions.

Each is a sum over the positions of a layer, so that it can be taken tile by tile and added up. Features are
[1, C, H, W], C channels at M = H·W positions.
"""

import torch
from torch import Tensor

# One partial product of a Gram matrix in 16 bit sums this many positions; the partial products are summed in float32.
_POSITIONS_PER_PRODUCT = 4096


def positions_first(features: Tensor) -> Tensor:
    """Features [1, C, H, W] as a matrix [M, C]: a view where the memory is channels-last."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def gram(features: Tensor, *, with_ones: bool = False) -> Tensor:
    """The Gram matrix Σ f fᵀ over positions, not normalised: [C, C], in float32 at least.

    Gatys et al. 2015, equation 3. With `with_ones` a feature that is 1 everywhere is appended to the others, so that
    the last row and column of the result [C + 1, C + 1] hold the channels' sums, and its corner M.
    """
    matrix = positions_first(features)
    product = _product(matrix, matrix)
    return _with_ones(product, matrix, matrix.shape[0]) if with_ones else product


def _with_ones(product: Tensor, matrix: Tensor, mass: float) -> Tensor:
    sums = matrix.sum(0, dtype=product.dtype)
    corner = product.new_tensor([[mass]])
    return torch.cat([torch.cat([product, sums[:, None]], 1), torch.cat([sums[None], corner], 1)], 0)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`leftᵀ @ right` of [M, C], accumulated in float32 at least."""
    if left.dtype in (torch.float32, torch.float64):
        return left.T @ right
    if left.is_cuda:
        return torch.mm(left.T, right, out_dtype=torch.float32)
    total = torch.zeros(left.shape[1], right.shape[1], device=left.device)
    parts = (torch.split(matrix, _POSITIONS_PER_PRODUCT) for matrix in (left, right))
    for one, other in zip(*parts, strict=True):
        total += one.T @ other
    return total


def guided_grams(features: Tensor, guides: Tensor, *, with_ones: bool = False) -> Tensor:
    """One Gram matrix for each guide, Σ w f fᵀ over positions: [R, C, C].

    Gatys et al. 2017, section 4 ("spatial control"), with w the square of their guidance channel, so that a position
    that lies half inside a region counts half.

    Args:
        features: [1, C, H, W].
        guides: The weights w [R, H, W] of the positions in each of R regions.
        with_ones: As for `gram`; the corner is then Σ w.
    """
    matrix = positions_first(features)
    found = []
    for guide in guides:
        weighted = matrix * guide.reshape(-1, 1).to(matrix)
        product = _product(matrix, weighted)
        found.append(_with_ones(product, weighted, float(guide.sum())) if with_ones else product)
    return torch.stack(found)


def guided_gram_gradient(features: Tensor, guides: Tensor, gradients: Tensor) -> Tensor:
    """The gradient with respect to `features`, given those with respect to `guided_grams` of them."""
    total = torch.zeros_like(features)
    for guide, gradient in zip(guides, gradients, strict=True):
        if bool(guide.any()):
            total += gram_gradient(features, gradient) * guide.to(features)
    return total


def gram_gradient(features: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with respect to `features` [1, C, H, W], given that with respect to their Gram matrix.

    `gradient` is [C, C], or [C + 1, C + 1] for a matrix taken `with_ones`.
    """
    channels = features.shape[1]
    symmetric = (gradient + gradient.T).to(features.dtype)
    matrix = positions_first(features)
    if gradient.shape[0] > channels:
        result = torch.addmm(symmetric[channels, :channels], matrix, symmetric[:channels, :channels])
    else:
        result = matrix @ symmetric
    return result.view(1, *features.shape[2:], channels).permute(0, 3, 1, 2)


def squared_sum(features: Tensor) -> Tensor:
    """Σ f² over channels and positions, in float32 at least.

    Of a difference of features it is twice the content loss of Gatys et al. 2015, equation 1.
    """
    wide = features if features.dtype == torch.float64 else features.float()
    return wide.square().sum()


def relative_squared_distance(value: Tensor, target: Tensor) -> Tensor:
    """‖value − target‖² / ‖target‖²: 0 when they agree, about 1 for a value that knows nothing of the target."""
    return (value - target).square().sum() / target.square().sum().clamp_min(torch.finfo(target.dtype).tiny)


def total_variation(picture: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of a picture [1, 3, H, W], rows and columns summed.

    The smoothness term of Mahendran & Vedaldi 2015 with β = 2, as a mean so that its weight holds at every size.
    """
    down = (picture[..., 1:, :] - picture[..., :-1, :]).square().mean()
    right = (picture[..., :, 1:] - picture[..., :, :-1]).square().mean()
    return down + right
