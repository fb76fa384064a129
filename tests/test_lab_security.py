"""What the lab prevents, each by the name of what would happen otherwise."""

import asyncio
import base64
import hmac
import io
import re
import struct
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

import lab as lab_command
from core.errors import UserError
from core.studio import Studio
from tests.lab_doubles import EMPTY, Lab, open_lab, png
from tests.studio_doubles import SMALL
from ui.lab import LabOptions, create_app, security
from ui.lab.board import BOARD, STUDIO
from ui.lab.security import Access
from ui.lab.uploads import UploadLimits

TOKEN = "a token of reasonable length"
OPEN = {"/healthz"}
"""All that strangers may see."""
SMALL_LIMITS = UploadLimits(file_bytes=20_000, files=3, request_bytes=50_000, pixels=1_000_000, seconds=0.5)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path) as opened:
        yield opened


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path, token=TOKEN) as opened:
        yield opened


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Lab]:
    """A lab that takes little."""
    async with open_lab(tmp_path, limits=SMALL_LIMITS) as opened:
        yield opened


# ── Strangers on the network ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.20", "lab.example.org", ""])
def test_other_machines_dont_reach_a_lab_without_a_token(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="token"):
        create_app(LabOptions(config=EMPTY, host=host))
    assert lab_command.main(["--host", host]) == 2
    told = capsys.readouterr().err
    assert "token" in told and told.count("\n") == 1


def test_an_empty_token_is_not_taken_for_one() -> None:
    with pytest.raises(UserError, match="empty"):
        create_app(LabOptions(config=EMPTY, host="0.0.0.0", token=" "))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    create_app(LabOptions(config=EMPTY, host=host))


def _basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        f"Bearer {TOKEN}x",
        "Bearer ",
        _basic(""),
        _basic("wrong"),
        "Basic !!!",
        f"Digest {TOKEN}",
        TOKEN,
        _basic("ü"),
    ],
)
async def test_a_wrong_token_opens_nothing(guarded: Lab, authorization: str) -> None:
    response = await guarded.get("/", 401, headers={"Authorization": authorization})
    assert response.headers["WWW-Authenticate"].startswith("Basic ")


async def test_the_token_opens_by_the_means_that_browsers_and_scripts_have(guarded: Lab) -> None:
    for authorization in (f"Bearer {TOKEN}", _basic(TOKEN)):
        await guarded.get("/new", headers={"Authorization": authorization})


def test_the_token_can_not_be_guessed_from_the_time_that_refusing_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    genuine = hmac.compare_digest

    def watched(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return genuine(left, right)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    access = Access(hosts=frozenset(), token=TOKEN, secret=b"")
    assert not any(access.admits(f"Bearer {wrong}") for wrong in ("", "a", TOKEN[:-1], TOKEN + "x" * 500))
    assert access.admits(f"Bearer {TOKEN}")
    assert compared == [(32, 32)] * 5  # always digests of one length, by the comparison that looks at all of them


async def test_no_route_is_open_by_being_forgotten(guarded: Lab) -> None:
    paths = {route.resource.canonical for route in guarded.app.router.routes() if route.resource}
    for path in paths | {"/nothing/here"}:
        real = path.replace("{id}", "0" * 24).replace("{width}", "320").replace("{name}", "x").replace("{kind}", "png")
        response = await guarded.client.get(real, headers={"Authorization": "Bearer wrong"})
        assert response.status == (200 if path in OPEN else 401), path


async def test_a_new_route_is_closed() -> None:
    async def forgotten(request: web.Request) -> web.Response:
        return web.Response(text="secret")

    app = web.Application(middlewares=security.GUARDS)
    app[security.ACCESS] = Access(hosts=frozenset({"127.0.0.1"}), token=TOKEN, secret=b"")
    app.router.add_get("/new", forgotten)
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/new")).status == 401


# ── Other sites in a visitor's browser ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil", "a b"]
)
@pytest.mark.parametrize("path", ["/", "/api/jobs", "/healthz", "/static/lab.css", "/api/events"])
async def test_dns_rebinding(lab: Lab, host: str, path: str) -> None:
    await lab.get(path, 421, headers={"Host": host})


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:80", "[::1]:8080"])
async def test_the_labs_own_names_are_known(lab: Lab, host: str) -> None:
    await lab.get("/healthz", headers={"Host": host})


async def test_further_names_come_from_the_configuration(tmp_path: Path) -> None:
    async with open_lab(tmp_path, EMPTY.model_copy(update={"hosts": ("lab.example.org",)})) as lab:
        await lab.get("/healthz", headers={"Host": "lab.example.org"})


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "https://127.0.0.1:1", "file://", "", "{}.evil.example"]
)
async def test_cross_site_requests(lab: Lab, origin: str | None) -> None:
    headers = {"X-CSRF-Token": lab.csrf} | ({} if origin is None else {"Origin": origin.replace("{}", lab.origin)})
    response = await lab.client.put("/api/queue", json={"paused": True}, headers=headers)
    assert response.status == 403
    assert not lab.app[STUDIO].queue_paused


