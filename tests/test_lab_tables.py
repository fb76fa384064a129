"""The configuration of tables, and how they are filled."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from core import config
from core.config import Settings
from core.errors import ImageError, SettingsError
from tests.lab_doubles import SMALL_TABLE, Lab, Plain, config_of, open_lab, png
from ui.lab import filling, shelf
from ui.lab.board import BOARD, STUDIO, TABLE_OWNER
from ui.lab.shelf import SHELF
from ui.lab.tables import Head, Order, TableConfig, read_config, table_of


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the folder for new pictures."""
    monkeypatch.setattr(filling, "_LOOK_SECONDS", 0.05)


# ── The configuration ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tables_that_ship() -> None:
    gallery, stages = read_config().tables
    assert (gallery.name, stages.name) == ("gallery", "stages")
    assert len(stages.variants()) == len(stages.columns) == 6
    classical, pixels, spots16, spots128, style, final = stages.variants()
    assert not classical.all_levels and not classical.noise.levels
    assert [level.grain for level in pixels.noise.levels] == [1]
    assert (spots16.noise.levels[0].spots, spots128.noise.levels[0].spots) == (16, 128)
    assert {level.source for level in style.noise.levels} == {"style"}
    assert final == config.load("final")
    assert gallery.variants() == [final]


def test_the_tables_that_ship_need_no_download() -> None:
    for table in read_config().tables:
        for settings in table.variants():
            assert settings.network == "auto"
            assert settings.loss.content_layers == settings.loss.style_layers == "auto"


def _read(directory: Path, text: str) -> str:
    """What is wrong with a configuration."""
    path = directory / "my.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    return str(caught.value)


TABLE = '[[tables]]\nname = "a"\ntitle = "A"\ncontents = ["coffee"]\nstyles = ["swirls"]\n'


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ("folders = 'x'", "folders", "folder, hosts, uploads, tables"),
        (f"{TABLE}levels = 2", "tables.0.levels", "Did you mean 'level'?"),
        (f"{TABLE}level = 9", "tables.0.level", "less than or equal to 6"),
        (f"{TABLE}level = 'high'", "tables.0.level", "integer"),
        (TABLE.replace("coffee", "coffe"), "contents", "Did you mean 'coffee'?"),
        (TABLE.replace("swirls", "/etc/passwd"), "styles", "Allowed are: astronaut"),
        (TABLE.replace('["coffee"]', "[]"), "tables.0.contents", "at least 1"),
        (TABLE.replace('"a"', '"../a"'), "tables.0.name", "pattern"),
        (f"{TABLE}preset = 'finale'", "tables.0", "Did you mean 'final'?"),
        (f"{TABLE}[tables.settings.noise]\nstrenght = 1", "noise.strenght", "Did you mean 'strength'?"),
        (f"{TABLE}[[tables.columns]]\ntitel = 'x'", "tables.0.columns.0.titel", "Did you mean 'title'?"),
        (
            TABLE.replace('["swirls"]', '["swirls", "mosaic"]') + "[[tables.columns]]\ntitle = 'x'",
            "styles",
            "exactly one style",
        ),
        (TABLE + TABLE, "the whole", "two tables are called 'a'"),
        ("[uploads]\nfiles = 'many'", "uploads.files", "integer"),
        ("tables = 3", "tables", "tuple"),
        ("a = [", "my.toml", "not valid TOML"),
    ],
)
def test_a_mistake_is_told_with_its_key_and_what_is_allowed(tmp_path: Path, text: str, key: str, allowed: str) -> None:
    told = _read(tmp_path, text)
    assert key in told and allowed in told


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml"):
        read_config(tmp_path / "none.toml")


def test_what_all_columns_change_and_what_one_changes() -> None:
    table = TableConfig.model_validate(
        SMALL_TABLE
        | {
            "styles": ["swirls"],
            "settings": {"seed": 7, "optimizer": {"iterations": 5}},
            "columns": [{"title": "One"}, {"title": "Two", "settings": {"seed": 8}}],
        }
    )
    assert [(each.seed, each.optimizer.iterations) for each in table.variants()] == [(7, 5), (8, 5)]


