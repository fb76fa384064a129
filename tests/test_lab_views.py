"""The pages, as they are without JavaScript, and the pictures on them."""

import io
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from core.studio.jobs import JobState
from tests.lab_doubles import SMALL_TABLE, Lab, Plain, config_of, open_lab
from ui.lab.board import STUDIO
from ui.lab.media import Cache
from ui.lab.shown import duration, job_view, memory, ordinal, percent

VOID = {"meta", "link", "img", "input", "br", "path", "rect", "use"}


class Wellformed(HTMLParser):
    """Holds every tag against its end, and every id against the others."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if tag == "img":
            assert "alt" in values
            self.sources.append(values.get("src") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    @classmethod
    def check(cls, text: str) -> "Wellformed":
        parser = cls()
        parser.feed(text)
        assert parser.open == []
        assert len(set(parser.ids)) == len(parser.ids)
        return parser


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path, config_of(SMALL_TABLE | {"level": 0})) as opened:
        yield opened


async def _filled(lab: Lab) -> list[str]:
    """Ids of the table's pictures, when all are done."""
    found = await lab.until(lambda: lab.json("/api/jobs?state=done&table=small"), lambda found: len(found["jobs"]) == 4)
    return [job["id"] for job in found["jobs"]]


async def test_every_page_is_well_formed_and_all_its_pictures_are_there(lab: Lab) -> None:
    ids = await _filled(lab)
    own = await lab.submit()
    await lab.done(own["id"])
    pages = ["/", "/tables/small", "/pictures", "/new", f"/new?like={ids[0]}", own["page"]]
    pages += ["/compare", f"/compare?left={ids[0]}&right={own['id']}"]
    for page in pages:
        parser = Wellformed.check(await lab.page(page))
        for source in filter(None, parser.sources):
            response = await lab.get(source)
            assert response.content_type == "image/jpeg"


async def test_the_table_shows_without_javascript_and_looks_again(lab: Lab) -> None:
    ids = await _filled(lab)
    text = await lab.page("/")
    assert '<noscript><meta http-equiv="refresh"' in text
    assert all(f"/media/jobs/{job}/640.jpg" in text for job in ids)
    for word in ("Small", "Chelsea", "Coffee", "Swirls", "Mosaic", "341 × 256"):
        assert word in text


async def test_the_network_in_use_is_on_every_page(lab: Lab) -> None:
    await _filled(lab)
    for page in ("/", "/new", "/pictures", "/compare"):
        text = await lab.page(page)
        assert "the compact network" in text or "VGG-19" in text
        assert "python -m core fetch vgg19" in text


async def test_a_jobs_page_tells_all_of_it(lab: Lab) -> None:
    job = await lab.submit(seed=4711)
    await lab.done(job["id"])
    text = await lab.page(job["page"])
    for word in ("content × style", "compact", "4711", "L-BFGS", "submitted", "started on test", "Recipe", "Noise"):
        assert word in text
    assert "&#34;software&#34;: &#34;pyramid-style&#34;" in text  # the recipe is that of the file
    for kind in ("png", "jpeg", "webp"):
        assert f"/media/jobs/{job['id']}/result.{kind}?download" in text


async def test_the_noise_of_every_column_is_under_it(tmp_path: Path) -> None:
    columns = [{"title": "Bare", "preset": "classical"}, {"title": "Spots", "preset": "spots-16"}]
    stages = SMALL_TABLE | {"styles": ["swirls"], "contents": ["coffee"], "columns": columns, "noise": True, "level": 0}
    async with open_lab(tmp_path, config_of(stages)) as lab:
        await lab.until(lambda: lab.json("/api/jobs?state=done"), lambda found: len(found["jobs"]) == 2)
        text = await lab.page("/")
        assert text.count("no noise") == 1
        (noise,) = re.findall(r'src="(/media/jobs/[0-9a-f]+/noise\.jpg\?v=0)"', text)
        with Image.open(io.BytesIO(await (await lab.get(noise)).read())) as picture:
            assert picture.size == (341, 256)
            assert len(picture.getcolors(2**20) or ()) > 1000  # coloured spots, not one colour


@pytest.mark.parametrize(
    ("kind", "format", "suffix"), [("png", "PNG", "png"), ("jpeg", "JPEG", "jpg"), ("webp", "WEBP", "webp")]
)
async def test_downloads(lab: Lab, kind: str, format: str, suffix: str) -> None:
    job = await lab.submit()
    await lab.done(job["id"])
    response = await lab.get(f"/media/jobs/{job['id']}/result.{kind}?download")
    assert response.content_type == f"image/{kind}"
    assert response.headers["Content-Disposition"] == f'attachment; filename="content-style-341x256.{suffix}"'
    with Image.open(io.BytesIO(await response.read())) as picture:
        assert picture.format == format