async def test_cross_site_requests_that_browsers_mark(lab: Lab) -> None:
    for site in ("cross-site", "same-site", "none"):
        headers = lab.headers | {"Sec-Fetch-Site": site}
        assert (await lab.client.put("/api/queue", json={"paused": True}, headers=headers)).status == 403


@pytest.mark.parametrize("token", ["", "wrong", "0" * 64])
async def test_changes_without_the_pages_token(lab: Lab, token: str) -> None:
    headers = lab.headers | {"X-CSRF-Token": token}
    assert (await lab.client.put("/api/queue", json={"paused": True}, headers=headers)).status == 403


async def test_one_visitors_page_token_is_no_use_to_another(lab: Lab) -> None:
    lab.client.session.cookie_jar.clear()
    await lab.json("/api/csrf")  # another session
    assert (await lab.client.put("/api/queue", json={"paused": True}, headers=lab.headers)).status == 403


async def test_changes_from_the_page_itself_go_through(lab: Lab) -> None:
    assert (await lab.send("PUT", "/api/queue", {"paused": True}))["paused"] is True


async def test_pages_stay_usable_over_a_restart(tmp_path: Path) -> None:
    async with open_lab(tmp_path) as lab:
        jar = lab.client.session.cookie_jar
        session = next(cookie.value for cookie in jar if cookie.key == security.SESSION_COOKIE)
        before = lab.csrf
    async with open_lab(tmp_path) as lab:
        assert lab.app[security.ACCESS].csrf_token(session) == before


