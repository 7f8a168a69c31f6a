"""on_short_thread: do something on a thread that ends with it, so that nothing of the thread is left.

OpenMP keeps a pool of threads for each thread that has ever computed in parallel. While all pools together have more
threads than the machine has processors, GCC's runtime lets them sleep between two parallel sections instead of waiting
awake for the next one (``GOMP_SPINCOUNT`` in libgomp's manual). A step of the engine has hundreds of sections. With the
models loaded by the main thread, and the engine driven by its own, a step took a quarter to a third longer.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# How often the caller looks up: on Windows, nothing interrupts a wait.
_LOOK_SECONDS: Final = 0.2
# How long the thread may take to end once it is interrupted; it may be in a long call of a library.
_ENDING_SECONDS: Final = 10.0


def on_short_thread(function: Callable[[], T], name: str) -> T:
    """Call a function on a thread of its own, and wait for it.

    An interrupt of the caller interrupts the function, too, before the next instruction of Python that it comes to: a
    call of a library, or a program that it waits for, ends first.

    Args:
        function: What to do.
        name: The thread's name.

    Raises:
        BaseException: What ``function`` raises, or what interrupts the caller.
    """
    outcome: Future[T] = Future()
    ended = threading.Event()

    def main() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001  (raised by the caller)
            outcome.set_exception(error)
        finally:
            ended.set()

    thread = threading.Thread(target=main, name=name, daemon=True)
    thread.start()
    try:
        # Not Thread.join: in Python 3.11 one that was interrupted takes the thread for ended.
        while not ended.wait(_LOOK_SECONDS):
            pass
    except BaseException:
        _interrupt(thread)
        ended.wait(_ENDING_SECONDS)
        raise
    thread.join()
    return outcome.result()


def _interrupt(thread: threading.Thread) -> None:
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