async def test_only_addresses_with_a_version_are_kept_for_ever(lab: Lab) -> None:
    (job, *_) = await _filled(lab)
    assert "immutable" in (await lab.get(f"/media/jobs/{job}/640.jpg?v=1")).headers["Cache-Control"]
    assert "immutable" not in (await lab.get(f"/media/jobs/{job}/640.jpg")).headers["Cache-Control"]
    assert (await lab.get("/")).headers["Cache-Control"] == "no-store"


async def test_pages_for_what_is_not_there(lab: Lab) -> None:
    for path in (f"/jobs/{'0' * 24}", "/tables/none", "/nothing", f"/compare?left={'0' * 24}", f"/new?like={'0' * 24}"):
        text = await lab.page(path, 404)
        Wellformed.check(text)
        assert "404" in text
    await lab.get(f"/media/jobs/{'0' * 24}/result.png", 404)
    await lab.get(f"/media/inputs/{'0' * 24}/320.jpg", 404)


async def test_a_lab_without_tables_begins_with_the_form(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        response = await lab.get("/")
        assert response.url.path == "/new"


async def test_transparent_results_are_shown_on_white(lab: Lab) -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(stream, "PNG")
    (taken,) = (await lab.upload(("a.png", stream.getvalue())))["pictures"]
    with Image.open(io.BytesIO(await (await lab.get(taken["thumbnail"])).read())) as picture:
        assert picture.convert("RGB").getpixel((30, 30)) == (255, 255, 255)


async def test_a_failed_job_says_why_and_what_to_do(tmp_path: Path) -> None:
    backend = Plain()
    backend.refuse = RuntimeError("boom at /home/someone")
    async with open_lab(tmp_path, backend=backend) as lab:
        job = await lab.done((await lab.submit())["id"])
        assert job["state"] == "failed" and job["actions"] == ["retry"]
        text = await lab.page(job["page"])
        assert "Something went wrong in the studio" in text and "boom" not in text


# ── Copies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_copy_is_made_once_for_all_who_ask_at_once() -> None:
    import asyncio

    made: list[int] = []

    async def make() -> bytes:
        made.append(1)
        await asyncio.sleep(0)
        return b"copy"

    cache = Cache()
    assert await asyncio.gather(*(cache.get(("a",), make) for _ in range(5))) == [b"copy"] * 5
    assert await cache.get(("a",), make) == b"copy"
    assert len(made) == 1


async def test_the_copies_used_last_are_kept_while_there_is_room() -> None:
    made: list[str] = []

    def make(name: str):  # type: ignore[no-untyped-def]
        async def load() -> bytes:
            made.append(name)
            return bytes(4)

        return load

    cache = Cache(room=10)
    for name in ("a", "b", "a", "c", "a", "b"):
        await cache.get((name,), make(name))
    assert made == ["a", "b", "c", "b"]


async def test_a_copy_that_failed_is_tried_again() -> None:
    outcomes = iter([OSError("once"), None])

    async def make() -> bytes:
        if error := next(outcomes):
            raise error
        return b"copy"

    cache = Cache()
    with pytest.raises(OSError, match="once"):
        await cache.get(("a",), make)
    assert await cache.get(("a",), make) == b"copy"


# ── Words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_numbers_in_words() -> None:
    assert [duration(seconds).replace("\xa0", " ") for seconds in (0.2, 8, 99, 100, 3599, 5399, 5400, 9000)] == [
        "1 s", "8 s", "99 s", "2 min", "60 min", "1 h 30 min", "1 h 30 min", "2 h 30 min",
    ]  # fmt: skip
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "101st", "111th",
    ]  # fmt: skip
    assert (percent(0.999), percent(1.0)) == ("99 %", "100 %")
    assert (memory(3 * 2**20), memory(1.5 * 2**30)) == ("3 MiB", "1.5 GiB")


async def test_a_jobs_words_in_every_state(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        await lab.send("PUT", "/api/queue", {"paused": True})
        queued = await lab.app[STUDIO].job((await lab.submit())["id"])
        assert job_view(queued).texts.status == "1st in the queue"
        waiting = queued.model_copy(update={"waiting": "waits for memory", "position": 1})
        assert job_view(waiting).texts.status == "Waits for memory"
        for state in JobState:
            view = job_view(queued.model_copy(update={"state": state}))
            assert view.texts.state and view.texts.status
