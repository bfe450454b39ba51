"""Calls on a CUDA device that were made before: their launches once more, on other arrays of the same layout.

What a call decides follows from the layouts of its arrays and from its options: which kernels, on what grids, over
which scratch memory. Deciding it costs the host several times what the launches cost. So the first call notes what is
allocated and launched, by the places of the arrays, and a later one with equal layouts and options allocates and
launches that. Nothing of the arrays' contents goes into it, so only calls that check no target are repeated.
"""

import operator
from typing import NamedTuple

from .. import _device
from ._base import Call

__all__ = ["Repeated"]

MOST = 4096  # programs that are kept; beyond, all are forgotten
NULL = -1  # place of an address that is not given

_programs = {}


class Program(NamedTuple):
    """What a call did: its arrays take the first places, what it allocated the next ones."""

    makers: tuple  # functions of nothing, or the place of an array whose layout fresh memory gets
    launches: tuple  # (queued kernel, what picks its addresses, the other arguments)
    results: tuple  # places of what the call returns, or None

    def __call__(self, library, arrays, addresses):
        """The results for other arrays of the same layouts, which lie at some addresses."""
        arrays = list(arrays)
        for maker in self.makers:
            fresh = library.empty_like(arrays[maker]) if type(maker) is int else maker()
            arrays.append(fresh)
            addresses.append(library.address(fresh))
        addresses.append(0)
        for launch, picked, rest in self.launches:
            launch(*picked(addresses), *rest)
        return tuple([None if place is None else arrays[place] for place in self.results])


class _Log:
    """A library that notes what is allocated and launched; `program` is None where that is not all that was done."""

    def __init__(self, library, arrays):
        self._library, self._arrays = library, list(arrays)
        self._makers, self._launches = [], []
        self._whole = True
        self._places = {}
        for place, x in enumerate(arrays):
            if x is not None:
                self._whole &= self._note(x, place)

    def _note(self, x, place):
        """Whether memory can be told from what has a place; only the logits' own, as of `out=logits`, cannot."""
        address = self._library.address(x)
        return bool(address) and self._places.setdefault(address, place) in (place, 0)

    def _fresh(self, x, maker):
        self._whole &= self._note(x, len(self._arrays))
        self._arrays.append(x)
        self._makers.append(maker)
        return x

    def empty(self, shape, dtype):
        maker = self._library.maker(shape, dtype)
        return self._fresh(maker(), maker)

    def empty_like(self, x):
        place = next((i for i, each in enumerate(self._arrays) if each is x), None)
        self._whole &= place is not None
        return self._fresh(self._library.empty_like(x), place)

    def context(self):
        context = self._library.context()
        return context._replace(empty=lambda *of: self.buffer(self.empty(*of)), record=self._record)

    def _record(self, launch, values):
        """Note a launch, now that whatever is at its addresses is still there."""
        many = launch.pointers
        places = [self._place(address) for address in values[:many]]
        if None in places:
            self._whole = False
        else:
            self._launches.append((launch, operator.itemgetter(*places), values[many:]))

    def _place(self, address):
        return self._places.get(address) if address else NULL

    def __getattr__(self, name):
        """Everything else: what returns memory of its own is noticed at the next launch, what writes is not."""
        self._whole &= name in ("buffer", "contiguous", "dtype", "given", "own")
        return getattr(self._library, name)

    def program(self, results):
        """The `Program` of the call that returned this, or None."""
        places = [
            None if x is None else next((i for i, each in enumerate(self._arrays) if each is x), NULL)
            for x in results
        ]
        if not self._whole or not self._launches or NULL in places:
            return None
        return Program(tuple(self._makers), tuple(self._launches), tuple(places))


class Repeated(Call):
    """A call on a device that checks no target: decided when it is first made, then repeated.

    Parameters
    ----------
    make : callable
        What makes the call that decides.
    arrays : tuple
        The logits, and what else there is of arrays, or None.
    options : tuple
        All that the call depends on otherwise. Equal options decide equally.
    """

    def __init__(self, make, arrays, options):
        self.make, self.arrays, self.options = make, arrays, options

    def run(self, *, grad=False, hess=False, out=None, **how):
        return self._done((out,), ("run", grad, hess, *how.items()), grad=grad, hess=hess, out=out, **how)

    def curvature(self, hessian):
        return self._done((), ("curvature", hessian), hessian)

    def hvp(self, x):
        return self._done((x,), ("hvp",), x)[0]

    def backward(self, grad_loss, out, *lse):
        """Gradient for an upstream gradient; that of a number is repeated."""
        if type(grad_loss) not in (int, float):
            return self.make().backward(grad_loss, out, *lse)
        return self._done((out, *lse), ("backward", grad_loss), grad_loss, out, *lse)[0]

    def hessian(self, factor):
        return self.make().hessian(factor)

    def _done(self, more, how, *args, **kwargs):
        """What a method of the call returns, as a tuple; `how` begins with its name and has all but its arrays."""
        arrays = self.arrays + more
        library, logits = _device.library_of(arrays[0])
        layouts, addresses = [], []
        try:
            for x in arrays:
                layout, address = (None, None) if x is None else library.place(x)
                layouts.append(layout)
                addresses.append(address)
            # the gradient may be the logits' own memory
            shared = [address == addresses[0] for address in addresses]
            key = (type(library), library.stream(), *layouts, *shared, *self.options, *how)
            program = _programs.get(key, False)
        except (
            AttributeError,
            TypeError,
        ):  # no array of this library, or no option: the call itself says which
            key, program = None, None
        if program:
            return program(library, arrays, addresses)
        call = self.make()
        new = program is False and logits is arrays[0]
        if new:
            call.library = log = _Log(library, arrays)
        results = getattr(call, how[0])(*args, **kwargs)
        results = results if isinstance(results, tuple) else (results,)
        if new:
            if len(_programs) >= MOST:
                _programs.clear()
            _programs[key] = log.program(results)
        return results
