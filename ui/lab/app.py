"""The lab as an application: what it is made of, and in which order it is opened and closed."""

import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp_jinja2
import jinja2
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from core.errors import UserError
from core.studio import Studio, StudioSettings, default_data_directory
from core.studio.scheduler import Executor
from ui.lab import api, events, media, metrics, networks, security, uploads, views
from ui.lab.board import BOARD, STUDIO, Board
from ui.lab.filling import Filler
from ui.lab.messages import Problem
from ui.lab.shelf import SHELF, Shelf
from ui.lab.tables import LabConfig

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_TEMPLATES = _ROOT / "templates"
_STATIC = _ROOT / "static"
_LARGEST_BODY = 512 * 1024
"""Of JSON; uploads are counted by their own door."""
_SHUTDOWN_SECONDS = 2.0
"""For requests that are being answered when the lab closes; streams are ended before."""
_KEPT_HEADERS: tuple[str, ...] = (hdrs.ALLOW, hdrs.CONNECTION, hdrs.RETRY_AFTER, hdrs.WWW_AUTHENTICATE)
_SPACE = "lab"

Companion = Callable[[Studio], AbstractAsyncContextManager[object]]
"""Something else that serves the same studio in this process for as long as its context is open, such as the bot."""


@dataclass(frozen=True)
class LabOptions:
    """How a lab is opened.

    Attributes:
        config: What it shows and takes.
        data: The studio's data directory; none: the usual one.
        host: Where it listens.
        port: Likewise; 0 takes a free one.
        token: What visitors must know; none: nobody needs one.
    """

    config: LabConfig
    data: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None

    @property
    def folder(self) -> Path:
        """Where own pictures lie."""
        return (self.data or default_data_directory()) / Path(self.config.folder).expanduser()


def create_app(
    options: LabOptions,
    *,
    studio_settings: StudioSettings | None = None,
    executor: Executor | None = None,
    companions: Sequence[Companion] = (),
) -> web.Application:
    """The lab, closed; whoever runs the application opens it.

    Args:
        options: How it is opened.
        studio_settings: None: the defaults.
        executor: Where pictures are computed; none: in threads of this process.
        companions: What else is to serve the studio.

    Raises:
        UserError: The address can be reached from other machines, and there is no token.
    """
    security.check_address(options.host, options.token)
    app = web.Application(
        middlewares=(metrics.count_requests, answer_errors, *security.GUARDS), client_max_size=_LARGEST_BODY
    )
    app[events.FEED] = events.Feed()
    app[uploads.UPLOADS] = uploads.Uploads(options.config.uploads)
    aiohttp_jinja2.setup(
        app,
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        filters={"moment": _moment},
    )
    app.add_routes([*api.routes(), *views.routes()])
    app.router.add_static("/static", _STATIC)
    app.on_response_prepare.append(security.send_headers)
    app.on_shutdown.append(_end_streams)

    async def opened(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            studio = await stack.enter_async_context(Studio.open(options.data, studio_settings, executor))
            await _furnish(app, studio, options)
            await app[SHELF].load()
            stack.push_async_callback(app[SHELF].close)
            await stack.enter_async_context(app[BOARD].open())
            await stack.enter_async_context(Filler(app[BOARD], app[SHELF], studio).open())
            for companion in companions:
                await stack.enter_async_context(companion(studio))
            yield

    app.cleanup_ctx.append(opened)
    return app


def _moment(seconds: float, pattern: str) -> str:
    """A time, in seconds since 1970, as text."""
    return datetime.fromtimestamp(seconds, UTC).strftime(pattern)


async def _furnish(app: web.Application, studio: Studio, options: LabOptions) -> None:
    """Everything that needs an open studio."""
    feed = app[events.FEED]
    app[STUDIO] = studio
    app[security.ACCESS] = security.Access(
        hosts=security.names_of(options.host, options.config.hosts), token=options.token, secret=await _secret(studio)
    )
    app[media.MEDIA] = media.Media(studio)
    app[metrics.METRICS] = metrics.Metrics(studio)
    app[networks.NETWORKS] = networks.Networks(feed)
    await app[networks.NETWORKS].look()

    def tell_ready(picture: str) -> None:
        app[BOARD].tell_ready(picture)

    app[SHELF] = Shelf(studio, app[uploads.UPLOADS], options.folder, tell_ready)
    app[BOARD] = Board(studio, feed, app[SHELF], app[networks.NETWORKS], options.config)
    app[events.SNAPSHOT] = app[BOARD].snapshot


async def _secret(studio: Studio) -> bytes:
    kept = await studio.records.get(_SPACE, "secret")
    if not isinstance(kept, str):
        kept = secrets.token_hex(32)
        await studio.records.put(_SPACE, "secret", kept)
    return bytes.fromhex(kept)


async def _end_streams(app: web.Application) -> None:
    """So that no open page holds up the end."""
    app[events.FEED].close()
    app[networks.NETWORKS].close()


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns errors into answers: JSON for programs, a page for people, and no traceback for either."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        problem = Problem(cause=_cause(error))
        kept = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
        response = _answer(request, problem, error.status, kept)
        if hdrs.CONNECTION in kept:
            response.force_close()
        return response
    except UserError as error:
        return _answer(request, Problem(cause=error.cause, remedy=error.remedy), api.status_of(error), {})
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        problem = Problem(cause="something went wrong in the lab", remedy="The operator finds it in the log")
        return _answer(request, problem, 500, {})


def _cause(error: web.HTTPException) -> str:
    """What a guard or a handler says; in place of aiohttp's own words, ours."""
    own_words = error.text and error.text != f"{error.status}: {error.reason}"
    plain = {404: "there is nothing at this address", 405: "this can't be done here"}
    return (error.text or "") if own_words else plain.get(error.status, error.reason)


def _answer(request: web.Request, problem: Problem, status: int, headers: dict[str, str]) -> web.Response:
    if request.path.startswith(("/api/", "/media/", "/healthz", "/metrics")):
        response = api.json_response(problem, status=status)
    else:
        context = {"problem": problem, "status": status}
        response = aiohttp_jinja2.render_template("error.html", request, context, status=status)
    response.headers.update(headers)
    return response


# ── Serving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def serve(options: LabOptions, *, companions: Sequence[Companion] = ()) -> int:
    """Opens the lab, says where it is, and serves until it is told to stop.

    Returns:
        The exit status: 0, or 3 where a device is beyond use and the process should be started again.

    Raises:
        UserError: The address or the data directory can't be used.
    """
    app = create_app(options, companions=companions)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_SECONDS)
    stop = _on_signals()
    try:
        await runner.setup()
        site = web.TCPSite(runner, options.host, options.port)
        try:
            await site.start()
        except OSError as error:
            cause = f"{options.host}:{options.port} can't be used: {error.strerror or error}"
            raise UserError(cause, "Choose another --port") from error
        print(f"The lab is at {_address(runner, options)}", flush=True)
        return await _until_the_end(app[STUDIO], stop)
    finally:
        await runner.cleanup()


def _on_signals() -> asyncio.Event:
    """Set when the process is asked to end."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows, Ctrl+C raises KeyboardInterrupt
            loop.add_signal_handler(number, stop.set)
    return stop


async def _until_the_end(studio: Studio, stop: asyncio.Event) -> int:
    tasks = [asyncio.create_task(stop.wait()), asyncio.create_task(studio.until_fatal())]
    _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return 3 if studio.fatal else 0


def _address(runner: web.AppRunner, options: LabOptions) -> str:
    port = runner.addresses[0][1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{port}"
