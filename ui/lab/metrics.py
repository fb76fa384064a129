"""Numbers for Prometheus: requests as they come, the queue as it is when asked."""

import time

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from core.studio import Studio
from ui.lab.events import FEED

_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """The lab's numbers, in a registry of its own.

    Args:
        studio: Whose jobs are counted.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "lab_http_requests", "Requests answered", ("method", "route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "lab_http_request_seconds", "Time to answer", ("route",), registry=self._registry, buckets=_BUCKETS
        )
        self._jobs = Gauge("studio_jobs", "Jobs by state", ("state",), registry=self._registry)
        self._slots = Gauge("studio_slots", "Device slots of this process", ("use",), registry=self._registry)
        self._paused = Gauge("studio_queue_paused", "Whether the queue is paused", registry=self._registry)
        self._streams = Gauge("lab_event_streams", "Pages that listen", registry=self._registry)

    async def response(self, app: web.Application) -> web.Response:
        """All numbers as they are now."""
        for state, count in (await self._studio.counts()).items():
            self._jobs.labels(state).set(count)
        slots = list(self._studio.slots.values())
        self._slots.labels("busy").set(sum(job is not None for job in slots))
        self._slots.labels("idle").set(sum(job is None for job in slots))
        self._paused.set(self._studio.queue_paused)
        self._streams.set(app[FEED].streams)
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


METRICS = web.AppKey("metrics", Metrics)


@web.middleware
async def count_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Counts and times every request, by its route rather than its path, which a stranger could vary for ever."""
    began, status = time.monotonic(), 500
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "none"
        metrics = request.app[METRICS]
        metrics.requests.labels(request.method if route != "none" else "ANY", route, status).inc()
        if route != "/api/events":
            metrics.seconds.labels(route).observe(time.monotonic() - began)
