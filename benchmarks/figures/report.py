"""Measures the pictures of the story, and says whether the expected order holds and how firmly."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures.coverage import Coverage
from benchmarks.figures.metrics import Array, Baldness, Edges, array_of, at_level, centre_against_background
from benchmarks.figures.pictures import Kept, Pair, read
from benchmarks.figures.stages import NOISY, Stage
from core import __version__

BALDNESS: Mapping[str, Baldness] = {
    "as defined": Baldness(),
    "half the fraction": Baldness(fraction=0.125),
    "twice the fraction": Baldness(fraction=0.5),
    "half the gradient that is flat": Baldness(flat=0.01),
    "twice the gradient that is flat": Baldness(flat=0.04),
    "bands half as wide": Baldness(stretch=0.5),
    "bands twice as wide": Baldness(stretch=2.0),
}
EDGES: Mapping[str, Edges] = {
    "as defined": Edges(),
    "half the step": Edges(step=0.125),
    "twice the step": Edges(step=0.5),
    "half the blur": Edges(deviation=0.5),
    "twice the blur": Edges(deviation=2.0),
    "half the reach": Edges(reach=4.0),
    "twice the reach": Edges(reach=16.0),
    "magnitude in place of energy": Edges(power=1.0),
}
DEFINED = "as defined"


@dataclass(frozen=True)
class Judge:
    """A network that the pictures were not optimised with."""

    network: str
    weights_file: Path


@dataclass(frozen=True)
class Section:
    """Pictures of one L: which seeds."""

    levels: int
    seeds: int


@dataclass(frozen=True)
class Figures:
    """What was measured of one picture; lists go from level 0 up."""

    seed: int
    baldness: Mapping[str, float]
    baldness_by_level: list[float]
    edges: Mapping[str, float]
    moved: float
    rang: float
    centre_ratio: float
    style: list[float]
    judged: list[float] = field(default_factory=list)


class Bench:
    """Measures pictures of one pair at one L.

    Args:
        kept: Makes the pictures.
        pair: Content and style.
        levels: L.
        judge: A further network for the scale coverage.
    """

    def __init__(self, kept: Kept, pair: Pair, levels: int, judge: Judge | None) -> None:
        self.kept, self.pair, self.levels = kept, pair, levels
        content, style = read(pair.content), read(pair.style)
        self.content = at_level(array_of(content), levels)
        self._style = array_of(style)
        self._references = {name: rule.reference(self.content, self._style, levels) for name, rule in BALDNESS.items()}
        self._coverage = Coverage(kept.network, kept.weights_file, content, style, levels)
        self._judge = Coverage(judge.network, judge.weights_file, content, style, levels) if judge else None

    def figures(self, picture: torch.Tensor, seed: int = 0) -> Figures:
        """Everything that is measured of a picture [1, 3, H, W]."""
        array = array_of(picture)
        edges = {name: rule.measure(array, self.content) for name, rule in EDGES.items()}
        return Figures(
            seed=seed,
            baldness={name: rule.measure(array, self._references[name]) for name, rule in BALDNESS.items()},
            baldness_by_level=BALDNESS[DEFINED].by_level(array, self._references[DEFINED]),
            edges={name: found.total for name, found in edges.items()},
            moved=edges[DEFINED].moved,
            rang=edges[DEFINED].rang,
            centre_ratio=centre_against_background(array),
            style=self._coverage.measure(picture),
            judged=self._judge.measure(picture) if self._judge else [],
        )

    def stage(self, stage: Stage, seeds: int) -> list[Figures]:
        """The figures of a stage: one entry per seed, but one alone where there is no noise or no story to tell."""
        numbers = range(seeds if stage.has_noise and stage.told else 1)
        return [self.figures(self.kept.picture(self.pair, stage, self.levels, seed), seed) for seed in numbers]

    def facts(self) -> dict[str, Any]:
        """What the figures of the pair have to be read against."""
        reference = self._references[DEFINED]
        return {
            "flat_share": _rounded(float(reference.flat.mean())),
            "edge_points": int(EDGES[DEFINED].points(self.content)[0].shape[1]),
            "style_own_baldness": _rounded(_own_baldness(self._style, self.levels)),
            "content_centre_ratio": _rounded(centre_against_background(self.content)),
            "content_style_distance": [_rounded(value) for value in self._coverage.measure(_picture(self.content))],
        }

    @property
    def judge(self) -> dict[str, Any] | None:
        """The further network, and the layers that it looks at."""
        if self._judge is None:
            return None
        return {**self._judge.network, "layers": list(self._judge.layers)}


def _picture(array: Array) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].float()


def _own_baldness(style: Array, levels: int) -> float:
    """The share of the style itself that counts as bald: a picture can't be asked for less."""
    rule = BALDNESS[DEFINED]
    shares = [
        float((energy < rule.fraction * median).mean())
        for level, medians in enumerate(rule.reference(style, style, levels).medians)
        for energy, median in zip(rule.energies(at_level(style, level)), medians, strict=True)
    ]
    return statistics.mean(shares)


# ── The expected order ───────────────────────────────────────────────────────────────────────────────────────────────

