"""Stand-ins for what computes that can be sent to the workers of a Ray cluster."""

from dataclasses import dataclass

from core.studio.executors.local import Backend
from core.studio.jobs import StudioSettings
from tests.studio_doubles import Rehearsal


@dataclass(frozen=True)
class Opener:
    """Opens a `Rehearsal` on a worker."""

    steps: int | None = None
    step_seconds: float = 0.0

    def __call__(self, settings: StudioSettings) -> Backend:
        return Rehearsal(self.steps, self.step_seconds)
