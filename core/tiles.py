"""The exact loss and gradient of a picture, in pieces that fit in memory and in the processor's caches.

The network is walked block by block, and each block in *bands*: strips of rows over the full width, contiguous in
channels-last memory. Only the inputs of the blocks (the pooled features, about 60 bytes a pixel in 16 bit) are held
for the whole picture; what lies inside a block is computed for one band, used and dropped.

1. Forward: every band adds its share to the Gram matrices and to the content distance, and writes its rows of the
   next block's input.
2. The style loss is a function of the summed Gram matrices, so its derivative with respect to them is known now.
3. Backward, from the deepest block: every band is computed again (or was kept, where memory allows) and
   back-propagated; rows that two bands read receive the sum of both gradients.

Geometry: a band is the half-open range of rows `first … last` at its block's resolution, `first` even so that pooling
windows never straddle two bands. A block of n convolutions reads n more rows on either side, fewer at the picture's
own borders, where each convolution pads as it does for the whole picture. The result is therefore that of the whole
picture, up to the order of sums.

A *part* of a picture is some of its rows. Its sums and its gradient need no more than the rows that its layers depend
on; sums of parts add up to those of the picture, and so do gradients, row by row (see `core.shards`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from core import losses
from core.features import Convolution, Network, block_of

StyleLoss = Callable[[Mapping[str, Tensor], Mapping[str, int]], Tensor]
"""From the summed Gram matrices of the style layers, and the positions summed, to a scalar; differentiable."""


@dataclass(frozen=True)
class BlockTiling:
    """How one block is computed: `rows` of its bands (even), and whether they are kept for the backward pass."""

    rows: int
    keep: bool


Tiling = tuple[BlockTiling, ...]
"""One entry per block; the last one holds for all deeper blocks."""

WHOLE: Tiling = (BlockTiling(rows=1 << 30, keep=True),)


@dataclass(frozen=True)
class Part:
    """The rows `first … last` of a picture that is `height` rows high."""

    first: int
    last: int
    height: int

    def rows(self, block: int) -> tuple[int, int]:
        """Its rows at the resolution of a block (from 0). Parts that share a picture share each block's rows."""
        return self.first >> block, self.last >> block