def test_a_folder_stands_for_its_pictures() -> None:
    wanted = TableConfig.model_validate(SMALL_TABLE | {"contents": ["coffee", "folder"], "styles": ["folder"]})
    head = {name: Head(name, name.title(), name) for name in ("coffee", "a", "b", "c")}
    contents = {"coffee": [head["coffee"]], "folder": [head["a"], head["b"]]}
    table = table_of(wanted, contents, {"folder": [head["c"]]})
    assert [row.key for row in table.rows] == ["coffee", "a", "b"]
    assert [column.head.key for column in table.columns] == ["c"]


def test_recipes_differ_in_what_makes_a_picture_and_not_in_its_size() -> None:
    plain = Settings()

    def recipe(settings: Settings, *inputs: str, **regions: Any) -> str:
        return Order("content", ("style",), settings, "title", **regions).recipe(inputs)

    assert recipe(plain, "c", "s") == recipe(plain.changed({"levels": 3, "title": "T"}), "c", "s")
    others = [plain.changed({"seed": 1}), plain.changed({"noise": {"strength": 0.1}})]
    recipes = {recipe(each, "c", "s") for each in [plain, *others]} | {recipe(plain, "s", "c")}
    recipes |= {
        recipe(plain, "c", "s", "t"),
        recipe(plain, "c", "s", masks=("m",)),
        recipe(plain, "c", "s", protect="m"),
    }
    assert len(recipes) == 7


# ── Filling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _all_done_at(level: int) -> Any:
    def check(table: Any) -> bool:
        jobs = [cell["job"] for cell in table["cells"]]
        return all(job and job["state"] == "done" and job["level"] == level for job in jobs)

    return check


async def test_a_fresh_lab_fills_its_table_by_itself(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        table = await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(1))
        assert [(cell["row"], cell["column"]) for cell in table["cells"]] == [
            ("chelsea", "swirls"),
            ("chelsea", "mosaic"),
            ("coffee", "swirls"),
            ("coffee", "mosaic"),
        ]
        levels = [level for _, level in lab.backend.runs]
        assert levels == [0] * 4 + [1] * 4  # everywhere something to see first


async def test_every_cell_has_the_picture_of_its_row_and_column(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        table = await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(1))
        for cell in table["cells"]:
            job = await lab.app[STUDIO].job(cell["job"]["id"])
            assert job.content == lab.app[SHELF].ready(cell["row"])
            assert job.styles == (lab.app[SHELF].ready(cell["column"]),)
            assert job.owner == TABLE_OWNER


async def test_a_restart_computes_and_paints_nothing_twice(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        before = await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(1))
        await lab.until(_painted_all(lab), bool)
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        assert (await lab.json("/api/tables/small"))["cells"] == before["cells"]
        lab.app[BOARD].wanting.set()
        await lab.until(_looked_through(lab), bool)
        assert (lab.backend.runs, lab.painted) == ([], [])


def _painted_all(lab: Lab) -> Any:
    async def look() -> bool:
        return len(lab.painted) == len(lab.app[SHELF].pictures)

    return look


def _looked_through(lab: Lab) -> Any:
    async def look() -> bool:
        return not lab.app[BOARD].wanting.is_set() and (await lab.json("/api/queue"))["queued"] == 0

    return look


async def test_changed_settings_give_new_pictures_and_show_the_old_ones_meanwhile(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        before = await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(1))
        await lab.send("PUT", "/api/queue", {"paused": True})
    changed = SMALL_TABLE | {"settings": {"seed": 1}}
    async with open_lab(tmp_path, config_of(changed), backend=Plain(steps=2)) as lab:
        queued = await lab.until(lambda: lab.json("/api/tables/small"), _all_queued)
        pictures = [[cell["job"]["picture"] for cell in table["cells"]] for table in (before, queued)]
        assert pictures[0] == pictures[1]
        await lab.send("PUT", "/api/queue", {"paused": False})
        after = await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(1))
        assert not {cell["job"]["id"] for cell in before["cells"]} & {cell["job"]["id"] for cell in after["cells"]}


