"""A lab that opens at once: real pages, real studio, and an engine that paints plain colours."""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from core import images
from core.pyramid import level_size
from core.studio import StudioSettings
from core.studio.executors.local import LocalExecutor, Moment
from core.studio.jobs import Estimate, LevelLoss, Output, Progress, Run, Slot
from ui.lab import LabOptions, create_app, shelf
from ui.lab.board import STUDIO
from ui.lab.tables import LabConfig
from ui.lab.uploads import UploadLimits

GIB = 2**30
QUICK = StudioSettings(
    preview_seconds=0, progress_seconds=0, record_seconds=0, poll_seconds=0.05, shutdown_seconds=2, pending_in_all=1000
)
Colour = tuple[float, float, float]
EMPTY = LabConfig()
SMALL_TABLE: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "contents": ["chelsea", "coffee"],
    "styles": ["swirls", "mosaic"],
    "level": 1,
}


def config_of(*tables: dict[str, Any], **more: Any) -> LabConfig:
    """A configuration of these tables."""
    return LabConfig.model_validate({"tables": list(tables), **more})


def plain(colour: Colour, height: int = 48, width: int = 64) -> torch.Tensor:
    """A picture of one colour: [1, 3, height, width]."""
    return torch.tensor(colour).reshape(1, 3, 1, 1).expand(1, 3, height, width).contiguous()


def png(colour: Colour = (0.9, 0.2, 0.1), height: int = 48, width: int = 64, **options: Any) -> bytes:
    """The same as a file."""
    return images.encode(plain(colour, height, width), **options)