@dataclass(frozen=True, eq=False)
class ContentTarget:
    """What one content layer should be: its features [1, C, h, w], and the factor of Σ (f − target)².

    `metric` [C, C], where given, turns the sum into Σ (f − target)ᵀ metric (f − target). `guide`
    [1, 1, h, w] multiplies the positions' shares of the sum.
    """

    features: Tensor
    factor: float
    metric: Tensor | None = None
    guide: Tensor | None = None

    def distance(self, features: Tensor, first: int = 0) -> Tensor:
        """The distance of `features` [1, C, h', w] from the target's rows from `first` on."""
        difference = self._difference(features, first)
        if self.guide is not None:
            difference = difference * _rows(self.guide, first, first + features.shape[2]).sqrt().to(difference)
        if self.metric is None:
            return self.factor * losses.squared_sum(difference)
        return self.factor * (losses.gram(difference) * self.metric).sum()

    def gradient(self, features: Tensor, first: int = 0) -> Tensor:
        """The derivative of that distance with respect to `features`."""
        difference = self._difference(features, first)
        if self.guide is not None:
            difference = difference * _rows(self.guide, first, first + features.shape[2]).to(difference)
        if self.metric is None:
            return difference.mul_(2 * self.factor)
        return losses.gram_gradient(difference, self.factor * self.metric)

    def part(self, first: int, last: int) -> "ContentTarget":
        """The target of the rows `first … last` alone."""
        guide = None if self.guide is None else self.guide[:, :, first:last]
        return replace(self, features=self.features[:, :, first:last], guide=guide)

    def _difference(self, features: Tensor, first: int) -> Tensor:
        return features - self.features[:, :, first : first + features.shape[2]]


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of one level: a function of its Gram matrices, and content targets."""

    style_loss: StyleLoss
    style_layers: tuple[str, ...]
    style_weight: float = 1.0
    content: Mapping[str, ContentTarget] = field(default_factory=dict)
    content_weight: float = 1.0
    with_ones: bool = False
    """Whether the Gram matrices carry the row of ones (see `losses.gram`)."""
    guides: Mapping[str, Tensor] = field(default_factory=dict)
    """For every style layer, how much its positions count in each of R regions: [R, h, w] of the whole layer. The style
    loss is then given R matrices for each layer, [R, C, C]. Without any, one for the whole picture, [C, C]."""

    def gram(self, layer: str, features: Tensor, first: int) -> Tensor:
        """The share of the rows from `first` on in the layer's Gram matrix, or in those of its regions."""
        if not self.guides:
            return losses.gram(features, with_ones=self.with_ones)
        return losses.guided_grams(features, self._guide(layer, features, first), with_ones=self.with_ones)

    def gram_gradient(self, layer: str, features: Tensor, first: int, derivative: Tensor) -> Tensor:
        """From the derivative with respect to what `gram` adds to, to that with respect to the features."""
        if not self.guides:
            return losses.gram_gradient(features, derivative)
        return losses.guided_gram_gradient(features, self._guide(layer, features, first), derivative)

    def part(self, part: Part) -> "Objective":
        """The objective of a part of the picture: content and guides of its rows alone."""
        content = {layer: target.part(*part.rows(block_of(layer))) for layer, target in self.content.items()}
        guides = {layer: guide[:, slice(*part.rows(block_of(layer)))] for layer, guide in self.guides.items()}
        return replace(self, content=content, guides=guides)

    def _guide(self, layer: str, features: Tensor, first: int) -> Tensor:
        return self.guides[layer][:, first : first + features.shape[2]].to(features.device)

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that the objective looks at."""
        return tuple(dict.fromkeys((*self.style_layers, *self.content)))


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a loss is a function of: sums over positions of the layers. Those of a picture's parts add up."""

    grams: Mapping[str, Tensor]
    positions: Mapping[str, int]
    content: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Both losses of one level, unweighted, and the gradient [1, 3, H, W] of their weighted sum."""

    style: float
    content: float
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class _Response:
    """What one convolution of a band gave, from row `top` on: after its rectifier and, where a loss looks, before it.

    `padded` says whether its top and its bottom were borders of the picture.
    """

    convolution: Convolution
    top: int
    padded: tuple[bool, bool]
    before: Tensor | None
    after: Tensor


@dataclass(eq=False)
class _Band:
    """One computed band: the rows of a block from `first` on.

    `read` are the rows that it read of what is held of the block's input. `counted` are those whose positions count;
    in the part's own rows they begin with `origin`. `output` is what it gives to the next block, in a graph that begins
    at `pooled`. Going back takes responses and output away.
    """

    first: int
    read: tuple[int, int]
    counted: tuple[int, int]
    origin: int
    responses: list[_Response]
    taps: Collection[str]
    pooled: Tensor | None = None
    output: Tensor | None = None

    def tapped(self, response: _Response, kind: str) -> Iterator[tuple[str, Tensor]]:
        """The rows that count of one of its layers, "relu" or "conv", where a loss looks there."""
        layer = f"{kind}{response.convolution.name}"
        values = response.after if kind == "relu" else response.before
        first, last = self.counted
        if layer in self.taps and first < last and values is not None:
            yield layer, _rows(values, first - response.top, last - response.top)

    def layers(self) -> Iterator[tuple[str, Tensor]]:
        """The same of all its layers."""
        for response in self.responses:
            for kind in ("conv", "relu"):
                yield from self.tapped(response, kind)


LayerGradient = Callable[[str, Tensor, int], Tensor]
"""From a layer, its features and the row that they begin with to the loss's gradient with respect to them."""


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """Splits `height` rows into bands of `rows` (even); a remainder under half a band joins the last one."""
    first = 0
    while first < height:
        last = first + rows
        if last + rows // 2 >= height:
            last = height
        yield first, last
        first = last


def loss_and_gradient(network: Network, picture: Tensor, objective: Objective, tiling: Tiling = WHOLE) -> Evaluation:
    """Evaluates the objective of one level at `picture` [1, 3, H, W], sRGB in [0, 1], float32."""
    passes = Passes(network, picture, objective, tiling)
    statistics = passes.statistics()
    style, derivatives = style_derivatives(objective, statistics)
    return Evaluation(style, statistics.content, passes.gradient(derivatives, objective.content_weight))


