"""Work that takes its time, off the event loop."""

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function in a thread of its own and waits for what it returns.

    Unlike those of `asyncio.to_thread`, the thread doesn't keep a process alive that is asked to end: painting a style
    or decoding a large picture takes seconds, and loses nothing by being broken off.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args, **kwargs)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            return

    threading.Thread(target=work, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await future
