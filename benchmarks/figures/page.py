"""The generated parts of `docs/method.md`: tables made from the JSON, between markers, and pictures."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures.stages import STAGES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "method.md"

_BLOCK = re.compile(
    r"(?P<begin><!-- figures: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end of figures -->)", flags=re.DOTALL
)

Row = Sequence[str]


def updated(page: str, figures: Mapping[str, Any]) -> str:
    """The page with every block between `<!-- figures: NAME -->` and `<!-- end of figures -->` written anew.

    Raises:
        KeyError: The page names a block that nobody makes.
    """
    blocks = dict(_blocks(figures))

    def filled(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{blocks[found['name']]}\n{found['end']}"

    return _BLOCK.sub(filled, page)


def _blocks(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sections = {section["levels"]: section for section in figures["sections"]}
    coarse, fine = sections[min(sections)], sections[max(sections)]
    yield "setup", _setup(figures, sections.values())
    yield "baldness", _by_pair(coarse, "baldness")
    yield "edges", _by_pair(coarse, "edge_distortion")
    yield "order", _order(coarse)
    yield "robustness", _robustness(coarse)
    yield "coverage", _coverage(fine)
    yield "centre", _by_pair(coarse, "centre_ratio")
    yield "pairs", _facts(coarse)
    yield "fine", _fine(fine)
    yield "levels", _levels(figures["across_levels"])


def table(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table, the first column to the left, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _title(stage: str) -> str:
    return next(known.title for known in STAGES if known.name == stage)


def _name(pair: Mapping[str, Any]) -> str:
    return f"{_plain(pair['content'])} + {_plain(pair['style'])}"


def _plain(source: str) -> str:
    return source.rpartition(":")[2]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_spread(entry: Mapping[str, Any]) -> str:
    if len(entry["seeds"]) == 1 or entry["mean"] is None:
        return _number(entry["mean"], 3)
    return f"{_number(entry['mean'], 3)} ({_number(entry['least'], 3)}–{_number(entry['most'], 3)})"


def _by_pair(section: Mapping[str, Any], figure: str) -> str:
    """Stages down, pairs across: the mean over the seeds and, in brackets, the least and the most."""
    pairs = section["pairs"]
    rows = [
        [_title(stage), *(_with_spread(pair["stages"][stage][figure]) for pair in pairs)]
        for stage in pairs[0]["stages"]
    ]
    return table(["stage", *map(_name, pairs)], rows)


def _facts(section: Mapping[str, Any]) -> str:
    rows = [
        [
            _name(pair),
            f"{100 * pair['flat_share']:.0f} %",
            str(pair["edge_points"]),
            _number(pair["style_own_baldness"], 3),
            _number(pair["content_centre_ratio"]),
        ]
        for pair in section["pairs"]
    ]
    return table(["pair", "flat", "edge points", "the style's own baldness", "the content's centre ratio"], rows)


def _order(section: Mapping[str, Any]) -> str:
    pairs = section["pairs"]
    rows = []
    for number, verdict in enumerate(pairs[0]["order"]):
        cells = [pair["order"][number] for pair in pairs]
        rows.append([verdict["expected"], *(f"{_said(cell['holds'])} ({cell['seeds']})" for cell in cells)])
    return table(["expected", *map(_name, pairs)], rows)


def _said(verdict: bool | None) -> str:
    return "–" if verdict is None else "yes" if verdict else "**no**"


def _robustness(section: Mapping[str, Any]) -> str:
    rows = []
    for variant, verdicts in section["robustness"].items():
        exceptions = [f"{name}: {count}" for name, count in verdicts.items() if not _all(count)]
        rows.append([variant, f"{len(verdicts) - len(exceptions)} of {len(verdicts)}", "; ".join(exceptions) or "none"])
    return table(["definition", "hold for all pairs", "the others"], rows)


def _all(count: str) -> bool:
    holding, _, known = count.partition(" of ")
    return holding == known


def _coverage(section: Mapping[str, Any]) -> str:
    """The first pair's Gram distances by level, by both networks."""
    pair = section["pairs"][0]
    levels = range(section["levels"] + 1)
    judged = isinstance(section["judge"], Mapping)
    head = ["stage", *(f"level {level}" for level in levels), *(f"judge, level {level}" for level in levels if judged)]
    rows = []
    for stage, found in pair["stages"].items():
        values = [*found["style_distance"], *found["style_distance_judged"]]
        rows.append([_title(stage), *(_number(value, 4) for value in values)])
    return table(head, rows)


def _fine(section: Mapping[str, Any]) -> str:
    """Baldness and edge distortion of the first pair at the story's L."""
    pair = section["pairs"][0]
    rows = [
        [
            _title(stage),
            _with_spread(found["baldness"]),
            *(_number(share, 3) for share in found["baldness_by_level"]),
            _with_spread(found["edge_distortion"]),
            _number(found["edges_moved"]),
            _number(found["edges_rang"]),
        ]
        for stage, found in pair["stages"].items()
    ]
    by_level = [f"level {level}" for level in range(section["levels"] + 1)]
    return table(["stage", "baldness", *by_level, "edge distortion, px", "moved", "rang"], rows)


def _levels(entries: Sequence[Mapping[str, Any]]) -> str:
    """The same picture at L = 0, 1, …: how well each level of the finest pyramid is matched."""
    finest = len(entries[-1]["style_distance"])
    rows = [
        [
            f"L = {entry['levels']}",
            f"{entry['width']} × {entry['height']}",
            *(_number(value, 4) for value in entry["style_distance"]),
        ]
        for entry in entries
    ]
    return table(["", "size", *(f"level {level}" for level in range(finest))], rows)


def _setup(figures: Mapping[str, Any], sections: Any) -> str:
    network = figures["settings"]["network"]
    parts = []
    for section in sections:
        seeds = f"{section['seeds']} seeds" if section["seeds"] > 1 else "one seed"
        pairs = " pairs" if len(section["pairs"]) > 1 else ""
        parts.append(f"{len(section['pairs'])}{pairs} at L = {section['levels']} with {seeds}")
    judges = [section["judge"] for section in sections if isinstance(section["judge"], Mapping)]
    judge = (
        f"The judge is {judges[0]['name']} ({judges[0]['layers'][0]} to {judges[0]['layers'][-1]}), which no picture "
        "was optimised with."
        if judges
        else "There was no second network to judge."
    )
    iterations = figures["settings"]["optimizer"]
    run = (
        "as the presets say" if isinstance(iterations, str) else ", ".join(f"{k} = {v}" for k, v in iterations.items())
    )
    return (
        f"Network: {network['name']} (weights {network['sha256'][:8]}), iterations {run}. "
        f"Measured: {', '.join(parts)}. {judge}\n"
    )