class Passes:
    """The two passes of one evaluation; what comes between them may be decided elsewhere.

    Args:
        network: Where features come from.
        picture: [1, 3, H, W], sRGB in [0, 1], float32; of a part, the rows that it needs (`rows_needed`).
        objective: Of the level, or of the part; neither its style loss nor its weights are asked.
        tiling: How it is computed.
        part: The rows whose positions count; none: all of them.
    """

    def __init__(
        self, network: Network, picture: Tensor, objective: Objective, tiling: Tiling = WHOLE, part: Part | None = None
    ) -> None:
        self._objective = objective
        self._leaf = picture.detach().requires_grad_()
        with torch.enable_grad():
            self._prepared = network.prepare(self._leaf)
        self._walk = _Walk(network, objective.layers, tiling, part or _all_of(picture))

    def statistics(self) -> Statistics:
        """Forward: the sums over the positions that count."""
        objective = self._objective
        grams: dict[str, Tensor] = {}
        positions: dict[str, int] = {}
        content = torch.zeros((), dtype=torch.float64)

        def sum_up(band: _Band) -> None:
            for layer, features in band.layers():
                if layer in objective.style_layers:
                    _accumulate(grams, layer, objective.gram(layer, features, band.origin))
                    _accumulate(positions, layer, features.shape[2] * features.shape[3])
                if layer in objective.content:
                    content.add_(objective.content[layer].distance(features, band.origin).cpu())

        self._walk.forward(self._prepared.detach(), sum_up)
        return Statistics(grams, positions, float(content))

    def gradient(self, derivatives: Mapping[str, Tensor], content_weight: float) -> Tensor:
        """Back, once: the gradient of the weighted losses with respect to the picture, or to the rows given of it.

        Args:
            derivatives: Of the weighted style loss with respect to the Gram matrices of the whole picture.
            content_weight: Of the content's distance.
        """
        objective = self._objective

        def layer_gradient(layer: str, features: Tensor, first: int) -> Tensor:
            parts = []
            if layer in derivatives:
                parts.append(objective.gram_gradient(layer, features, first, derivatives[layer]))
            if layer in objective.content:
                parts.append(objective.content[layer].gradient(features, first).mul_(content_weight))
            return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])

        (gradient,) = torch.autograd.grad(self._prepared, self._leaf, self._walk.backward(layer_gradient))
        return gradient


def style_derivatives(objective: Objective, statistics: Statistics) -> tuple[float, dict[str, Tensor]]:
    """The style loss, and the derivative of its weighted value with respect to each summed Gram matrix."""
    leaves = {layer: gram.detach().requires_grad_() for layer, gram in statistics.grams.items()}
    with torch.enable_grad():
        value = objective.style_loss(leaves, statistics.positions)
    derivatives = torch.autograd.grad(objective.style_weight * value, list(leaves.values()))
    return float(value.detach()), dict(zip(leaves, derivatives, strict=True))


def rows_needed(network: Network, layers: Collection[str], part: Part) -> tuple[int, int]:
    """The rows of the picture that the `layers` of a part of it depend on."""
    return _reaches(network.blocks(layers), part)[0].inputs


def grams(
    network: Network, picture: Tensor, layers: Collection[str], *, with_ones: bool = False, tiling: Tiling = WHOLE
) -> dict[str, Tensor]:
    """The summed Gram matrices of `layers` for a picture [1, 3, H, W]."""
    found: dict[str, Tensor] = {}

    def sum_up(band: _Band) -> None:
        for layer, features in band.layers():
            _accumulate(found, layer, losses.gram(features, with_ones=with_ones))

    with torch.no_grad():
        _Walk(network, layers, tiling, _all_of(picture), keep_nothing=True).forward(network.prepare(picture), sum_up)
    return found


def activations(
    network: Network, picture: Tensor, layers: Collection[str], tiling: Tiling = WHOLE
) -> dict[str, Tensor]:
    """The activations [1, C, h, w] of `layers` for the whole picture [1, 3, H, W]."""
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def collect(band: _Band) -> None:
        for layer, features in band.layers():
            found[layer].append(features.clone(memory_format=torch.channels_last))

    with torch.no_grad():
        _Walk(network, layers, tiling, _all_of(picture), keep_nothing=True).forward(network.prepare(picture), collect)
    return {layer: torch.cat(parts, 2) for layer, parts in found.items()}


def _rows(features: Tensor, first: int, last: int) -> Tensor:
    """The rows `first … last`; all of them without a copy in the backward pass."""
    return features if last - first == features.shape[2] else features[:, :, first:last]


_Value = TypeVar("_Value", Tensor, int)


def _accumulate(sums: dict[str, _Value], layer: str, value: _Value) -> None:
    sums[layer] = sums[layer] + value if layer in sums else value


def _all_of(picture: Tensor) -> Part:
    return Part(0, picture.shape[2], picture.shape[2])


@dataclass(frozen=True)
class _Reach:
    """What a part of a picture needs of one block, as ranges of rows at its resolution.

    Attributes:
        height: Of the whole picture.
        inputs: What is read, and there.
        outputs: What is computed: what counts, and what the next block reads.
        counted: Whose positions count.
    """

    height: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    counted: tuple[int, int]


