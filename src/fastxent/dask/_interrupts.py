"""Ctrl-C while a scheduler of Dask's runs tasks in this process."""

from __future__ import annotations

import signal
import threading

import dask
from dask.callbacks import Callback

__all__ = ["compute"]


def compute(*tasks):
    """``dask.compute(*tasks)`` that Ctrl-C ends when the next task begins or has ended; a second one ends it at once.

    `KeyboardInterrupt` may be raised inside `threading.Condition`, whose lock is then never released: a thread of
    Dask's pool that asks for it would wait forever, and with it every computation after this one.  So the handler of
    SIGINT is called from a callback of Dask's, where no lock is held.
    """
    handler, caller = signal.getsignal(signal.SIGINT), threading.get_ident()
    if not callable(handler):  # ignored, or left to the system
        return dask.compute(*tasks)
    pressed = []

    def hold(*received):
        if pressed:
            handler(*received)
        else:
            pressed.append(received)

    def answer(*_):  # which other threads may call: Dask lends callbacks to all computations
        if pressed and threading.get_ident() == caller:
            handler(*pressed.pop())

    try:
        signal.signal(signal.SIGINT, hold)
    except ValueError:  # signals are the main thread's
        return dask.compute(*tasks)
    try:
        with Callback(pretask=answer, posttask=answer):
            return dask.compute(*tasks)
    finally:
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, handler)
        answer()
