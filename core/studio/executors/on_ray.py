"""Computes jobs on a Ray cluster: an actor per running job, on a node of its own choice.

    head (this process)                                    node
    RayExecutor ── Order: files as parcels ─────────────▶  Worker, an actor ─▶ LocalExecutor ─▶ backend
                ◀── updates, by a streaming generator ───     (the latest only, while the head is busy)

**Slots** are the nodes' GPUs (or CPUs), and come and go with the nodes. A slot is offered once a worker on its node has
said what it is: a node that can't run this program gets no job. `reserve` starts a worker where there is none, no
more of them than there are jobs, and says no until it is there, so that a hundred of them start side by side. A worker
that has nothing to do ends after a while, and its resources are free. Of several programs on one data directory, each
takes turns on a slot by its lock file.

**What dies.** A worker that goes away ends its run with `LostRunError`; the scheduler queues the job again, and it goes
on elsewhere from its last checkpoint. Whether its machine went away or only the process is told apart: the first is
hardly the job's fault. When the head dies, however it dies, Ray ends its workers, since they are not detached: what
they computed since the last checkpoint is lost, some seconds, and the next head resumes the jobs from the store. To
find living workers again by their names would save these seconds, but then two heads may believe that a run is theirs
(the old one cut off, not dead), the store would have to arbitrate, and results would have to wait somewhere for a head
that may never come. As it is, a worker lives no longer than the head that hears it, and only that head's process may
finish its job in the store: none runs twice to the end, none is lost. (A node that is cut off may compute on for some
seconds before Ray ends what runs there; nobody hears of that.)

Whatever may block in Ray (connecting, creating and killing actors, putting objects) happens in threads.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout

import core
from core.studio.executors.local import TorchBackend, lock_name
from core.studio.executors.ray_cluster import Depot, Node, connect, nodes, request
from core.studio.executors.ray_staff import Site, Staff, Stretch
from core.studio.executors.ray_worker import OpenBackend, Order, Survey, Worker
from core.studio.jobs import (
    Estimate,
    LostRunError,
    PoisonedDeviceError,
    Run,
    Slot,
    StudioSettings,
    Update,
    Wish,
    new_id,
)

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_DEMAND_SECONDS = 30.0
"""The autoscaler is told this often what it has been told already: another program may have told it otherwise."""
_TROUBLE_SECONDS = 30.0
"""A node on which no worker could be started is tried again after this time."""
_PATIENCE_SECONDS = 60.0
"""How long an estimate waits for the first worker of a kind of node."""
_STARTING_SECONDS = 15.0
"""A worker should be there after this time."""
_CLOSE_SECONDS = 1.0
"""How long a worker has to put its things away before it is killed."""
_SHUTDOWN_SECONDS = 15.0
_END_SECONDS = 5.0
"""How long to wait until a killed worker is known to be dead."""
_POLLS = 4
_THREADS = 16


class RayExecutor:
    """Computes on a Ray cluster; see `core.studio.scheduler.Executor`.

    Args:
        locks: Directory of the lock files by which processes take turns on a slot.
        settings: Of the studio.
        open_backend: Makes what computes, on the nodes; it must be importable there.

    Raises:
        DeviceError: Ray isn't installed, or there is no cluster at the address.
    """

    _worker = Worker

    def __init__(self, locks: Path, settings: StudioSettings, open_backend: OpenBackend = TorchBackend) -> None:
        self._connected = connect(settings.ray)
        import ray  # noqa: PLC0415

        self._ray = ray
        found = nodes()
        gpus = settings.ray.gpus if settings.ray.gpus is not None else int(any(node.gpus >= 1 for node in found))
        self._options = settings.ray.model_copy(update={"gpus": gpus})
        self._settings = settings.model_copy(update={"ray": self._options})
        self._locks = locks
        self._open_backend = open_backend
        self._actors = ray.remote(self._worker)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ray")
        self._depot = Depot()
        self._sites: dict[str, Site] = {}
        self._staff: dict[str, Staff] = {}
        self._reserved: dict[str, Staff] = {}
        self._stretches: dict[tuple[str, int], Stretch] = {}
        self._queued = self._running = 0
        self._looking: asyncio.Task[None] | None = None
        self._looked = -math.inf
        self._asked: tuple[int, float] = (0, time.monotonic())
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._opened = time.monotonic()
        self._first = {node.id for node in found}
        self._explored = asyncio.Event()
        self._take_nodes(found)
        if not any(site.places for site in self._sites.values()):
            log.warning("no node of the Ray cluster has a slot yet (one job: %d GPU, %s CPU)", gpus, self._cpus(None))

    # The scheduler's side

    def slots(self) -> Sequence[Slot]:
        """Those of all nodes that are known to work."""
        if not self._closing and self._looking is None and self._looked + self._options.poll_seconds < time.monotonic():
            self._looking = asyncio.create_task(self._look())
        if not self._is_explored():
            return []
        return [slot for site in self._sites.values() for slot in site.slots][: self._options.most_jobs]

    def expect(self, queued: int, running: int) -> None:
        """Bounds how many workers are started, and is the autoscaler's demand."""
        self._queued, self._running = queued, running

    def reserve(self, slot: Slot) -> bool:
        """Takes the slot's worker; where there is none, one is started if jobs want it, and is there another time."""
        staff = self._staff.get(slot.name)
        if staff is None:
            if self._waiting() < self._queued:
                self._hire_for(slot)
            return False
        if staff.survey is None:
            return False
        staff.stay()
        self._reserved[slot.name] = staff
        return True

    def _waiting(self) -> int:
        """Workers that have nothing to do or are about to be there; one that takes long may be on a dead node."""
        soon = time.monotonic() - _STARTING_SECONDS
        idle = [staff for staff in self._staff.values() if self._reserved.get(staff.slot) is not staff]
        return sum(staff.survey is not None or staff.hired > soon for staff in idle)

    def release(self, slot: Slot) -> None:
        """Lets the slot's worker wait for a next job for a while."""
        staff = self._reserved.pop(slot.name, None)
        if staff and staff.dead:
            staff.lock.release()
        elif staff:
            self._rest(staff)

    async def estimate(self, run: Run, slot: Slot | None) -> Estimate:
        """Asks the slot's worker, or one on a node of its kind; if no node is there, fitting is found out later."""
        if slot is None:
            return await self._estimate_anywhere(run)
        order = await self._ask(self._order, replace(run, checkpoint=None, frames=None), new_id())
        while staff := await self._someone_like(slot):
            try:
                return await self._answer(staff, order)
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except self._ray.exceptions.RayError:
                if staff in self._reserved.values():  # its run hears of it by itself
                    break
                await self._end(staff)
        return await self._ask(self._rough_estimate, run)

    async def start(self, run: Run, slot: Slot) -> AsyncGenerator[Update, None]:
        """Computes in the slot's worker; one that doesn't come to a regular end is killed."""
        stretch = Stretch(self._reserved.get(slot.name))
        self._stretches[run.job_id, run.attempt] = stretch
        over = False
        try:
            if stretch.staff is None or stretch.staff.dead:
                raise LostRunError(f"the worker on {slot.name} went away before the run began", machine=True)
            order = await self._ask(self._order, run, stretch.token)
            if not stretch.unwanted:
                async for reference in stretch.begin(order):
                    yield await reference
            over = True
        except self._ray.exceptions.RayTaskError as error:
            cause = _cause(error)
            over = not isinstance(cause, PoisonedDeviceError)
            raise (cause if over else LostRunError(str(cause))) from None
        except self._ray.exceptions.RayError as error:
            assert stretch.staff
            raise await self._lost(stretch.staff, error) from None
        finally:
            del self._stretches[run.job_id, run.attempt]
            if not over and stretch.staff:
                await self._end(stretch.staff)

    def cancel(self, job_id: str, attempt: int, *, keep: bool) -> None:
        """Sends the worker word, which stops after the evaluation that it is in."""
        if stretch := self._stretches.get((job_id, attempt)):
            stretch.stop(keep)

    def steer(self, job_id: str, attempt: int, wish: Wish) -> None:
        """Sends the worker other weights."""
        if stretch := self._stretches.get((job_id, attempt)):
            stretch.steer(wish)

    async def close(self) -> None:
        """Ends all workers, and the Ray of this machine alone if it was started here."""
        self._closing = True
        for task in (self._looking, *self._tasks):
            if task:
                task.cancel()
        await asyncio.gather(*(self._end(staff) for staff in self._staff.values()))
        for staff in self._reserved.values():
            staff.lock.release(force=True)
        self._queued = self._running = 0
        with contextlib.suppress(self._ray.exceptions.RayError, TimeoutError):  # where the cluster itself is gone
            async with asyncio.timeout(_SHUTDOWN_SECONDS):
                await self._tell_demand()
                if self._connected:
                    await self._ask(self._ray.shutdown)
        self._threads.shutdown(wait=False)

    async def _estimate_anywhere(self, run: Run) -> Estimate:
        """On the kind of node that suits it best."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._explored.wait()
        kinds = {slot.kind: slot for slot in self.slots()}
        estimates = [await self.estimate(run, slot) for slot in kinds.values()]
        if not estimates:
            return await self._ask(self._rough_estimate, run)
        return max(estimates, key=lambda estimate: (estimate.holds(run.settings.levels), estimate.total_bytes))

    async def _answer(self, staff: Staff, order: Order) -> Estimate:
        staff.stay()
        staff.questions += 1
        try:
            answer: Estimate = await staff.actor.estimate.remote(order)
            return answer
        finally:
            staff.questions -= 1
            self._rest(staff)

    # Nodes

    async def _look(self) -> None:
        """Takes note of nodes that came or went, and tells how many are wanted."""
        try:
            self._take_nodes(await self._ask(nodes))
            for site in self._sites.values():
                self._explore(site)
            await self._tell_demand()
        except Exception as error:  # such as the cluster's head being started again
            log.warning("the Ray cluster can't be asked: %s", _first_line(error))
        finally:
            self._looked, self._looking = time.monotonic(), None

    def _is_explored(self) -> bool:
        """Whether the nodes that were there at the beginning are known, or had time enough to say what they are.

        Before, no slot is offered: a job must not be refused because it is too large for whichever answered first.
        """
        if not self._explored.is_set():
            first = [site for site in self._sites.values() if site.node.id in self._first and site.places]
            known = all(site.kind is not None or site.tried > self._opened for site in first)
            if known or time.monotonic() > self._opened + _PATIENCE_SECONDS:
                self._explored.set()
        return self._explored.is_set()

    def _take_nodes(self, found: Sequence[Node]) -> None:
        alive = {node.id: node for node in found}
        for node_id in self._sites.keys() - alive.keys():
            for place in self._sites.pop(node_id).places:
                (self._locks / lock_name(place)).unlink(missing_ok=True)
        for node in alive.values():
            self._sites.setdefault(node.id, Site(node, self._places(node)))

    def _places(self, node: Node) -> tuple[str, ...]:
        """Names of the slots that a node has room for."""
        room = int(node.cpus / self._cpus(node)) if node.cpus else 0
        if self._options.gpus:
            room = min(room, int(node.gpus))
        return tuple(f"{node.name}-{node.id[:8]}.{number}" for number in range(room))

    def _slots_of(self, site: Site, kind: str) -> tuple[Slot, ...]:
        """On CPUs all slots of a node share its memory; a GPU is a slot's own."""
        return tuple(Slot(place, place if self._options.gpus else site.node.id, kind) for place in site.places)

    def _cpus(self, node: Node | None) -> float:
        """CPUs of one job (on this node)."""
        alone = max(1.0, node.cpus if node else 0.0)
        return self._options.cpus or (1.0 if self._options.gpus else alone)

    def _explore(self, site: Site) -> None:
        """Starts a worker on a node of which nothing is known yet, on whichever of its slots is free."""
        if site.kind is None and not any(place in self._staff for place in site.places):
            next(filter(None, (self._hire(site, place) for place in site.places)), None)

    async def _tell_demand(self) -> None:
        """Tells the autoscaler, which has nodes started and ended, how many jobs there should be room for."""
        wanted = min(self._queued + self._running, self._options.most_jobs)
        asked, when = self._asked
        if self._options.address and (wanted != asked or (wanted and time.monotonic() - when > _DEMAND_SECONDS)):
            gpus = {"GPU": float(self._options.gpus)} if self._options.gpus else {}
            await self._ask(request, {"CPU": self._cpus(None), **gpus}, wanted)
            self._asked = wanted, time.monotonic()

    # Workers

    def _hire(self, site: Site, place: str) -> Staff | None:
        """Begins to start a worker; none where another process has the slot, or it failed a moment ago."""
        if self._closing or time.monotonic() - site.tried < _TROUBLE_SECONDS:
            return None
        lock = FileLock(self._locks / lock_name(place), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        staff = Staff(site.node, place, lock)
        self._staff[place] = staff
        staff.settling = self._spawn(self._settle(site, staff))
        return staff

    async def _settle(self, site: Site, staff: Staff) -> None:
        try:
            staff.actor = await self._ask(self._create, staff)
            staff.death = self._spawn(self._await_death(staff))
            survey: Survey = await staff.actor.survey.remote()
        except Exception as error:
            site.tried = time.monotonic()
            log.warning("no worker can be started on %s: %s", staff.node.name, _reason(error))
            await self._end(staff)
            return
        if survey.version != core.__version__:
            site.tried = time.monotonic()
            log.error("%s has version %s of this program, not %s", staff.node.name, survey.version, core.__version__)
            await self._end(staff)
            return
        staff.survey = survey
        site.kind, site.slots = survey.kind, self._slots_of(site, survey.kind)
        self._rest(staff)

    def _create(self, staff: Staff) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        there = NodeAffinitySchedulingStrategy(staff.node.id, soft=False)
        amounts = {"num_cpus": self._cpus(staff.node), "num_gpus": self._options.gpus}
        actors = self._actors.options(**amounts, scheduling_strategy=there, max_restarts=0)
        return actors.remote(self._settings, self._opener(staff.slot))

    def _opener(self, slot: str) -> OpenBackend:
        return self._open_backend

    async def _await_death(self, staff: Staff) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            await staff.actor.endure.remote()
        self._bury(staff)

    def _rest(self, staff: Staff) -> None:
        """Ends a worker after a while without work: not before the scheduler could have seen that it is there."""
        if staff.dead or staff.questions or self._reserved.get(staff.slot) is staff:
            return
        staff.stay()
        seconds = max(self._options.idle_seconds, _POLLS * self._settings.poll_seconds)
        staff.leaving = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self._end(staff)))

    async def _end(self, staff: Staff) -> None:
        """Ends a worker, and returns when it is dead: nothing computes any more, its resources are free."""
        if self._staff.get(staff.slot) is staff:
            del self._staff[staff.slot]
        if staff.actor and not staff.dead:
            with contextlib.suppress(self._ray.exceptions.RayError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await staff.actor.close.remote()
            with contextlib.suppress(self._ray.exceptions.RayError, TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._ask(self._ray.kill, staff.actor)
                    if staff.death:
                        await asyncio.wait({staff.death})
        self._bury(staff)

    def _bury(self, staff: Staff) -> None:
        if self._staff.get(staff.slot) is staff:
            del self._staff[staff.slot]
        staff.stay()
        if not staff.dead and self._reserved.get(staff.slot) is not staff:
            staff.lock.release()
        staff.dead = True

    async def _someone_like(self, slot: Slot) -> Staff | None:
        """A worker on this slot, or else on one of its kind; where there is none, one is waited for."""
        alike = [staff for staff in self._staff.values() if self._kind_of(staff) == slot.kind]
        ready = [staff for staff in alike if staff.survey]
        if ready:
            return next((staff for staff in ready if staff.slot == slot.name), ready[0])
        others = [other for other in self.slots() if other.kind == slot.kind]
        starting = alike or self._hire_one(others)
        if settling := {staff.settling for staff in starting if staff.settling}:
            await asyncio.wait(settling, timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return next((staff for staff in starting if staff.survey and not staff.dead), None)

    def _hire_one(self, slots: Sequence[Slot]) -> list[Staff]:
        for slot in slots:
            if staff := self._hire_for(slot):
                return [staff]
        return []

    def _hire_for(self, slot: Slot) -> Staff | None:
        site = self._site_of(slot)
        return self._hire(site, slot.name) if site else None

    def _kind_of(self, staff: Staff) -> str | None:
        site = self._sites.get(staff.node.id)
        return site.kind if site else None

    def _site_of(self, slot: Slot) -> Site | None:
        return next((site for site in self._sites.values() if slot in site.slots), None)

    async def _lost(self, staff: Staff, error: Exception) -> LostRunError:
        """Whether a process went away or its whole machine."""
        if isinstance(error, self._ray.exceptions.ActorUnavailableError) or getattr(error, "preempted", False):
            if site := self._sites.get(staff.node.id):  # Ray may take half a minute to be sure that it is dead
                site.tried = time.monotonic()
            return LostRunError(f"the machine {staff.node.name} can't be reached any more", machine=True)
        try:
            gone = staff.node.id not in {node.id for node in await self._ask(nodes)}
        except Exception:  # nobody can be asked: it isn't the job that did this
            gone = True
        if gone:
            return LostRunError(f"the machine {staff.node.name} went away", machine=True)
        log.warning("the worker on %s ended: %s", staff.slot, _reason(error))
        return LostRunError(f"the process that computed it on {staff.node.name} ended unexpectedly")

    # Below: in threads

    async def _ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task that isn't forgotten while it works."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _order(self, run: Run, token: str) -> Order:
        share = max(1, len(self._stretches))
        return Order(
            token=token,
            run=run,
            files=self._depot.files(run),
            weights=self._depot.weights(run.settings.network, self._settings.weights),
            progress_seconds=max(self._settings.progress_seconds, share / self._options.progress_per_second),
            preview_seconds=max(self._settings.preview_seconds, share / self._options.previews_per_second),
        )

    def _rough_estimate(self, run: Run) -> Estimate:
        """Size and network, as far as they can be told without the device."""
        here = self._open_backend(self._settings.model_copy(update={"devices": ("cpu",)}))
        return replace(here.estimate(run, "cpu"), memory_bytes=0, largest_level=run.settings.levels, seconds=None)


def _cause(error: Any) -> BaseException:
    """What a worker raised, with its traceback for the log."""
    cause = error.cause if isinstance(error.cause, BaseException) else RuntimeError("a worker failed")
    cause.add_note(str(error))
    return cause


def _reason(error: Exception) -> str:
    """What Ray says of a death, without its frame."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
