"""Ctrl-C and SIGTERM: the first one asks for an orderly end, the second one gets an immediate one."""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Self

INTERRUPTED = 130
"""Exit code, as shells give it to a program that Ctrl-C ended."""

_SHOW_CURSOR = b"\x1b[?25h"


class Interruption:
    """A context in which the first SIGINT or SIGTERM sets `asked`, and the second ends the process.

    Until `patient` is set there is nothing worth an orderly end, and the first one raises KeyboardInterrupt. Signals
    that are ignored, as those of a background job, stay so.
    """

    def __init__(self) -> None:
        self.asked = False
        self.patient = False
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._mine = [number for number, handler in self._before.items() if handler is not signal.SIG_IGN]

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        for number in self._mine:
            signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._mine:
            signal.signal(number, self._before[number])
        signal.set_wakeup_fd(self._wakeup_before)
        self._writer.close()
        self._watcher.join()
        self._reader.close()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self.patient:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Counts signals as they come: `_ask` has to wait until the main thread's operation is over, maybe seconds."""
        received = 0
        while numbers := self._reader.recv(64):
            received += sum(number in self._mine for number in numbers)
            self.asked = self.asked or received > 0
            if received > 1:
                _quit()


def _quit() -> None:
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)  # a live display has hidden it
    os._exit(INTERRUPTED)
