"""The page in a real browser: headless Chromium, driven by Playwright.

Needs Debian's `chromium` (or another, named in CHROMIUM), and for the accessibility audit axe-core: AXE_CORE names its
`axe.min.js` (`npm install --no-save --prefix DIR axe-core` puts it into DIR/node_modules/axe-core).
"""

import base64
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright, expect

from core import images
from tests.lab_doubles import QUICK, SMALL_TABLE, Lab, Plain, config_of, open_lab, plain, png
from ui.lab.board import STUDIO

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = os.environ.get("AXE_CORE")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
STAGES: dict[str, Any] = {
    "name": "stages",
    "title": "Stages",
    "contents": ["coffee"],
    "styles": ["swirls"],
    "level": 0,
    "noise": True,
    "columns": [{"title": "Classical", "preset": "classical", "note": "bald"}, {"title": "Final"}],
}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install it (apt-get install chromium)"),
]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path, config_of(SMALL_TABLE, STAGES), backend=Plain(step_seconds=0.02)) as opened:
        yield opened


class Visit:
    """A visit of the lab that notes what goes wrong, and whatever would leave the host."""

    def __init__(self, lab: Lab, context: BrowserContext, page: Page) -> None:
        self.lab = lab
        self.context = context
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        context.on("request", self._watch)

    async def open(self, path: str) -> Page:
        """Opens a page and waits until its scripts are at work."""
        await self.page.goto(self.lab.origin + path)
        await expect(self.page.locator("body")).to_have_attribute("data-ready", "yes")
        return self.page

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _watch(self, request: Request) -> None:
        if not request.url.startswith(self.lab.origin + "/"):
            self.complaints.append(f"asked for {request.url}")


@pytest.fixture
async def visit(lab: Lab, browser: Browser) -> AsyncIterator[Visit]:
    """A visit in which nothing may go wrong."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    seen = Visit(lab, context, await context.new_page())
    yield seen
    await context.close()
    assert seen.complaints == []


async def _filled(page: Page) -> None:
    """Waits until every cell shows its picture at the table's level."""
    cells = page.locator("td[data-cell]")
    for number in range(await cells.count()):
        await expect(cells.nth(number).locator(".status")).to_contain_text("× 512 in", timeout=30_000)


async def _drop(page: Page, selector: str, *files: tuple[str, bytes]) -> None:
    """Drops files, as from a desktop."""
    given = [{"name": name, "data": base64.b64encode(data).decode()} for name, data in files]
    script = """(files) => {
        const carried = new DataTransfer();
        for (const { name, data } of files) {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            carried.items.add(new File([bytes], name, { type: "image/png" }));
        }
        return carried;
    }"""
    carried = await page.evaluate_handle(script, given)
    for event in ("dragenter", "dragover", "drop"):
        await page.dispatch_event(selector, event, {"dataTransfer": carried})


async def test_the_table_fills_by_itself_without_a_reload(visit: Visit) -> None:
    page = await visit.open("/")
    await page.evaluate("window.sameDocument = true")
    await _filled(page)
    assert await page.evaluate("window.sameDocument") is True
    natural = "[...document.querySelectorAll('td .picture')].map((picture) => picture.naturalWidth)"
    assert all(width > 0 for width in await page.evaluate(natural))


async def test_progress_moves_without_a_reload(visit: Visit) -> None:
    page = await visit.open("/")
    await _filled(page)
    visit.lab.backend.steps, visit.lab.backend.step_seconds = 60, 0.1
    cell = page.locator("td[data-cell]").first
    await cell.hover()
    await cell.get_by_role("button", name="Paint it twice as large").click()
    await expect(cell.locator(".status")).to_contain_text(re.compile(r"[1-9]\d? % · \d+\ss left"))
    await expect(cell.locator(".steps")).to_contain_text(re.compile(r"iteration \d+ of 60 · \d+ evaluations · loss"))
    first = await cell.locator(".picture").get_attribute("src")
    value = float(await cell.locator("progress").evaluate("(bar) => bar.value"))
    await expect(cell.locator(".picture")).not_to_have_attribute("src", first or "")
    assert float(await cell.locator("progress").evaluate("(bar) => bar.value")) > value
    await page.reload()
    await expect(cell.locator(".status")).to_contain_text("% ·")  # all of it is restored


