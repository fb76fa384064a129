"""One stream of server-sent events per page: what changed, as it is now.

The feed keeps the latest state of every item (a cell, a job, the queue, the network) and a number that grows with every
change. A stream that is slow, or was away for a while, gets each item that changed since its number once, as it is now;
what it was in between nobody misses. A stream whose number isn't known (any more) begins with a snapshot of its page.

    id: 5f3a-1207          era of this process, number of the change
    event: cell            or job, table, queue, network, removed, snapshot
    data: {…}              a JSON object; of a snapshot {"items": [{"event": …, "data": …}, …]}
"""

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

HEARTBEAT_SECONDS = 15.0
"""A comment in a silent stream, so that neither side takes it for dead."""
PAUSE_SECONDS = 0.2
"""Changes within this time are sent together, and each item once."""
_LONGEST_PAUSE_SECONDS = 2.0
_SECONDS_PER_EVENT = 0.0002
"""Rough cost of sending one event to one page; pauses grow with it, so that many pages can't use up the loop."""
MOST_STREAMS = 256
_STALLED_SECONDS = 30.0
_REMEMBERED = 4096

Key = tuple[str, ...]
"""An item: ("cell", table, row, column), ("job", id), ("table", name), ("queue",) or ("network",)."""
Message = tuple[str, BaseModel]
"""The kind of an event and its data."""


@dataclass(frozen=True)
class Topic:
    """What a page wants to hear of: one table, one job, or (neither) all jobs; always of the queue and the network."""

    table: str | None = None
    job: str | None = None

    def wants(self, key: Key) -> bool:
        """Whether an item belongs to the page."""
        kind, *names = key
        if kind in ("queue", "network"):
            return True
        if self.table is not None:
            return kind in ("cell", "table") and names[0] == self.table
        return kind == "job" and self.job in (None, names[0])


@dataclass(eq=False)
class Item:
    """The latest change of something. Its data is computed when somebody wants it, and once for all of them."""

    number: int
    event: str
    data: Callable[[], BaseModel]
    _text: str | None = None

    def text(self) -> str:
        """The event's lines, without its id."""
        if self._text is None:
            self._text = f"event: {self.event}\ndata: {self.data().model_dump_json()}\n\n"
        return self._text


@dataclass(eq=False)
class Listener:
    """One stream's place at the feed."""

    topic: Topic
    waiting: OrderedDict[Key, Item] = field(default_factory=OrderedDict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def offer(self, key: Key, item: Item) -> None:
        """Called by the feed with every change."""
        if self.topic.wants(key):
            self.waiting.pop(key, None)  # and at the end, so that numbers only grow
            self.waiting[key] = item
            self.news.set()

    def end(self) -> None:
        """Called by the feed when nothing more will come."""
        self.ended = True
        self.news.set()

    async def next(self, within: float) -> list[Item]:
        """What changed since the last call; empty after `within` seconds of silence, or at the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.news.wait()
        if not self.ended:
            self.news.clear()
        items = list(self.waiting.values())
        self.waiting.clear()
        return items


class Feed:
    """The latest state of everything that pages show, and who listens."""

    def __init__(self) -> None:
        self._era = secrets.token_hex(4)
        self._number = 0
        self._forgotten = 0
        self._latest: OrderedDict[Key, Item] = OrderedDict()
        self._listeners: set[Listener] = set()
        self._closed = False

    @property
    def streams(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @property
    def last_id(self) -> str:
        """Id of the latest change."""
        return self.id_of(self._number)

    def id_of(self, number: int) -> str:
        """The id under which a change is sent."""
        return f"{self._era}-{number}"

    def publish(self, key: Key, event: str, data: Callable[[], BaseModel]) -> None:
        """Tells a change; `data` says how the item is by the time that somebody is told."""
        self._number += 1
        item = Item(self._number, event, data)
        self._latest.pop(key, None)
        self._latest[key] = item
        if len(self._latest) > _REMEMBERED:
            _, forgotten = self._latest.popitem(last=False)
            self._forgotten = forgotten.number
        for listener in self._listeners:
            listener.offer(key, item)

    @contextlib.contextmanager
    def listen(self, topic: Topic) -> Iterator[Listener]:
        """Takes part from now on."""
        listener = Listener(topic, ended=self._closed)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def since(self, last_id: str, topic: Topic) -> list[Item] | None:
        """What changed after an id; none where that isn't known (any more)."""
        era, _, number = last_id.partition("-")
        if era != self._era or not number.isdecimal() or not self._forgotten <= int(number) <= self._number:
            return None
        return [item for key, item in self._latest.items() if item.number > int(number) and topic.wants(key)]

    def close(self) -> None:
        """Ends all streams, now and to come."""
        self._closed = True
        for listener in self._listeners:
            listener.end()


Snapshot = Callable[[Topic], Awaitable[list[Message]]]
"""Gives everything that a page shows, as it is now."""

FEED = web.AppKey("feed", Feed)
SNAPSHOT: web.AppKey[Snapshot] = web.AppKey("snapshot", Snapshot)  # type: ignore[arg-type]


async def stream(request: web.Request) -> web.StreamResponse:
    """Serves one stream until the page or the lab closes.

    The query says what for: `?table=NAME`, `?job=ID`, or nothing for all jobs.
    """
    feed, topic = request.app[FEED], Topic(request.query.get("table"), request.query.get("job"))
    if feed.streams >= MOST_STREAMS:
        raise web.HTTPServiceUnavailable(text="Too many pages are open.", headers={"Retry-After": "10"})
    response = web.StreamResponse()
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    await response.prepare(request)
    with feed.listen(topic) as listener, contextlib.suppress(ConnectionError, TimeoutError):
        await _send(response, "retry: 2000\n\n" + await _beginning(request, topic))
        while not listener.ended:
            items = await listener.next(HEARTBEAT_SECONDS)
            await _send(response, _joined(feed, items) if items else ": still here\n\n")
            if not listener.ended:
                await asyncio.sleep(_pause(len(items), feed.streams))
    return response


def _pause(items: int, streams: int) -> float:
    """How long a stream collects changes before it sends the next ones."""
    return min(max(PAUSE_SECONDS, items * streams * _SECONDS_PER_EVENT), _LONGEST_PAUSE_SECONDS)


async def _beginning(request: web.Request, topic: Topic) -> str:
    """What the page missed; all of it where that can't be known."""
    feed, last_id = request.app[FEED], request.headers.get("Last-Event-ID", "")
    missed = feed.since(last_id, topic) if last_id else None
    if missed is not None:
        return _joined(feed, missed)
    number = feed.last_id  # what changes while the snapshot is taken comes again after it
    messages = await request.app[SNAPSHOT](topic)
    items = ",".join(f'{{"event":"{event}","data":{data.model_dump_json()}}}' for event, data in messages)
    return f'id: {number}\nevent: snapshot\ndata: {{"items":[{items}]}}\n\n'


def _joined(feed: Feed, items: list[Item]) -> str:
    return "".join(f"id: {feed.id_of(item.number)}\n{item.text()}" for item in items)


async def _send(response: web.StreamResponse, text: str) -> None:
    """Writes, unless the other side doesn't read any more."""
    async with asyncio.timeout(_STALLED_SECONDS):
        await response.write(text.encode())
