"""Scale coverage: how closely the style's statistics are matched on every level, through a network's eyes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from core import config, images
from core.transfer import Transfer


class Coverage:
    """The distance between the Gram matrices of picture and style, on every level of the pyramid.

    Definition: on each level, ‖G − A‖² / ‖A‖² of the Gram matrices per position of picture and style, averaged over the
    network's style layers: the style term of the product's loss, in float32.
    Reason: it is what "right at every scale" means. The network that the picture was optimised with tells how well it
    was optimised; another one, whether that was worth it.
    Unit: none (relative to the style). Range: 0 (the same statistics) up; about 1 for a picture that knows nothing of
    the style.

    Args:
        network: The judge's name.
        weights_file: Its weights, where they don't lie in their own place.
        content: [1, 3, H, W]; gives the size.
        style: [1, 3, H, W].
        levels: The finest level L.
    """

    def __init__(
        self, network: str, weights_file: Path | None, content: torch.Tensor, style: torch.Tensor, levels: int
    ) -> None:
        loss = {"content_weight": 0.0}
        changes = {"network": network, "levels": levels, "precision": "float32", "loss": loss}
        self._run = Transfer(content, [style], config.load(changes=changes), device="cpu", weights_file=weights_file)

    def measure(self, picture: torch.Tensor) -> list[float]:
        """The figure on each level, from level 0 up, of a picture of any size."""
        fitting = images.resize(picture, self._run.size).clamp(0, 1)
        return [term.style for term in self._run.pyramid.evaluate(fitting).levels]

    @property
    def layers(self) -> Sequence[str]:
        """The style layers that are looked at."""
        return self._run.pyramid.style_layers

    @property
    def network(self) -> dict[str, str]:
        """The judge's name and what identifies its weights."""
        return {"name": self._run.network.name, "sha256": self._run.network.sha256}