def _all_queued(table: Any) -> bool:
    return all(cell["job"]["state"] == "queued" for cell in table["cells"])


async def test_what_no_table_wants_any_more_is_not_computed(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        await lab.send("PUT", "/api/queue", {"paused": True})
        await lab.until(lambda: lab.json("/api/queue"), lambda queue: queue["queued"] >= 7)
        own = await lab.submit()
    changed = SMALL_TABLE | {"settings": {"seed": 1}, "styles": ["swirls"]}
    async with open_lab(tmp_path, config_of(changed)) as lab:
        await lab.until(lambda: lab.json("/api/queue"), lambda queue: queue["queued"] == 5)
        await lab.send("PUT", "/api/queue", {"paused": False})
        await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(1))
        assert (await lab.done(own["id"]))["state"] == "done"
        assert len(lab.backend.runs) == 5


async def test_a_table_shows_the_smaller_picture_until_the_larger_one_is_further(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE | {"level": 0})) as lab:
        table = await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(0))
        small = table["cells"][0]["job"]
        lab.backend.step_seconds = 0.2
        larger = await lab.send("POST", f"/api/jobs/{small['id']}/enlarge", None, 201)
        cell = (await lab.json("/api/tables/small"))["cells"][0]["job"]
        assert cell["id"] == larger["id"] and cell["level"] == 1
        assert cell["picture"] == small["picture"] and cell["download"] == small["download"]
        await lab.done(larger["id"])
        cell = (await lab.json("/api/tables/small"))["cells"][0]["job"]
        assert cell["picture"].startswith(f"/media/jobs/{larger['id']}/")


async def test_a_cell_whose_larger_picture_was_cancelled_keeps_the_smaller_one(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE | {"level": 0})) as lab:
        table = await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(0))
        small = table["cells"][0]["job"]
        await lab.send("PUT", "/api/queue", {"paused": True})
        larger = await lab.send("POST", f"/api/jobs/{small['id']}/enlarge", None, 201)
        again = await lab.send("POST", f"/api/jobs/{small['id']}/enlarge", None, 201)
        assert again["id"] == larger["id"]  # a second click
        await lab.send("POST", f"/api/jobs/{larger['id']}/cancel", {"attempt": 1})
        cell = (await lab.json("/api/tables/small"))["cells"][0]["job"]
        assert (cell["state"], cell["picture"]) == ("cancelled", small["picture"])
        assert cell["actions"] == ["retry"]


async def test_own_pictures_in_the_folder_join_the_table(tmp_path: Path) -> None:
    config = config_of(SMALL_TABLE | {"contents": ["folder"], "styles": ["swirls", "folder"], "level": 0})
    async with open_lab(tmp_path, config) as lab:
        assert (await lab.json("/api/tables/small"))["columns"] == ["Swirls"]
        for name in ("content/My cat.png", "style/Tiles.PNG", "style/notes.txt", "style/broken.jpg"):
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no picture" if "broken" in name else png())
        table = await lab.until(lambda: lab.json("/api/tables/small"), _done_in("Tiles"))
        assert (table["rows"], table["columns"]) == (["My cat"], ["Swirls", "Tiles", "broken"])
        assert "broken" in table["cells"][2]["problem"]


def _done_in(column: str) -> Any:
    def check(table: Any) -> bool:
        if column not in table["columns"] or not table["cells"]:
            return False
        cells = dict(zip(table["columns"], table["cells"], strict=True))
        return bool(cells[column]["job"]) and cells[column]["job"]["state"] == "done" and cells["broken"]["problem"]

    return check


