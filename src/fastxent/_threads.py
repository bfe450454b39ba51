"""Python functions on several threads, where the kernels' own team (`_kernels/team.cpp`) cannot help.

As there, the caller takes work itself and waits only for work that somebody is at: where a thread cannot be had,
because there is no memory or the system allows no more of them, the others do its share. `concurrent.futures` raises
in the second case, and in the first `threading.Thread.start` waits forever (CPython issue 140746); hence `_thread`,
whose threads nobody waits for.
"""

from __future__ import annotations

import _thread

__all__ = ["ordered_map"]

_NOTHING = object()


def ordered_map(function, items, num_threads):
    """Results of function(item), in order.

    The caller is one of the threads. An error of `function` stops what has not begun, and the error of the first item
    that has one is raised once every thread is done, whichever thread met it first.

    Parameters
    ----------
    function : callable
    items : iterable
    num_threads : int
        At most so many.

    Returns
    -------
    list

    Examples
    --------
    >>> ordered_map(abs, range(-3, 2), 2)
    [3, 2, 1, 0, 1]
    """
    work = _Work(function, list(items))
    return work.run(min(num_threads, len(work.items)) - 1)


class _Work:
    """Items that threads take in order, until there are none or one of them has failed.

    What a helper does around an item allocates nothing: bound methods, numbers above 256 or a `with` could each fail
    where memory has run out, and then the caller would wait for it.
    """

    def __init__(self, function, items):
        self.function, self.items = function, items
        self.left = list(range(len(items)))[::-1]
        self.results, self.errors = [_NOTHING] * len(items), [None] * len(items)
        self.busy = (
            0  # helpers that are at an item; the caller, whom Ctrl-C may meet anywhere, is not counted
        )
        self.mutex, self.done = _thread.allocate_lock(), _thread.allocate_lock()
        self.done.acquire()  # the last helper releases it, once the caller is waiting
        self.waiting = False

    def run(self, helpers):
        """Do all the work, with so many helpers or as many as can be had; the results."""
        try:
            for _ in range(helpers):
                try:
                    _thread.start_new_thread(self.help, ())
                except (RuntimeError, MemoryError):
                    break
            self.take_all()
        finally:
            with self.mutex:
                self.left.clear()
                self.waiting = self.busy > 0
            if self.waiting:
                self.done.acquire()
        for error in self.errors:
            if error is not None:
                raise error
        if any(result is _NOTHING for result in self.results):
            raise MemoryError("a thread had not even the memory to say so")
        return self.results

    def take_all(self):
        """The caller's share."""
        while self.left:
            try:
                at = self.left.pop()
            except IndexError:  # a helper was faster
                return
            try:
                self.results[at] = self.function(self.items[at])
            except Exception as error:
                self.errors[at] = error
                return

    def help(self):
        """A helper's share."""
        while True:
            self.mutex.acquire()
            if not self.left:
                self.mutex.release()
                return
            at = self.left.pop()
            self.busy += 1
            self.mutex.release()
            try:
                self.results[at] = self.function(self.items[at])
            except Exception as error:
                self.errors[at] = error
                self.left.clear()
            finally:
                self.mutex.acquire()
                self.busy -= 1
                if self.waiting and not self.busy:
                    self.done.release()
                self.mutex.release()
