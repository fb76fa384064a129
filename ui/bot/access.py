"""Who may ask for a painting, how many, and how large."""

import time

from ui.bot.records import Person, Shelf, Task
from ui.bot.settings import BotSettings

_DAY = 24 * 3600.0


class Access:
    """The operator's rules, and what people have asked for so far.

    Args:
        settings: Of the operator.
        people: What was accepted of whom.
        tasks: All tasks.
    """

    def __init__(self, settings: BotSettings, people: Shelf[Person], tasks: Shelf[Task]) -> None:
        self._settings = settings
        self._people = people
        self._tasks = tasks

    def admits(self, user: int) -> bool:
        """Whether the bot talks to somebody. With an allow-list, only to those on it, even if it is empty."""
        return self._settings.access == "open" or self._is_trusted(user)

    def is_admin(self, user: int) -> bool:
        """Whether somebody may steer the queue."""
        return user in self._settings.admins

    def highest_level(self, user: int) -> int:
        """The largest size that somebody may ask for."""
        highest = self._settings.highest_level
        return highest if self._is_trusted(user) else min(highest, self._settings.highest_level_of_strangers)

    def room(self, user: int) -> int:
        """How many more paintings somebody may have waiting."""
        pending = sum(task.user == user and not task.outcome for task in self._tasks)
        return self._unlimited(user) or self._settings.pending_per_user - pending

    def left_today(self, user: int) -> int:
        """How many more paintings somebody may ask for within a day."""
        return self._unlimited(user) or self._settings.jobs_per_day - len(self._recent(user))

    async def count(self, user: int) -> None:
        """Notes that a painting was accepted."""
        await self._people.put(str(user), Person(accepted=(*self._recent(user), time.time())))

    def _recent(self, user: int) -> tuple[float, ...]:
        person = self._people.get(str(user)) or Person()
        return tuple(moment for moment in person.accepted if moment > time.time() - _DAY)

    def _is_trusted(self, user: int) -> bool:
        return user in self._settings.allowed or user in self._settings.admins

    def _unlimited(self, user: int) -> int:
        return 1_000_000 if self.is_admin(user) else 0