async def test_enlarge_cancel_and_try_again_in_the_table(visit: Visit) -> None:
    page = await visit.open("/")
    await _filled(page)
    await page.get_by_role("button", name="Pause all").click()
    cell = page.locator("td[data-cell]").first
    await cell.hover()
    await cell.get_by_role("button", name="Paint it twice as large").click()
    await expect(cell).to_have_attribute("data-state", "queued")
    await expect(cell.locator(".picture")).to_be_visible()  # the smaller one, meanwhile
    await cell.get_by_role("button", name="Cancel").click()
    await expect(cell).to_have_attribute("data-state", "cancelled")
    await cell.get_by_role("button", name="Try again").click()
    await expect(cell).to_have_attribute("data-state", "queued")
    await page.locator("[data-queue-toggle]").click()
    await expect(cell).to_have_attribute("data-state", "done", timeout=20_000)
    await expect(cell.locator(".status")).to_contain_text("1364 × 1024")


async def test_upload_by_drop_estimate_and_a_picture(visit: Visit) -> None:
    page = await visit.open("/new")
    start = page.get_by_role("button", name="Begin")
    await expect(start).to_be_disabled()
    await _drop(page, '[data-zone="content"] [data-drop]', ("My cat.png", png()))
    await expect(page.locator('[data-zone="content"] [data-chosen] li')).to_have_text(re.compile("My cat"))
    await page.get_by_role("button", name="Mosaic").click()
    await expect(page.locator("[data-estimate]")).to_contain_text("682 × 512")
    await page.get_by_role("radio", name="256").check()
    await expect(page.locator("[data-estimate]")).to_contain_text("341 × 256")
    await expect(start).to_be_enabled()
    await start.click()
    await page.wait_for_url("**/jobs/*")
    await expect(page.get_by_role("heading", level=1)).to_have_text("My cat × Mosaic")
    await expect(page.locator("article")).to_have_attribute("data-state", "done", timeout=20_000)
    await expect(page.get_by_role("link", name="JPEG")).to_be_visible()
    await expect(page.locator("[data-chart] svg")).to_be_visible()


async def test_several_pictures_become_a_table(visit: Visit) -> None:
    page = await visit.open("/new")
    await _drop(page, '[data-zone="content"] [data-drop]', ("a.png", png()), ("b.png", png((0, 1, 0))))
    await page.get_by_role("button", name="Mosaic").click()
    await page.get_by_role("button", name="Swirls").click()
    await page.get_by_role("button", name="Begin 4 pictures").click()
    await page.wait_for_url("**/tables/*")
    await expect(page.locator('td[data-state="done"]')).to_have_count(4, timeout=30_000)


async def test_a_picture_made_here_restores_its_settings(visit: Visit) -> None:
    job = await visit.lab.submit(level=2, seed=99, preset="light", colour="palette", dials={"noise": 2.5})
    await visit.lab.done(job["id"])
    data = await (await visit.lab.get(f"/media/jobs/{job['id']}/result.png?download")).read()
    page = await visit.open("/new")
    await _drop(page, '[data-zone="content"] [data-drop]', ("made.png", data))
    await expect(page.get_by_role("alert")).to_contain_text("Settings restored")
    await expect(page.get_by_role("radio", name="1024")).to_be_checked()
    await page.get_by_text("More", exact=True).click()
    await expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("99")
    await expect(page.get_by_role("radio", name="The style’s alone")).to_be_checked()
    await expect(page.locator('[data-for="dial.noise"]')).to_have_text("5 · as the preset")
    await page.get_by_role("slider", name="Noise").focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator('[data-for="dial.noise"]')).to_have_text("5.5")


# ── Several styles and their regions ─────────────────────────────────────────────────────────────────────────────────


async def _two_styles(visit: Visit) -> Page:
    """The form with one content and two styles in one picture, and the brush in reach."""
    page = await visit.open("/new")
    await _drop(page, '[data-zone="content"] [data-drop]', ("My cat.png", png(height=90, width=120)))
    await page.get_by_role("button", name="Mosaic").click()
    await page.get_by_role("button", name="Swirls").click()
    await page.get_by_role("radio", name="All in one picture").check()
    await page.get_by_role("radio", name="256").check()
    await page.get_by_text("Regions: where").click()
    await expect(page.locator("[data-painting-canvas]")).to_be_visible()
    await page.locator("[data-painting-canvas]").scroll_into_view_if_needed()
    return page


