"""What ``verbose`` shows: a line per epoch and, on a terminal, a bar within it."""

from __future__ import annotations

import sys
import time

_WIDTH = 30


class Progress:
    """Loss and speed of a fit as it goes.

    Lines go to the standard output.  The bar goes to the standard error, where that is a terminal, and is wiped before
    a line is printed.

    Parameters
    ----------
    verbose : bool or int
    max_iter : int
        Epochs at most.
    n_samples : int
        Rows per epoch.
    """

    def __init__(self, verbose, max_iter, n_samples):
        self._verbose, self._max_iter, self._n_samples = bool(verbose), max_iter, n_samples
        self._bar = self._verbose and sys.stderr.isatty()
        self._began = time.perf_counter()

    def begin_epoch(self):
        """The clock of the epoch starts."""
        self._began = time.perf_counter()

    def _rate(self, rows):
        return f"{rows / max(time.perf_counter() - self._began, 1e-9):,.0f} rows/s"

    def show(self, epoch, rows, loss):
        """The bar after so many rows of an epoch, with the mean loss over them."""
        if self._bar:
            done = "#" * (rows * _WIDTH // self._n_samples)
            text = f"Epoch {epoch}/{self._max_iter} [{done:<{_WIDTH}}] loss {loss:.4f}, {self._rate(rows)}"
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)

    def end_epoch(self, epoch, loss):
        """The line of an epoch: scikit-learn's, and the speed."""
        rate = self._rate(self._n_samples)
        self.line(f"Iteration {epoch}, loss = {loss:.8f}, {rate}")

    def line(self, text):
        """Any other line."""
        if self._verbose:
            self.wipe()
            print(text)

    def wipe(self):
        """Take the bar away."""
        if self._bar:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
