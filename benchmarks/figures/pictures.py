"""Makes the pictures that are measured, and finds them again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.figures.stages import Stage
from core import images, samples, weights
from core.config import Settings
from core.transfer import Step, Transfer

SAMPLE = "sample:"


@dataclass(frozen=True)
class Pair:
    """A content and a style: each the path of a file, or `sample:NAME`."""

    content: str
    style: str

    @property
    def name(self) -> str:
        """Both in a word, for files and tables."""
        return f"{_plain(self.content)}-{_plain(self.style)}"

    @property
    def title(self) -> str:
        """Both for people."""
        return f"{_plain(self.content)} + {_plain(self.style)}"

    @property
    def publishable(self) -> bool:
        """Whether both pictures are the project's own samples."""
        return self.content.startswith(SAMPLE) and self.style.startswith(SAMPLE)


def _plain(source: str) -> str:
    return source.removeprefix(SAMPLE) if source.startswith(SAMPLE) else Path(source).stem


def read(source: str) -> Tensor:
    """A picture [1, 3, H, W] by its path, or a sample by `sample:NAME`.

    Raises:
        UserError: There is no such picture.
    """
    if source.startswith(SAMPLE):
        return samples.load(source.removeprefix(SAMPLE))
    return images.read(source).pixels


@dataclass(frozen=True)
class Kept:
    """The folder of pictures, and how they are made.

    A picture is kept under the hash of all that it follows from, but for the program's own code: after a change of
    that, begin with an empty folder.

    Attributes:
        folder: Where pictures are kept.
        network: Which network stylises.
        weights_file: Its weights, where they don't lie in their own place.
        optimizer: Changes to every stage's optimiser, such as fewer iterations.
    """

    folder: Path
    network: str = "compact"
    weights_file: Path | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def network_hash(self) -> str:
        """What identifies the network's weights."""
        return weights.load(weights.choose(self.network), self.weights_file).sha256

    def settings(self, stage: Stage, levels: int, seed: int) -> Settings:
        """What a picture is made with."""
        return stage.settings(levels, seed, self.network, self.optimizer)

    def transfer(self, pair: Pair, settings: Settings) -> Transfer:
        """The run that makes it."""
        return Transfer(read(pair.content), [read(pair.style)], settings, weights_file=self.weights_file)

    def picture(self, pair: Pair, stage: Stage, levels: int, seed: int) -> Tensor:
        """A stylised picture [1, 3, H, W] as its file holds it, made now or found."""
        settings = self.settings(stage, levels, seed)
        path = self.folder / f"{pair.name}-L{levels}-{stage.name}-{seed}-{self._key(pair, settings)}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            transfer = self.transfer(pair, settings)
            images.write_bytes(path, transfer.encode(_last_step(transfer)))
        return images.read(path).pixels

    def _key(self, pair: Pair, settings: Settings) -> str:
        looks = settings.model_dump_json(exclude={"title", "description"})
        digest = hashlib.sha256(f"{self.network_hash} {looks}".encode())
        for source in (pair.content, pair.style):
            digest.update(source.encode() if source.startswith(SAMPLE) else Path(source).read_bytes())
        return digest.hexdigest()[:8]


def _last_step(transfer: Transfer) -> Step:
    step = None
    for step in transfer.steps():  # noqa: B007
        pass
    assert step is not None
    return step
