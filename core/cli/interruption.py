"""Ctrl-C and SIGTERM: the first one asks for an orderly end, the second one gets an immediate one."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self

_SHOW_CURSOR = b"\x1b[?25h"


class Interruption:
    """A context in which the first SIGINT or SIGTERM sets `asked`; from then on the system deals with them.

    Until `patient` is set there is nothing worth an orderly end, and the first signal raises KeyboardInterrupt.
    Signals that are ignored, as those of a background job, stay so.
    """

    def __init__(self) -> None:
        self.asked = False
        self.patient = False
        signals = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.getsignal(number) for number in signals}
        self._mine = [number for number in signals if self._before[number] is not signal.SIG_IGN]

    def __enter__(self) -> Self:
        for number in self._mine:
            signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._mine:
            signal.signal(number, self._before[number])

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # Not a handler of ours: Python calls those between two operations only, and one can take seconds.
        for mine in self._mine:
            signal.signal(mine, signal.SIG_DFL)
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)  # a live display hides it, and has no chance to show it again if killed
        if not self.patient:
            raise KeyboardInterrupt