def _reaches(blocks: Sequence[Sequence[Convolution]], part: Part) -> list[_Reach]:
    """From the deepest block, which computes what counts, up to the picture: a row more for every convolution."""
    reaches: list[_Reach] = []
    for number in reversed(range(len(blocks))):
        height, counted, reach = part.height >> number, part.rows(number), len(blocks[number])
        first, last = counted
        if reaches:
            read = reaches[0].inputs
            first, last = min(first, 2 * read[0]), max(last, 2 * read[1])
        inputs = (max(0, first - reach), min(height, last + reach))
        reaches.insert(0, _Reach(height, inputs, (first, last), counted))
    return reaches


class _Walk:
    """One pass forward over the network and, for the same picture, one back."""

    def __init__(
        self, network: Network, layers: Collection[str], tiling: Tiling, part: Part, *, keep_nothing: bool = False
    ) -> None:
        network.check(layers)
        self.network = network
        self.blocks = network.blocks(layers)
        self.taps = [{layer for layer in layers if block_of(layer) == number} for number in range(len(self.blocks))]
        self.tiling = tiling
        self.reaches = _reaches(self.blocks, part)
        self.keep_nothing = keep_nothing
        self.inputs: list[Tensor] = []
        self.kept: list[list[_Band]] = []

    def _tiling(self, number: int) -> BlockTiling:
        return self.tiling[min(number, len(self.tiling) - 1)]

    def _bands(self, number: int) -> Iterator[tuple[int, int]]:
        start, end = self.reaches[number].outputs  # the start is even, as what is pooled has to be
        for first, last in bands(end - start, self._tiling(number).rows):
            yield start + first, start + last

    @torch.no_grad()
    def forward(self, prepared: Tensor, visit: Callable[[_Band], None]) -> None:
        """Computes every band of every block, in order, and shows it; but for those that are kept, one at a time."""
        self.inputs.append(prepared)
        del prepared
        for number in range(len(self.blocks)):
            keep = self._tiling(number).keep and not self.keep_nothing
            self.kept.append([])
            for first, last in self._bands(number):
                band = self._compute(number, first, last, differentiable=keep)
                visit(band)
                if band.output is not None:
                    self._hand_on(number, band.first, band.output.detach())
                if keep:
                    self.kept[number].append(band)
                del band
            if self.keep_nothing:
                self.inputs[number] = self.inputs[number].new_empty(0)

    def _hand_on(self, number: int, first: int, output: Tensor) -> None:
        """Makes what a band gave, whose rows begin with `first` of its block, a part of the next block's input."""
        start, end = self.reaches[number].outputs
        rows, row = (end - start) // 2, (first - start) // 2
        if output.shape[2] == rows:
            self.inputs.append(output)
            return
        if not row:
            size = (*output.shape[:2], rows, output.shape[3])
            self.inputs.append(
                torch.empty(size, dtype=output.dtype, device=output.device, memory_format=torch.channels_last)
            )
        self.inputs[number + 1][:, :, row : row + output.shape[2]] = output

    def _compute(self, number: int, first: int, last: int, *, differentiable: bool) -> _Band:
        """Runs the block over the rows that the band `first … last` of its output depends on."""
        block, reach = self.blocks[number], self.reaches[number]
        height, origin = reach.height, reach.inputs[0]
        top, bottom = max(0, first - len(block)), min(height, last + len(block))
        read = top - origin, bottom - origin
        features = self.inputs[number][:, :, read[0] : read[1]]
        responses: list[_Response] = []
        for convolution in block:
            padded = top == 0, bottom == height
            top, bottom = top + (top > 0), bottom - (bottom < height)
            responses.append(self._respond(features, convolution, number, top, padded))
            features = responses[-1].after
        counted = max(first, reach.counted[0]), min(last, reach.counted[1])
        pooled, output = None, None
        if number + 1 < len(self.blocks):
            pooled = _rows(features, first - top, last - top).detach().requires_grad_(differentiable)
            with torch.set_grad_enabled(differentiable):
                output = self.network.pool(pooled)
        origin = counted[0] - reach.counted[0]
        return _Band(first, read, counted, origin, responses, self.taps[number], pooled, output)

    def _respond(
        self, features: Tensor, convolution: Convolution, number: int, top: int, padded: tuple[bool, bool]
    ) -> _Response:
        looked_at = f"conv{convolution.name}" in self.taps[number]
        response = self.network.respond(features, convolution, top=padded[0], bottom=padded[1], rectify=not looked_at)
        before, after = (response, response.relu()) if looked_at else (None, response)
        return _Response(convolution, top, padded, before, after)

    @torch.no_grad()
    def backward(self, layer_gradient: LayerGradient) -> Tensor:
        """The gradient with respect to the prepared picture, given that with respect to the layers."""
        downstream: Tensor | None = None
        for number in reversed(range(len(self.blocks))):
            # The prepared picture is its owner's, who may still hold it.
            summed = _summed_in_place if number and not self.kept[number] else _summed
            downstream = summed(self._pieces(number, layer_gradient, downstream), self.inputs[number])
            self.kept.pop()
            self.inputs.pop()
        assert downstream is not None
        return downstream

    def _pieces(self, number: int, layer_gradient: LayerGradient, downstream: Tensor | None) -> "_Pieces":
        for band in self._bands_again(number):
            yield band.read, self._back_propagate(number, band, layer_gradient, downstream)

    def _bands_again(self, number: int) -> Iterator[_Band]:
        """The block's bands: those that were kept, each dropped after use, or computed anew."""
        if self.kept[number]:
            while self.kept[number]:
                yield self.kept[number].pop()
            return
        for first, last in self._bands(number):
            yield self._compute(number, first, last, differentiable=True)

    def _back_propagate(
        self, number: int, band: _Band, layer_gradient: LayerGradient, downstream: Tensor | None
    ) -> Tensor | None:
        """The gradient with respect to the rows that the band read; None where nothing of it counts."""
        gradient = None if downstream is None else self._unpooled(number, band, downstream)
        while band.responses:
            response = band.responses.pop()
            gradient = self._tapped(band, response, "relu", layer_gradient, gradient)
            if gradient is not None:
                torch.ops.aten.threshold_backward.grad_input(gradient, response.after, 0, grad_input=gradient)
            gradient = self._tapped(band, response, "conv", layer_gradient, gradient)
            if gradient is not None:
                top, bottom = response.padded
                gradient = self.network.pull_back(gradient, response.convolution, top=top, bottom=bottom)
        return gradient

    def _tapped(
        self, band: _Band, response: _Response, kind: str, layer_gradient: LayerGradient, gradient: Tensor | None
    ) -> Tensor | None:
        """The gradient with respect to a response, once the losses that look there have added theirs."""
        for layer, features in band.tapped(response, kind):
            piece = layer_gradient(layer, features, band.origin)
            gradient = _add_rows(gradient, piece, band.counted[0] - response.top, response.after)
        return gradient

    def _unpooled(self, number: int, band: _Band, downstream: Tensor) -> Tensor:
        """From the gradient with respect to the next block's input to that with respect to the last response."""
        assert band.output is not None and band.pooled is not None
        row = band.first // 2 - self.reaches[number + 1].inputs[0]
        seed = downstream[:, :, row : row + band.output.shape[2]]
        (gradient,) = torch.autograd.grad(band.output, band.pooled, seed)
        band.output = band.pooled = None  # as large as a response, and not needed again
        last = band.responses[-1]
        return _add_rows(None, gradient, band.first - last.top, last.after)


