"""The figures' report, page and command; the metrics themselves are in `test_figures_metrics`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.figures import __main__ as command
from benchmarks.figures import page, report
from benchmarks.figures.coverage import Coverage
from benchmarks.figures.report import BALDNESS, EDGES, Figures
from benchmarks.figures.sheets import Cell, crop, save, sheet
from benchmarks.figures.stages import NOISY, STAGES, stage
from core import images

RESULTS = command.RESULTS / "figures.json"


def figures(baldness: float, edges: float = 1.0, seed: int = 0) -> Figures:
    return Figures(
        seed=seed,
        baldness=dict.fromkeys(BALDNESS, baldness),
        baldness_by_level=[baldness],
        edges=dict.fromkeys(EDGES, edges),
        moved=edges,
        rang=0.0,
        centre_ratio=1.0,
        style=[0.01],
    )


def found(classical: float, noisy: Sequence[float], pixel_edges: float = 2.0) -> dict[str, list[Figures]]:
    """All stages, those with noise having one figure per seed."""
    by_stage = {name: [figures(value, seed=seed) for seed, value in enumerate(noisy)] for name in NOISY}
    by_stage["pixel-noise"] = [figures(value, pixel_edges, seed) for seed, value in enumerate(noisy)]
    return {"classical": [figures(classical)], **by_stage}


def verdicts(by_stage: dict[str, list[Figures]]) -> dict[str, tuple[bool | None, str]]:
    return {each["expected"]: (each["holds"], each["seeds"]) for each in report.order(by_stage)}


# ── The story ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_story_goes_from_classical_to_final() -> None:
    assert STAGES[0].name == "classical"
    assert NOISY == ("pixel-noise", "spots-16", "spots-128", "style-noise", "final")
    classical, final = (stage(name).settings(1, 7, "compact", {}) for name in ("classical", "final"))
    assert not classical.all_levels and classical.start == "content"
    assert final.all_levels and final.start == "content+noise" and final.noise.gradient_weight == 1
    assert (final.levels, final.seed, final.network) == (1, 7, "compact")
    everywhere = stage("no-gradient-weight").settings(1, 7, "compact", {})
    assert everywhere.noise.gradient_weight == 0 and everywhere.noise.levels == final.noise.levels


# ── The expected order ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_order_holds_where_every_stage_has_less() -> None:
    said = verdicts(found(0.9, (0.1, 0.2, 0.25)))
    assert len(said) == len(NOISY) + 2
    assert set(said.values()) == {(True, "3 of 3")}


def test_less_than_a_third_is_asked_of_final() -> None:
    said = verdicts(found(0.9, (0.2, 0.35, 0.4)))
    assert said["final is less bald than classical"] == (True, "3 of 3")
    assert said["final is less than a third as bald as classical"] == (False, "1 of 3")


def test_edges_are_held_against_pixel_noise_seed_by_seed() -> None:
    by_stage = found(0.9, (0.1, 0.1, 0.1))
    by_stage["final"] = [figures(0.1, edges, seed) for seed, edges in enumerate((1.0, 1.5, 2.5))]
    assert verdicts(by_stage)["edges of final are less distorted than those of pixel noise"] == (True, "2 of 3")


def test_where_nothing_can_be_measured_nothing_is_said() -> None:
    nan = float("nan")
    said = verdicts(found(nan, (nan, nan, nan)))
    assert said["final is less bald than classical"][0] is None
    assert said["edges of final are less distorted than those of pixel noise"] == (True, "3 of 3")


def test_robustness_counts_pairs() -> None:
    nan = float("nan")
    table = report.robustness([found(0.9, (0.1,)), found(0.9, (0.5,)), found(nan, (nan,))])
    assert len(table) == len(BALDNESS) + len(EDGES)
    for variant, counts in table.items():
        if variant.startswith("baldness"):
            assert counts["final is less bald than classical"] == "2 of 2"
            assert counts["final is less than a third as bald as classical"] == "1 of 2"
        else:
            assert counts == {"edges of final are less distorted than those of pixel noise": "3 of 3"}


def test_a_summary_has_means_and_spread() -> None:
    said = report.summary([figures(0.1), figures(0.2), figures(0.6)])
    assert said["baldness"] == {"mean": 0.3, "least": 0.1, "most": 0.6, "seeds": [0.1, 0.2, 0.6]}
    assert report.summary([figures(float("nan"))])["baldness"]["mean"] is None, "JSON knows no NaN"


# ── Scale coverage ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_style_itself_covers_every_level_and_a_flat_picture_none() -> None:
    generator = torch.Generator().manual_seed(0)
    style = images.resize(torch.rand(1, 3, 128, 128, generator=generator), (512, 512)).clamp(0, 1)
    coverage = Coverage("compact", None, style, style, 1)
    own = coverage.measure(style)
    flat = coverage.measure(style.mean((2, 3), keepdim=True).expand(1, 3, 512, 512))
    assert len(own) == len(flat) == 2
    assert max(own) < 0.01
    assert min(flat) > 0.2


# ── Sheets and the page ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sheet_shows_every_cell_in_the_first_ones_shape(tmp_path: Path) -> None:
    red, tall = torch.zeros(1, 3, 40, 80), torch.ones(1, 3, 90, 30)
    red[:, 0] = 1
    shown = sheet([[Cell(red, "red"), Cell(tall, "white")], [Cell(red, "red")]], width=80)
    assert shown.getpixel((40, 20)) == (255, 0, 0)
    assert shown.width == 2 * 80 + 6
    save(tmp_path / "folder" / "sheet.jpg", shown)
    assert Image.open(tmp_path / "folder" / "sheet.jpg").size == shown.size


def test_a_large_sheet_is_made_to_fit(tmp_path: Path) -> None:
    noise = torch.rand(1, 3, 600, 900, generator=torch.Generator().manual_seed(0))
    save(tmp_path / "sheet.jpg", sheet([[Cell(noise, "noise")]], width=900))
    assert (tmp_path / "sheet.jpg").stat().st_size <= 250_000


@pytest.mark.parametrize("where", [(0.0, 0.0), (0.5, 0.5), (1.0, 0.9)])
def test_a_piece_lies_inside_the_picture(where: tuple[float, float]) -> None:
    picture = torch.arange(60 * 90.0).reshape(1, 1, 60, 90).expand(1, 3, 60, 90)
    piece = crop(picture, where, (20, 30))
    assert piece.shape == (1, 3, 20, 30)
    if where == (0.5, 0.5):
        torch.testing.assert_close(piece, picture[:, :, 20:40, 30:60])


def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_pages_tables_are_those_of_the_published_figures() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.updated(text, published()) == text


def test_the_pages_pictures_are_there_and_small() -> None:
    named = [line.split("](")[1].rstrip(")") for line in page.PAGE.read_text().splitlines() if line.startswith("![")]
    assert len(named) >= 5
    sizes = [(page.PAGE.parent / name).stat().st_size for name in named]
    assert max(sizes) <= 250_000 and sum(sizes) <= 4_000_000


def test_only_named_blocks_are_written_anew() -> None:
    text = "before\n<!-- figures: pairs -->\nold\n<!-- end of figures -->\nafter\n"
    once = page.updated(text, published())
    assert once.startswith("before\n<!-- figures: pairs -->\n\n| pair |") and once.endswith(
        "end of figures -->\nafter\n"
    )
    assert "old" not in once and page.updated(once, published()) == once
    with pytest.raises(KeyError):
        page.updated("<!-- figures: nonsense -->\n<!-- end of figures -->", published())


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_command_tells_the_story_of_any_pictures(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    content = torch.full((1, 3, 96, 128), 0.3)
    content[..., 64:] = 0.8
    style = images.resize(torch.rand(1, 3, 64, 64, generator=generator), (256, 256)).clamp(0, 1)
    for name, picture in (("photo", content), ("painting", style)):
        images.save(tmp_path / f"{name}.png", picture)
    run = [f"--content={tmp_path}/photo.png", f"--style={tmp_path}/painting.png", "--quick", "--seeds=1", "--story=0"]
    places = ["--finest=0", f"--folder={tmp_path}/kept", f"--output={tmp_path}/report"]
    assert command.main([*run, *places]) == 0

    told = json.loads((tmp_path / "report" / "figures.json").read_text())
    (section,) = told["sections"]
    (pair,) = section["pairs"]
    assert (pair["content"], pair["style"]) == ("photo.png", "painting.png")
    assert pair["flat_share"] > 0.5 and pair["edge_points"] > 100
    assert len(pair["stages"]["final"]["baldness"]["seeds"]) == 1
    assert {each["expected"] for each in pair["order"]} == {each.name for each in report.EXPECTATIONS}
    assert [entry["width"] for entry in told["across_levels"]] == [341]
    assert Image.open(tmp_path / "report" / "figures-photo-painting.jpg").width > 1000

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*.png")}
    assert len(kept) == len(STAGES)
    assert command.main([*run, *places]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*.png")} == kept


def test_a_picture_that_is_not_there_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([f"--content={tmp_path}/none.png", f"--folder={tmp_path}", "--quick"]) == 2
    assert "none.png" in capsys.readouterr().err