ByStage = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True)
class Expectation:
    """One inequality of the expected order: `factor` times the one stage's figure is below the other's.

    Attributes:
        name: As a sentence without its full stop.
        stage: The stage that should have less.
        other: The stage that should have more.
        factor: How many times more.
        figure: "baldness" or "edges".
    """

    name: str
    stage: str
    other: str
    figure: str
    factor: float = 1.0

    def values(self, found: ByStage, variant: str) -> tuple[list[float], list[float]]:
        """The figures of both stages, seed by seed."""
        lists = [[getattr(each, self.figure)[variant] for each in found[name]] for name in (self.stage, self.other)]
        return lists[0], lists[1]

    def holds(self, found: ByStage, variant: str = DEFINED) -> bool | None:
        """Whether the means over the seeds are in order; None where the content gives nothing to measure."""
        less, more = map(statistics.mean, self.values(found, variant))
        return None if math.isnan(less + more) else self.factor * less < more

    def seeds_that_hold(self, found: ByStage) -> tuple[int, int]:
        """How many seeds are in order, of how many; a stage without noise stands for all seeds."""
        less, more = self.values(found, DEFINED)
        more = more * len(less) if len(more) == 1 else list(more)
        return sum(self.factor * a < b for a, b in zip(less, more, strict=True)), len(less)


EXPECTATIONS = (
    *(Expectation(f"{stage} is less bald than classical", stage, "classical", "baldness") for stage in NOISY),
    Expectation("final is less than a third as bald as classical", "final", "classical", "baldness", 3.0),
    Expectation("edges of final are less distorted than those of pixel noise", "final", "pixel-noise", "edges"),
)


def order(found: ByStage) -> list[dict[str, Any]]:
    """Every expectation of one pair: whether it holds by the means, and for how many seeds."""
    verdicts = []
    for expectation in EXPECTATIONS:
        if expectation.stage in found and expectation.other in found:
            holding, seeds = expectation.seeds_that_hold(found)
            verdicts.append(
                {"expected": expectation.name, "holds": expectation.holds(found), "seeds": f"{holding} of {seeds}"}
            )
    return verdicts


def robustness(pairs: Iterable[ByStage]) -> dict[str, dict[str, str]]:
    """For every variant of the definitions, for how many pairs each expectation holds, of those that show it."""
    known = list(pairs)
    table: dict[str, dict[str, str]] = {}
    for figure, variants in (("baldness", BALDNESS), ("edges", EDGES)):
        for variant in variants:
            table[f"{figure}, {variant}"] = {
                expectation.name: _count([expectation.holds(found, variant) for found in known])
                for expectation in EXPECTATIONS
                if expectation.figure == figure
            }
    return table


def _count(verdicts: Sequence[bool | None]) -> str:
    known = [verdict for verdict in verdicts if verdict is not None]
    return f"{sum(known)} of {len(known)}"


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def summary(figures: Sequence[Figures]) -> dict[str, Any]:
    """One stage of one pair: means over the seeds, and the spread of the two main figures."""
    return {
        "baldness": _spread([each.baldness[DEFINED] for each in figures]),
        "baldness_by_level": _means([each.baldness_by_level for each in figures]),
        "edge_distortion": _spread([each.edges[DEFINED] for each in figures]),
        "edges_moved": _rounded(statistics.mean(each.moved for each in figures)),
        "edges_rang": _rounded(statistics.mean(each.rang for each in figures)),
        "style_distance": _means([each.style for each in figures]),
        "style_distance_judged": _means([each.judged for each in figures]),
        "centre_ratio": _spread([each.centre_ratio for each in figures]),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": _rounded(statistics.mean(values)),
        "least": _rounded(min(values)),
        "most": _rounded(max(values)),
        "seeds": [_rounded(value) for value in values],
    }


def _means(lists: Sequence[Sequence[float]]) -> list[float | None]:
    return [_rounded(statistics.mean(column)) for column in zip(*lists, strict=True)]


def _rounded(value: float) -> float | None:
    """Four digits that count; JSON knows no NaN."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def measure(
    kept: Kept,
    pairs: Sequence[Pair],
    stages: Sequence[Stage],
    section: Section,
    judge: Judge | None,
    said: Callable[[str], None],
) -> dict[str, Any]:
    """Everything of one L, as it goes into the JSON; `said` hears what is being done."""
    found: list[ByStage] = []
    entries = []
    seen = None
    for pair in pairs:
        bench = Bench(kept, pair, section.levels, judge)
        by_stage: dict[str, list[Figures]] = {}
        for stage in stages:
            said(f"L = {section.levels}, {pair.title}, {stage.title}")
            by_stage[stage.name] = bench.stage(stage, section.seeds)
        found.append(by_stage)
        seen = bench.judge
        told = {"content": Path(pair.content).name, "style": Path(pair.style).name, **bench.facts()}
        numbers = {name: summary(figures) for name, figures in by_stage.items()}
        entries.append({**told, "stages": numbers, "order": order(by_stage)})
    return {
        "levels": section.levels,
        "seeds": section.seeds,
        "judge": seen or "none; --judge gives the story one",
        "pairs": entries,
        "robustness": robustness(found),
    }


def settings(kept: Kept, stages: Sequence[Stage]) -> dict[str, Any]:
    """What the pictures were made with."""
    return {
        "version": __version__,
        "torch": torch.__version__.split("+")[0],
        "network": {"name": kept.network, "sha256": kept.network_hash},
        "optimizer": dict(kept.optimizer) or "each preset's own",
        "stages": {stage.name: {"preset": stage.preset, **stage.changes} for stage in stages},
    }


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes the JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