_Pieces = Iterator[tuple[tuple[int, int], Tensor | None]]
"""Of a block's bands: the rows that each read of the block's input, and the gradient with respect to them."""


def _summed(pieces: _Pieces, inputs: Tensor) -> Tensor | None:
    """The sum of all pieces, in the shape of `inputs`; None where nothing counts."""
    total: Tensor | None = None
    for (first, last), piece in pieces:
        if piece is None:
            continue
        if total is None and piece.shape == inputs.shape:
            total = piece
        else:
            total = torch.zeros_like(inputs) if total is None else total
            total[:, :, first:last] += piece
    return total


def _summed_in_place(pieces: _Pieces, inputs: Tensor) -> Tensor | None:
    """The same, written over `inputs`, for bands that are computed from there one after another, top to bottom.

    When a band's piece is here, the rows above it were read for the last time, and nothing is added to them any more.
    """
    held, start, counts = inputs[:, :, :0], 0, False
    for (first, last), found in pieces:
        counts |= found is not None
        piece = torch.zeros_like(inputs[:, :, first:last]) if found is None else found
        inputs[:, :, start:first] = held[:, :, : first - start]
        rest = held[:, :, first - start :]
        piece[:, :, : rest.shape[2]] += rest
        held, start = piece, first
        del rest, piece, found  # all but one before the next band is computed
    inputs[:, :, start:] = held
    return inputs if counts else None


def _add_rows(total: Tensor | None, rows: Tensor, first: int, like: Tensor) -> Tensor:
    """Adds `rows` to those of the total from `first` on; a total that is None is zero, and of the shape of `like`."""
    if total is None and rows.shape == like.shape:
        return rows
    total = torch.zeros_like(like) if total is None else total
    total[:, :, first : first + rows.shape[2]] += rows
    return total
