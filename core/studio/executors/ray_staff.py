"""A Ray cluster's nodes, workers and runs, as the head keeps them in mind."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock

from core.studio.executors.ray_cluster import Node
from core.studio.executors.ray_worker import Order, Survey
from core.studio.jobs import Slot, Wish, new_id


@dataclass(eq=False)
class Staff:
    """A worker on a slot: first it gets ready, then it runs or waits, and in the end it is dead."""

    node: Node
    slot: str
    lock: FileLock
    hired: float = field(default_factory=time.monotonic)
    actor: Any = None
    survey: Survey | None = None
    """What it said of itself; none until it is ready."""
    settling: "asyncio.Task[None] | None" = None
    death: "asyncio.Task[None] | None" = None
    leaving: asyncio.TimerHandle | None = None
    questions: int = 0
    """Estimates that it is asked for at the moment."""
    dead: bool = False

    def stay(self) -> None:
        """There is something to do."""
        if self.leaving:
            self.leaving.cancel()


@dataclass(eq=False)
class Site:
    """A node with what is known of it."""

    node: Node
    places: tuple[str, ...]
    slots: tuple[Slot, ...] = ()
    """None until a worker has said what the node is."""
    kind: str | None = None
    tried: float = -math.inf
    """When no worker could be started here."""


@dataclass(eq=False)
class Stretch:
    """One stretch of computing, from a start to an end."""

    staff: Staff | None
    token: str = field(default_factory=new_id)
    sent: bool = False
    unwanted: bool = False
    wishes: list[Wish] = field(default_factory=list)
    """Those that came before it was sent."""

    def begin(self, order: Order) -> Any:
        """The generator of references to updates; at most one that isn't fetched yet is made."""
        assert self.staff
        self.sent = True
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        stream = self.staff.actor.run.options(**options).remote(order)
        for wish in self.wishes:
            self.steer(wish)
        return stream

    def stop(self, keep: bool) -> None:
        """Sends the worker word, or sees to it that nothing is begun."""
        self.unwanted = True
        if self.sent and self.staff:
            self.staff.actor.cancel.remote(self.token, keep=keep)

    def steer(self, wish: Wish) -> None:
        """Sends the worker other weights, once it has the run."""
        if self.sent and self.staff:
            self.staff.actor.steer.remote(self.token, wish)
        else:
            self.wishes.append(wish)