class Plain:
    """A backend that turns a content slowly into the style's mean colour, at a sixteenth of the size asked for.

    Args:
        steps: Iterations of a run.
        step_seconds: How long one takes.
    """

    def __init__(self, steps: int = 3, step_seconds: float = 0.0) -> None:
        self.steps = steps
        self.step_seconds = step_seconds
        self.runs: list[tuple[str, int]] = []
        """Job and level of every run, in order."""
        self.taken: list[Run] = []
        """The same in full."""
        self.steered: list[tuple[Mapping[str, Any], int]] = []
        """New weights, and the iteration after which they came."""
        self.refuse: Exception | None = None

    def slots(self) -> list[Slot]:
        return [Slot("test", "test", "test")]

    def estimate(self, run: Run, device: str) -> Estimate:
        head = images.probe(run.content)
        height, width = level_size((head.height, head.width), run.settings.levels)
        return Estimate(width, height, GIB, 8 * GIB, 8 * GIB, largest_level=6, network="compact")

    def compute(
        self, run: Run, device: str, checkpoint: bytes | None, remark: Callable[[str], None]
    ) -> Generator[Moment, None, Output]:
        self.runs.append((run.job_id, run.settings.levels))
        self.taken.append(run)
        if self.refuse:
            raise self.refuse
        content, style = images.read(run.content).pixels, images.read(run.styles[0]).pixels
        height, width = level_size((content.shape[2], content.shape[3]), run.settings.levels)
        small = images.resize(content, (max(8, height // 16), max(8, width // 16))).clamp(0, 1)
        goal = style.mean((2, 3), keepdim=True)
        picture = small
        for number in range(1, self.steps + 1):
            time.sleep(self.step_seconds)
            picture = small + (goal - small) * number / self.steps
            progress = _progress(run, number, self.steps, width, height)
            wishes: list[Mapping[str, Any]] = []
            yield Moment(progress, lambda: b"", _file(picture, "jpeg"), wishes.append)
            self.steered += [(changes, number) for changes in wishes]
        recipe = {"settings": run.settings.model_dump(mode="json")}
        return Output(images.encode(picture, recipe=recipe), "png", width, height)

    def film(self, frames: Sequence[bytes]) -> tuple[bytes, str]:
        from PIL import Image

        stream = io.BytesIO()
        first, *others = [Image.open(io.BytesIO(frame)) for frame in frames]
        first.save(stream, "GIF", save_all=True, append_images=others, duration=100)
        return stream.getvalue(), "gif"

    def out_of_memory(self, error: BaseException) -> bool:
        return False

    def poisoned(self, device: str) -> bool:
        return False

    def clean(self, device: str) -> None:
        pass


def _progress(run: Run, number: int, steps: int, width: int, height: int) -> Progress:
    levels = tuple(
        LevelLoss(level=level, content=0.5, style=1 / number, tv=0.0) for level in range(run.settings.levels + 1)
    )
    return Progress(
        stage=0,
        stages=1,
        iteration=number,
        iterations=steps,
        evaluations=number + 1,
        loss=1 / number,
        levels=levels,
        seconds=0.1 * number,
        width=width,
        height=height,
    )


def _file(picture: torch.Tensor, format: str) -> Callable[[], bytes]:
    return lambda: images.encode(picture, format)


@dataclass
class Lab:
    """An open lab and a visitor whose browser does what browsers do."""

    client: TestClient[web.Request, web.Application]
    backend: Plain
    painted: list[str] = field(default_factory=list)
    """Samples that were painted (all of them plain)."""
    csrf: str = ""

    @property
    def app(self) -> web.Application:
        app = self.client.server.app  # type: ignore[attr-defined]
        assert isinstance(app, web.Application)
        return app

    @property
    def origin(self) -> str:
        return str(self.client.make_url("/")).rstrip("/")

    @property
    def headers(self) -> dict[str, str]:
        return {"Origin": self.origin, "X-CSRF-Token": self.csrf}

    async def get(self, path: str, status: int = 200, **options: Any) -> aiohttp.ClientResponse:
        response = await self.client.get(path, **options)
        assert response.status == status, await response.text()
        return response

    async def json(self, path: str, status: int = 200) -> Any:
        return await (await self.get(path, status)).json()

    async def page(self, path: str, status: int = 200) -> str:
        return await (await self.get(path, status)).text()

    async def send(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        options = {} if body is None else {"json": body}
        response = await self.client.request(method, path, headers=self.headers, **options)
        assert response.status == status, await response.text()
        return await response.json()

    async def upload(self, *files: tuple[str, bytes], status: int = 201, to: str = "pictures") -> Any:
        form = aiohttp.FormData(quote_fields=False)  # as browsers send names
        for name, data in files:
            form.add_field("picture", data, filename=name)
        response = await self.client.post(f"/api/{to}", data=form, headers=self.headers)
        assert response.status == status, await response.text()
        return await response.json()

    async def submit(self, level: int = 0, **wanted: Any) -> Any:
        """A job of two uploaded pictures."""
        taken = await self.upload(("content.png", png()), ("style.png", png((0.1, 0.3, 0.9))))
        content, style = ({"id": each["id"], "title": each["title"]} for each in taken["pictures"])
        body = {"content": content, "styles": [style], "wanted": {"level": level, **wanted}}
        return await self.send("POST", "/api/jobs", body, 201)

    async def done(self, job_id: str) -> Any:
        """The job when it has ended."""
        return (await self.until(lambda: self.json(f"/api/jobs/{job_id}"), _has_ended))["job"]

    async def until(self, look: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], seconds: float = 20) -> Any:
        """Looks again whenever something changes, until what is seen is good."""
        async with asyncio.timeout(seconds):
            with self.app[STUDIO].subscribe() as events:
                while not good(seen := await look()):
                    await events.next(within=0.5)
                return seen


def _has_ended(detail: Any) -> bool:
    return detail["job"]["state"] in ("done", "failed", "cancelled")


@contextlib.asynccontextmanager
async def open_lab(
    data: Path,
    config: LabConfig = EMPTY,
    *,
    backend: Plain | None = None,
    settings: StudioSettings = QUICK,
    token: str | None = None,
    limits: UploadLimits | None = None,
) -> AsyncIterator[Lab]:
    """Opens a lab in a data directory, and closes it."""
    if limits:
        config = config.model_copy(update={"uploads": limits})
    backend = backend or Plain()
    (data / "locks").mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(data / "locks", settings, backend)
    options = LabOptions(config=config, data=data, token=token)
    app = create_app(options, studio_settings=settings, executor=executor)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    painted: list[str] = []

    def paint(key: str) -> bytes:
        painted.append(key)
        shade = (1 + len(painted) % 8) / 10
        return png((shade, shade, shade))

    with mock.patch.object(shelf, "_painted", paint):
        async with TestClient(TestServer(app, shutdown_timeout=2), headers=headers) as client:
            lab = Lab(client, backend, painted)
            lab.csrf = (await lab.json("/api/csrf"))["token"]
            yield lab