async def _stroke(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draws with the mouse, in shares of the canvas."""
    box = await page.locator("[data-painting-canvas]").bounding_box()
    assert box
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]
    await page.mouse.move(x + start[0] * width, y + start[1] * height)
    await page.mouse.down()
    await page.mouse.move(x + end[0] * width, y + end[1] * height, steps=5)
    await page.mouse.up()


async def test_regions_are_painted_and_come_with_the_picture(visit: Visit) -> None:
    page = await _two_styles(visit)
    status = page.locator("[data-region-status]")
    await expect(status).to_have_text("Mosaic goes everywhere. Paint to say where it goes.")
    await _stroke(page, (0.1, 0.2), (0.9, 0.2))
    await expect(status).to_contain_text("Mosaic goes to")
    await page.get_by_role("radio", name="Protected").check()
    await _stroke(page, (0.5, 0.8), (0.6, 0.8))
    await expect(status).to_contain_text("Protected: ")
    await page.get_by_label("Weight of Swirls").fill("2")
    await page.get_by_label("Scale of Mosaic").fill("0.5")
    await expect(page.get_by_role("button", name="Begin", exact=True)).to_be_enabled()
    await page.get_by_role("button", name="Begin", exact=True).click()
    await page.wait_for_url("**/jobs/*")
    await expect(page.get_by_role("heading", level=1)).to_have_text("My cat × Mosaic + Swirls")
    await expect(page.get_by_text("Region of Mosaic")).to_be_visible()
    job = await visit.lab.app[STUDIO].job(page.url.rpartition("/")[2])
    assert [(style.weight, style.scale) for style in job.settings.styles] == [(1, 0.5), (2, 1)]
    assert job.masks[0] and job.masks[1] is None and job.protect
    mask = images.read_mask(await visit.lab.app[STUDIO].input_bytes(job.masks[0]))
    height, width = mask.shape[2:]
    assert width / height == pytest.approx(4 / 3, abs=0.01)
    assert mask[0, 0, height // 5, width // 2] == 1, "under the stroke"
    assert mask[0, 0, height // 2, width // 2] == 0, "and not beside it"


async def test_the_brush_erases_undoes_inverts_and_clears(visit: Visit) -> None:
    page = await _two_styles(visit)
    status, undo = page.locator("[data-region-status]"), page.get_by_role("button", name="Undo")
    await expect(undo).to_be_disabled()
    await _stroke(page, (0.0, 0.5), (1.0, 0.5))
    painted = await status.text_content() or ""
    await page.get_by_role("radio", name="Erase").check()
    await _stroke(page, (0.0, 0.5), (0.5, 0.5))
    await expect(status).not_to_have_text(painted)
    await undo.click()
    await expect(status).to_have_text(painted)
    share = int(re.findall(r"(\d+) %", painted)[0])
    await page.get_by_role("button", name="Invert").click()
    await expect(status).to_contain_text(re.compile(rf"({100 - share - 1}|{100 - share}|{100 - share + 1}) %"))
    await page.get_by_role("button", name="Clear").click()
    await expect(status).to_contain_text("goes everywhere")


async def test_regions_without_a_mouse_by_keys_and_by_a_file(visit: Visit) -> None:
    page = await _two_styles(visit)
    status = page.locator("[data-region-status]")
    await page.locator("[data-painting-canvas]").focus()
    for key in ("ArrowRight", "ArrowDown", " "):
        await page.keyboard.press(key)
    await expect(status).to_contain_text("Mosaic goes to")
    await page.keyboard.press("Shift+Space")
    await expect(status).to_contain_text("goes everywhere")
    half = plain((0, 0, 0), 30, 40)
    half[..., :20] = 1
    await page.locator("[data-mask-file]").set_input_files(
        {"name": "half.png", "mimeType": "image/png", "buffer": images.encode(half)}
    )
    await expect(status).to_contain_text(re.compile("(49|50|51) %"))


async def test_what_is_painted_survives_a_refusal(visit: Visit) -> None:
    page = await _two_styles(visit)
    await _stroke(page, (0.1, 0.2), (0.9, 0.2))
    painted = await page.locator("[data-region-status]").text_content() or ""
    visit.lab.app[STUDIO].settings = QUICK.model_copy(update={"pending_per_owner": 0, "pending_in_all": 0})
    await expect(page.get_by_role("button", name="Begin", exact=True)).to_be_enabled()
    await page.get_by_role("button", name="Begin", exact=True).click()
    await expect(page.get_by_role("alert")).to_contain_text("Wait for one of them")
    await expect(page.locator("[data-region-status]")).to_have_text(painted)
    visit.lab.app[STUDIO].settings = QUICK
    await page.get_by_role("button", name="Begin", exact=True).click()
    await page.wait_for_url("**/jobs/*")
    assert all("429" in complaint for complaint in visit.complaints)  # the browser's own note
    visit.complaints.clear()


async def test_a_sweep_and_one_of_its_pictures_made_large(visit: Visit) -> None:
    page = await visit.open("/new")
    await _drop(page, '[data-zone="content"] [data-drop]', ("My cat.png", png()))
    await page.get_by_role("button", name="Mosaic").click()
    await page.get_by_text("Try several values first").click()
    await page.get_by_label("Values down").fill("3, 7")
    await page.locator("[data-axis=columns]").select_option("noise")
    await expect(page.get_by_label("Values across")).to_have_value("0, 5, 10")
    await page.get_by_role("button", name="Begin 6 small pictures").click()
    await page.wait_for_url("**/tables/*")
    await expect(page.locator('td[data-state="done"]')).to_have_count(6, timeout=30_000)
    await expect(page.get_by_role("rowheader", name="Content 7")).to_be_visible()
    await expect(page.get_by_role("columnheader", name="Noise 10")).to_be_visible()
    await page.get_by_label("Make one large").select_option("2")
    cell = page.locator("td[data-cell]").nth(5)
    await cell.hover()
    await cell.get_by_role("button", name="Paint it larger").click()
    await expect(cell.locator(".status")).to_contain_text("1364 × 1024", timeout=20_000)


async def test_a_picture_is_steered_while_it_is_painted(visit: Visit) -> None:
    visit.lab.backend.steps, visit.lab.backend.step_seconds = 400, 0.02
    job = await visit.lab.submit()
    page = await visit.open(job["page"])
    steer = page.get_by_role("button", name="Go on like this")
    await expect(steer).to_be_disabled()
    await expect(page.locator("[data-slot=steps]")).to_contain_text("iteration", timeout=30_000)
    await page.get_by_role("slider", name="Content", exact=True).focus()
    for _ in range(4):
        await page.keyboard.press("ArrowRight")
    await steer.click()
    told = page.get_by_role("list", name="Changed on the way")
    await expect(told).to_contain_text(re.compile(r"At iteration \d+: content 5 → 7"), timeout=20_000)
    await expect(page.locator("[data-chart] .mark")).to_have_count(1)
    await expect(steer).to_be_disabled()
    visit.lab.backend.step_seconds = 0
    await expect(page.locator("article")).to_have_attribute("data-state", "done", timeout=20_000)
    await expect(told).to_contain_text("content 5 → 7")
    await expect(steer).to_have_count(0)


async def test_without_javascript_the_form_still_makes_a_picture(lab: Lab, browser: Browser) -> None:
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(f"{lab.origin}/new")
    await expect(page.locator("[data-regions]")).to_be_hidden()
    await page.locator("[name=content-file]").set_input_files(
        {"name": "My cat.png", "mimeType": "image/png", "buffer": png()}
    )
    await page.locator('[name="style.1"]').select_option("mosaic")
    await page.locator('[name="style.2"]').select_option("swirls")
    await page.locator('[name="weight.2"]').fill("-1")
    await page.locator('[name="weight.2"]').evaluate("(field) => field.removeAttribute('min')")
    await page.get_by_role("radio", name="256").check()
    await page.get_by_role("button", name="Begin").click()
    await expect(page.get_by_role("alert")).to_contain_text("weight")
    await expect(page.locator("[name=content]")).to_contain_text("My cat")  # nothing that was given is lost
    await expect(page.locator('[name="style.2"]')).to_have_value("swirls")
    await expect(page.get_by_role("radio", name="256")).to_be_checked()
    await page.locator('[name="weight.2"]').fill("2")
    await page.get_by_role("button", name="Begin").click()
    await page.wait_for_url("**/jobs/*")
    await expect(page.get_by_role("heading", level=1)).to_have_text("My cat × Mosaic + Swirls")
    await context.close()


async def test_pasted_pictures_fill_what_is_empty(visit: Visit) -> None:
    page = await visit.open("/new")
    for name in ("first", "second"):
        await page.evaluate(
            """([name, data]) => {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                const carried = new DataTransfer();
                carried.items.add(new File([bytes], `${name}.png`, { type: "image/png" }));
                document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carried }));
            }""",
            [name, base64.b64encode(png()).decode()],
        )
        await expect(page.locator("[data-chosen]").filter(has_text=name)).to_have_count(1)
    await expect(page.locator('[data-zone="content"] [data-chosen]')).to_have_text(re.compile("first"))
    await expect(page.locator('[data-zone="style"] [data-chosen]')).to_have_text(re.compile("second"))


async def test_a_file_that_is_no_picture_is_refused_kindly(visit: Visit) -> None:
    page = await visit.open("/new")
    await _drop(page, '[data-zone="style"] [data-drop]', ("notes.png", b"just text"))
    await expect(page.get_by_role("alert")).to_contain_text("Notes: The picture is not an image")
    assert visit.complaints and all("422" in complaint for complaint in visit.complaints)  # the browser's own note
    visit.complaints.clear()


async def test_before_and_after(visit: Visit) -> None:
    job = await visit.lab.submit()
    await visit.lab.done(job["id"])
    page = await visit.open(job["page"])
    split = page.locator("[data-split]")
    await expect(split).to_have_value("50")
    await split.focus()
    await page.keyboard.press("ArrowRight")
    await expect(split).to_have_attribute("aria-valuetext", "51 % before")
    box = await page.locator(".slides").bounding_box()
    assert box
    await page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    await expect(split).to_have_value("25")
    clip = "getComputedStyle(document.querySelector('.slides .before')).clipPath"
    assert await page.evaluate(clip) == "inset(0px 75% 0px 0px)"


async def test_side_by_side_both_pictures_follow(visit: Visit) -> None:
    jobs = [await visit.lab.submit() for _ in range(2)]
    for job in jobs:
        await visit.lab.done(job["id"])
    page = await visit.open(f"/compare?left={jobs[0]['id']}&right={jobs[1]['id']}")
    await page.locator("[data-pane]").first.focus()
    await page.keyboard.press("+")
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator("[data-zoom-text]")).to_have_text("125 %")
    transforms = await page.locator("[data-pane] img").evaluate_all("(all) => all.map((each) => each.style.transform)")
    assert transforms[0] == transforms[1] != ""


async def test_everything_can_be_reached_by_keyboard(visit: Visit) -> None:
    page = await visit.open("/")
    await _filled(page)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the pictures")).to_be_focused()
    name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
    reached = set()
    for _ in range(40):
        await page.keyboard.press("Tab")
        reached.add(await page.evaluate(name))
    assert {"New picture", "Pause all", "Small", "Stages", "Chelsea × Swirls"} <= reached
    assert {"Paint it twice as large: Coffee × Mosaic", "Download: Coffee × Mosaic", "fetch it now"} <= reached


async def test_only_endings_are_announced(visit: Visit) -> None:
    page = await visit.open("/")
    await _filled(page)
    await page.evaluate("""() => {
        window.heard = [];
        const announcer = document.querySelector("[data-announcer]");
        new MutationObserver(() => window.heard.push(announcer.textContent)).observe(announcer, { childList: true });
    }""")
    visit.lab.backend.steps = 20
    for job in (await visit.lab.json("/api/jobs?table=small&limit=3"))["jobs"]:
        await visit.lab.send("POST", f"/api/jobs/{job['id']}/enlarge", None, 201)
    await expect(page.locator("[data-announcer]")).not_to_be_empty(timeout=20_000)
    heard = await page.evaluate("window.heard")
    assert all("done" in text and "%" not in text for text in heard) and len(heard) <= 3


async def test_without_javascript_the_table_still_shows(lab: Lab, browser: Browser) -> None:
    await lab.until(lambda: lab.json("/api/jobs?state=done&table=small"), lambda found: len(found["jobs"]) == 8)
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(lab.origin)
    await expect(page.locator("td .picture")).to_have_count(4)
    await expect(page.locator("td .picture").first).to_be_visible()
    assert await page.locator('meta[http-equiv="refresh"]').count() == 1
    await context.close()


async def _unfold(page: Page) -> None:
    """Everything that the form can show."""
    await page.get_by_role("button", name="Coffee").click()
    await page.get_by_role("button", name="Mosaic").click()
    await page.get_by_role("button", name="Swirls").click()
    await page.get_by_role("radio", name="All in one picture").check()
    for part in await page.locator("details > summary").all():
        await part.click()
    await expect(page.locator("[data-painting-canvas]")).to_be_visible()


async def _steerable(lab: Lab) -> str:
    """The page of a job that can be steered for as long as the test lasts."""
    await lab.send("PUT", "/api/queue", {"paused": True})
    job = await lab.submit()
    await lab.send("POST", f"/api/jobs/{job['id']}/steer", {"attempt": 1, "dials": {"style": 7}})
    return str(job["page"])


@pytest.mark.parametrize("width", [360, 768, 1280, 3840])
async def test_no_page_is_wider_than_the_window(visit: Visit, width: int) -> None:
    job = await visit.lab.submit()
    await visit.lab.done(job["id"])
    await visit.page.set_viewport_size({"width": width, "height": 800})
    for path in ("/", "/tables/stages", "/new", "/pictures", job["page"], f"/compare?left={job['id']}"):
        page = await visit.open(path)
        if path == "/new":
            await _unfold(page)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, path


async def test_at_360_pixels_a_row_becomes_a_section(visit: Visit) -> None:
    await visit.page.set_viewport_size({"width": 360, "height": 740})
    page = await visit.open("/")
    await expect(page.locator('td[data-state="done"]')).to_have_count(4, timeout=20_000)
    cells = [await cell.bounding_box() for cell in await page.locator("td[data-cell]").all()]
    assert all(box and box["width"] >= 140 for box in cells)
    await expect(page.locator("td .caption").first).to_be_visible()
    for control in await page.locator(
        "button:visible:not(.link), .button:visible"
    ).all():  # links in a text may be less
        box = await control.bounding_box()
        assert box and box["height"] >= 24, await control.text_content()


async def test_reduced_motion_is_respected(visit: Visit) -> None:
    await visit.page.emulate_media(reduced_motion="reduce")
    page = await visit.open("/")
    duration = "getComputedStyle(document.querySelector('.button')).transitionDuration"
    assert await page.evaluate(duration) in ("0s", "0.00001s")


@pytest.mark.skipif(AXE is None, reason="AXE_CORE does not name an axe.min.js (npm install --no-save axe-core)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_axe_finds_no_serious_violation(lab: Lab, browser: Browser, scheme: Any, width: int) -> None:
    assert AXE
    job = await lab.submit()
    await lab.done(job["id"])
    await lab.until(lambda: lab.json("/api/jobs?state=done&table=small"), lambda found: len(found["jobs"]) >= 4)
    viewport: Any = {"width": width, "height": 900}
    context = await browser.new_context(
        viewport=viewport, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
    )
    page = await context.new_page()
    found = []
    paths = ["/", "/tables/stages", "/new", "/pictures", job["page"], f"/compare?left={job['id']}", "/nothing"]
    for path in [*paths, await _steerable(lab)]:
        await page.goto(lab.origin + path)
        if path == "/new":
            await _unfold(page)
        await page.add_script_tag(path=AXE)
        violations = (await page.evaluate("axe.run()"))["violations"]
        for each in violations:
            if each["impact"] in ("serious", "critical"):
                found.append((path, each["id"], [node["html"][:120] for node in each["nodes"]][:3]))
    await context.close()
    assert found == []