async def test_the_session_is_out_of_reach_for_scripts_and_other_sites(lab: Lab) -> None:
    lab.client.session.cookie_jar.clear()
    cookie = (await lab.get("/api/csrf")).headers["Set-Cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


async def test_every_answer_tells_the_browser_to_trust_nothing_else(lab: Lab) -> None:
    for path, status in (
        ("/new", 200),
        ("/api/jobs", 200),
        ("/nothing", 404),
        ("/static/lab.css", 200),
        ("/api/jobs/x", 404),
    ):
        headers = (await lab.get(path, status)).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        # With no referrer at all, the form would be sent under the origin "null".
        assert headers["Referrer-Policy"] == ("same-origin" if path == "/new" else "no-referrer")
        assert headers["X-Frame-Options"] == "DENY"


async def test_pages_hold_no_inline_script_or_style_and_nothing_from_elsewhere(lab: Lab) -> None:
    job = await lab.submit()
    await lab.done(job["id"])
    for path in ("/new", "/pictures", job["page"], f"/compare?left={job['id']}", "/tables/none"):
        text = await (await lab.client.get(path)).text()
        assert not re.search(r"<script(?![^>]* src=)", text)
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
        assert not re.search(r"(?:src|href|action)=[\"']?(?:https?:)?//", text)


async def test_methods_that_nobody_offered(lab: Lab) -> None:
    for method in ("PUT", "PATCH", "DELETE"):
        response = await lab.client.request(method, "/pictures", headers=lab.headers)
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


# ── Uploads ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"


@pytest.mark.parametrize("name", ["x.svg", "x.html", "x.png", "x.jpg"])
@pytest.mark.parametrize("data", [SVG, HTML, b"GIF89a<script>alert(1)</script>", b"%PDF-1.4", b""])
async def test_stored_script_through_svg_and_html(lab: Lab, tmp_path: Path, name: str, data: bytes) -> None:
    problem = await lab.upload((name, data), status=422)
    assert problem["cause"].startswith("x: ")
    assert not any(data and data in path.read_bytes() for path in (tmp_path / "inputs").iterdir())


async def test_stored_script_behind_a_real_picture(lab: Lab, tmp_path: Path) -> None:
    (picture,) = (await lab.upload(("x.html", png() + HTML)))["pictures"]
    assert b"script" not in (tmp_path / "inputs" / picture["id"]).read_bytes()
    response = await lab.get(picture["thumbnail"])
    assert response.content_type == "image/jpeg"
    assert b"script" not in await response.read()


async def test_stored_script_in_a_file_name(lab: Lab) -> None:
    name = '"><img src=x onerror=alert(1)>.png'
    content, style = (await lab.upload((name, png()), ("s.png", png())))["pictures"]
    references = [{"id": each["id"], "title": each["title"]} for each in (content, style)]
    body = {"content": references[0], "styles": references[1:]}
    job = await lab.send("POST", "/api/jobs", body, 201)
    for page in (job["page"], "/pictures"):
        assert "<img src=x" not in await lab.page(page)


async def test_places_and_cameras_in_pictures_are_not_kept(lab: Lab, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A Camera"
    exif.get_ifd(0x8825)[1] = "N"
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(stream, "JPEG", exif=exif, comment=b"at home")
    (taken,) = (await lab.upload(("x.jpg", stream.getvalue())))["pictures"]
    with Image.open(tmp_path / "inputs" / taken["id"]) as picture:
        assert picture.format == "PNG"
        assert not picture.getexif() and set(picture.info) <= {"icc_profile"}


@pytest.mark.parametrize(
    "path",
    [
        "/static/../lab.py",
        "/static/%2e%2e/lab.py",
        "/static/..%2flab.py",
        "/static//etc/passwd",
        "/static/js/../../lab.py",
        "/media/inputs/../studio.sqlite3/320.jpg",
        "/media/inputs/..%2f..%2fstudio.sqlite3/320.jpg",
        f"/media/jobs/{'0' * 24}/..%2fresult.png",
        "/jobs/../../etc/passwd",
        "/tables/..%2f..%2flab",
    ],
)
async def test_traversal_in_addresses(lab: Lab, path: str) -> None:
    """Sent as it is: clients would tidy it up."""
    head, body = await _raw(lab, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert head.split()[1] in (b"403", b"404", b"400")
    assert b"import" not in body and b"root:" not in body and b"SQLite" not in body


@pytest.mark.parametrize(
    "preset", ["../presets/final", "/etc/passwd.toml", "final.toml", "..", "a\x00b", "https://x/y.toml"]
)
async def test_traversal_in_names_of_presets(lab: Lab, preset: str) -> None:
    taken = (await lab.upload(("a.png", png())))["pictures"][0]["id"]
    body = {"contents": [{"id": taken}], "styles": [{"id": taken}], "wanted": {"preset": preset}}
    assert "no such preset" in (await lab.send("POST", "/api/estimate", body, 422))["cause"]


@pytest.mark.parametrize("sample", ["../../etc/passwd", "/etc/passwd", "swirls/../mosaic", ""])
async def test_traversal_in_names_of_samples(lab: Lab, sample: str) -> None:
    body = {"contents": [{"sample": sample}], "styles": [{"sample": "swirls"}]}
    await lab.send("POST", "/api/estimate", body, 404)


async def test_traversal_in_file_names(lab: Lab, tmp_path: Path) -> None:
    before = {path for path in tmp_path.parent.rglob("*") if path.parent.name != "inputs"}
    for name in ("../../escaped.png", "/tmp/escaped.png", "..\\..\\escaped.png", "CON.png", "." * 300 + ".png"):
        await lab.upload((name, png()))
    after = {path for path in tmp_path.parent.rglob("*") if path.parent.name != "inputs"}
    assert {path.name for path in after - before} <= {"studio.sqlite3-wal", "studio.sqlite3-shm"}
    assert all(re.fullmatch(r"[0-9a-f]{24}", path.name) for path in (tmp_path / "inputs").iterdir())


def _claimed(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and whose rows are a few bytes of zeros, compressed."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 8), (1001, 1000)])
async def test_decompression_bombs(narrow: Lab, width: int, height: int) -> None:
    began = time.monotonic()
    problem = await narrow.upload(("bomb.png", _claimed(width, height)), status=422)
    assert "limit is 1" in problem["cause"]
    assert time.monotonic() - began < 2


async def _raw(lab: Lab, data: bytes, *, seconds: float = 5.0) -> tuple[bytes, bytes]:
    """Sends bytes as they are; the head and the body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.client.port)
    try:
        writer.write(data)
        async with asyncio.timeout(seconds):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.read(100_000) if b"close" in head.lower() else b""
        return head, body
    finally:
        writer.close()


def _upload(lab: Lab, body: bytes, length: int | None) -> bytes:
    """An upload by hand, with any `Content-Length`; none: in chunks."""
    cookies = "; ".join(f"{cookie.key}={cookie.value}" for cookie in lab.client.session.cookie_jar)
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    head = [
        "POST /api/pictures HTTP/1.1",
        f"Host: 127.0.0.1:{lab.client.port}",
        f"Origin: {lab.origin}",
        f"X-CSRF-Token: {lab.csrf}",
        f"Cookie: {cookies}",
        "Content-Type: multipart/form-data; boundary=edge",
        size,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _form(data: bytes, *headers: str, name: str = "picture") -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"; filename="a.png"', *headers]
    return b"--edge\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + data + b"\r\n--edge--\r\n"


def _status(answer: tuple[bytes, bytes]) -> int:
    return int(answer[0].split()[1])


async def test_slow_uploads(narrow: Lab) -> None:
    began = time.monotonic()
    body = _form(png())
    assert _status(await _raw(narrow, _upload(narrow, body[:60], len(body)))) == 408
    assert time.monotonic() - began < 3


async def test_uploads_that_come_a_byte_at_a_time(narrow: Lab) -> None:
    """Each byte would start a timer that watches silence anew; this one watches the whole."""
    body = _form(png())
    reader, writer = await asyncio.open_connection("127.0.0.1", narrow.client.port)
    writer.write(_upload(narrow, b"", len(body)))
    began = time.monotonic()

    async def drip() -> None:
        for number in range(len(body)):
            writer.write(body[number : number + 1])
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(5):
        assert b" 408 " in await reader.readline()
    dripping.cancel()
    writer.close()
    assert time.monotonic() - began < 3


async def test_a_multipart_that_promises_more_than_it_sends(narrow: Lab) -> None:
    body = _form(png())
    assert _status(await _raw(narrow, _upload(narrow, body, len(body) + 1000))) == 408
    cut = body[:-12]
    assert _status(await _raw(narrow, _upload(narrow, cut, len(cut)))) == 400


async def test_a_multipart_that_sends_more_than_it_promises(narrow: Lab) -> None:
    body = _form(bytes(15_000))
    assert _status(await _raw(narrow, _upload(narrow, body, 500))) == 400


async def test_a_multipart_part_that_lies_about_its_own_size(narrow: Lab) -> None:
    for header in (
        "Content-Length: 5",
        "Content-Length: 999999999",
        "Content-Encoding: gzip",
        "Content-Transfer-Encoding: base64",
    ):
        body = _form(png(), header)
        assert _status(await _raw(narrow, _upload(narrow, body, len(body)))) == 400


async def test_an_upload_that_says_that_it_is_too_large(narrow: Lab) -> None:
    """Refused before anything of it is read."""
    assert _status(await _raw(narrow, _upload(narrow, b"", 10**12))) == 413


async def test_an_upload_that_does_not_say_how_large_it_is(narrow: Lab) -> None:
    data = _form(bytes(200_000))
    chunks = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (data[:100_000], data[100_000:]))
    assert _status(await _raw(narrow, _upload(narrow, chunks, None))) == 413


async def test_a_file_that_is_larger_than_one_may_be(narrow: Lab) -> None:
    await narrow.upload(("a.png", bytes(20_001)), status=413)


async def test_files_that_are_together_larger_than_all_may_be(narrow: Lab) -> None:
    await narrow.upload(*[("a.png", bytes(18_000))] * 3, status=413)


async def test_more_parts_than_may_be(narrow: Lab) -> None:
    await narrow.upload(*[("a.png", png())] * 4, status=413)


async def test_parts_within_parts(narrow: Lab) -> None:
    body = (
        b"--edge\r\nContent-Type: multipart/mixed; boundary=inner\r\n\r\n--inner\r\n\r\nx\r\n--inner--\r\n--edge--\r\n"
    )
    assert _status(await _raw(narrow, _upload(narrow, body, len(body)))) == 400


async def test_parts_that_nobody_asked_for(narrow: Lab) -> None:
    body = _form(png(), name="something")
    assert _status(await _raw(narrow, _upload(narrow, body, len(body)))) == 400


async def test_json_that_is_too_large_or_no_json(lab: Lab) -> None:
    large = {"contents": [], "styles": [], "wanted": {"preset": "x" * 600_000}}
    assert (await lab.client.post("/api/estimate", json=large, headers=lab.headers)).status == 413
    for body in (b"{", b"[]", b"\xff", b"[" * 100_000):
        headers = lab.headers | {"Content-Type": "application/json"}
        assert (await lab.client.post("/api/estimate", data=body, headers=headers)).status == 422
    assert (await lab.client.post("/api/estimate", data=b"a=1", headers=lab.headers)).status == 415


# ── What others asked for ────────────────────────────────────────────────────────────────────────────────────────────


async def test_pictures_of_a_chat_are_not_shown_in_the_lab(lab: Lab) -> None:
    studio: Studio = lab.app[STUDIO]
    content = await studio.add_input("tg:1", png())
    job = await studio.submit("tg:1", content, [content], SMALL)
    await studio.wait(job.id)
    for path in ("", "/result.png", "/preview.jpg", "/320.jpg", "/noise.jpg", "/start.jpg"):
        await lab.get(f"/media/jobs/{job.id}{path}", 404)
    await lab.get(f"/jobs/{job.id}", 404)
    await lab.send("POST", f"/api/jobs/{job.id}/cancel", {"attempt": 1}, 404)
    await lab.send("DELETE", f"/api/jobs/{job.id}", None, 404)
    assert (await lab.json("/api/jobs"))["jobs"] == []


async def test_an_error_of_ours_tells_a_stranger_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the database is at /home/someone/secret")

    monkeypatch.setattr(lab.app[BOARD], "queue", broken)
    problem = await lab.json("/api/queue", 500)
    assert "secret" not in str(problem) and "Runtime" not in str(problem)