async def test_a_table_waits_while_the_queue_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_MOST_PENDING", 1)
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        await lab.until(lambda: lab.json("/api/tables/small"), _all_done_at(1))


async def test_people_and_the_table_take_turns(tmp_path: Path) -> None:
    async with open_lab(tmp_path, config_of(SMALL_TABLE), backend=Plain(step_seconds=0.05)) as lab:
        await lab.until(lambda: lab.json("/api/queue"), lambda queue: queue["queued"] >= 5)
        job = await lab.submit()
        assert job["position"] in (None, 1, 2)


async def test_several_pictures_become_a_table_that_is_kept(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        table = await _own_table(lab)
        shown = await lab.until(lambda: lab.json(f"/api{table['page']}"), _all_done_at(0))
        assert (shown["rows"], shown["columns"]) == (["a", "b"], ["s"])
        assert table["title"] == "2 contents in s"
    async with open_lab(tmp_path) as lab:
        assert (await lab.json(f"/api{table['page']}"))["cells"] == shown["cells"]
        page = await lab.page(table["page"])
        assert all(cell["job"]["page"] in page for cell in shown["cells"])


async def _own_table(lab: Lab) -> Any:
    taken = (await lab.upload(("a.png", png()), ("b.png", png((0, 1, 0))), ("s.png", png((0, 0, 1)))))["pictures"]
    a, b, style = ({"id": each["id"], "title": each["title"]} for each in taken)
    body = {"contents": [a, b], "styles": [style], "wanted": {"level": 0}}
    return await lab.send("POST", "/api/tables", body, 201)


async def test_a_deleted_job_leaves_its_cell_empty(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        table = await _own_table(lab)
        shown = await lab.until(lambda: lab.json(f"/api{table['page']}"), _all_done_at(0))
        await lab.send("DELETE", f"/api/jobs/{shown['cells'][0]['job']['id']}")
        cells = (await lab.json(f"/api{table['page']}"))["cells"]
        assert [bool(cell["job"]) for cell in cells] == [False, True]


async def test_a_table_that_cant_be_made_is_refused_whole(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        body = {"contents": [{"id": "0" * 24}], "styles": [{"id": "0" * 24}]}
        await lab.send("POST", "/api/tables", body, 404)
        assert (await lab.json("/api/tables"))["tables"] == []


async def test_the_lab_opens_while_styles_are_still_to_be_painted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = asyncio.Event()
    monkeypatch.setattr(shelf.Shelf, "_prepare", lambda *_: hold.wait())
    async with open_lab(tmp_path, config_of(SMALL_TABLE)) as lab:
        page = await lab.page("/")
        assert "Chelsea" in page and "To be painted" in page


# ── The shelf ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_picture_that_the_studio_deleted_is_made_again(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        await lab.until(_painted_all(lab), bool)
        first = await lab.app[SHELF].get("lilies")
        await lab.app[STUDIO].forget(shelf.SHELF_OWNER)  # as after a day in which nobody used it
        second = await lab.app[SHELF].get("lilies")
        assert first != second
        assert (await lab.app[STUDIO].input_path(second)).is_file()


async def test_a_broken_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    genuine = shelf._file_bytes

    def watched(path: Path, limit: int) -> bytes:
        read.append(path)
        return genuine(path, limit)

    monkeypatch.setattr(shelf, "_file_bytes", watched)
    path = tmp_path / "pictures" / "style" / "broken.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no picture")
    async with open_lab(tmp_path) as lab:
        (key,) = (key for key, picture in lab.app[SHELF].pictures.items() if picture.file)
        for _ in range(3):
            with pytest.raises(ImageError, match="broken"):
                await lab.app[SHELF].get(key)
    assert read == [path]


async def test_who_asks_for_one_picture_at_once_waits_for_one_painting(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        inputs = await asyncio.gather(*(lab.app[SHELF].get("lilies") for _ in range(5)))
        assert len(set(inputs)) == 1 and lab.painted.count("lilies") == 1
