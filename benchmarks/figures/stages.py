"""The story of the method: which settings each stage of it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core import config
from core.config import Settings


@dataclass(frozen=True)
class Stage:
    """One stage of the story.

    Attributes:
        name: As it is called in the JSON and in files.
        title: As it is called on a page.
        preset: The preset that it is.
        changes: What differs from the preset, a nested mapping.
        told: Part of the story, or made only to tell what one of its ideas does.
    """

    name: str
    title: str
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    told: bool = True

    def settings(self, levels: int, seed: int, network: str, optimizer: Mapping[str, Any]) -> Settings:
        """The settings of a picture of this stage; `optimizer` holds what shortens a run, empty for the whole."""
        changes = {"levels": levels, "seed": seed, "network": network, "optimizer": dict(optimizer)}
        return config.load(self.preset, changes).changed(self.changes)

    @property
    def has_noise(self) -> bool:
        """Whether the seed matters."""
        return config.load(self.preset).changed(self.changes).start == "content+noise"


STAGES = (
    Stage("classical", "Classical", "classical"),
    Stage("pyramid", "Pyramid loss, no noise", "final", {"start": "content"}),
    Stage("pixel-noise", "Pixel noise", "pixel-noise"),
    Stage("spots-16", "16 spots", "spots-16"),
    Stage("spots-128", "128 spots", "spots-128"),
    Stage("style-noise", "Style noise", "style-noise"),
    Stage("final", "Final", "final"),
    Stage("no-gradient-weight", "Final, noise on edges too", "final", {"noise": {"gradient_weight": 0.0}}, told=False),
)
TOLD = tuple(stage for stage in STAGES if stage.told)
NOISY = tuple(stage.name for stage in TOLD if stage.has_noise)


def stage(name: str) -> Stage:
    """The stage of this name."""
    return next(stage for stage in STAGES if stage.name == name)
