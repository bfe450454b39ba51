"""Who runs the blocks of Dask collections: the workers of a cluster, or Dask's scheduler in this process.

A source answers `survey()`, takes a recipe by `prepare(recipe)`, and then `total(method, *args)` of the blocks'
objectives, added along the tree of `fastxent._blocks`.  `cluster` is for data that stay where they are between the
calls, `Scheduler` reads them anew each time, a block per thread in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
import pickle
import sys
import time
from typing import NamedTuple

import dask
import dask.array as da
import numpy as np

from fastxent._blocks import Nodes, Reader, added, tree_total
from fastxent.dask._interrupts import compute

__all__ = ["Cluster", "Collections", "Scheduler", "current_client", "open_source", "pairwise"]

_PATIENCE = 30.0  # seconds until a worker that does not answer is known to be gone
_GLANCE = 10.0  # seconds between two looks whether a worker that computes is still there
_MARK = 1.0  # seconds between two tasks that show on the dashboard how many evaluations there were
_CONTACT = 3.0  # seconds in which a worker that can be asked directly answers the first time


class Collections:
    """X, y and sample weights, checked as far as that needs no data, as aligned lists of delayed partitions.

    Parameters
    ----------
    X : Dask Array (n_samples, n_features) or DataFrame
    y : Dask Array or Series (n_samples,), or Array or DataFrame (n_samples, n_classes)
    sample_weight : None, or Dask Array or Series (n_samples,)
    indicators : bool
        As for `Reader`.

    Raises
    ------
    TypeError
        For anything that is no Dask collection, or not numeric.
    ValueError
        For another number of dimensions or of partitions, or partitions of other lengths.
    """

    def __init__(self, X, y, sample_weight=None, indicators=False):
        self.first_X, self._indicators = getattr(X, "_meta", None), indicators
        self.n_features, self.dtype = None, "float64"
        lists = [_delayed(X, "X", (2,)), _delayed(y, "y", (1, 2))]
        if sample_weight is not None:
            lists.append(_delayed(sample_weight, "sample_weight", (1,)))
        for name, given, parts in zip(("y", "sample_weight"), (y, sample_weight), lists[1:], strict=False):
            if len(parts) != len(lists[0]):
                raise ValueError(
                    f"{name}: expected the {len(lists[0])} partitions of X, got {len(parts)}: "
                    "rechunk or repartition one like the other"
                )
            mine, its = _lengths(X), _lengths(given)
            if mine is not None and its is not None and mine != its:
                at = next(i for i, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b)
                raise ValueError(
                    f"{name}: expected partitions as long as those of X, got {its[at]} rows for {mine[at]} in "
                    f"partition {at}: rechunk one like the other"
                )
        self.parts = list(zip(*lists, strict=True))
        if isinstance(X, da.Array):
            self.n_features = X.shape[1]
            dtypes = [X.dtype]
        else:
            self.n_features = len(X.columns)
            dtypes = list(X._meta.dtypes)
        if all(dtype == np.float32 for dtype in dtypes):
            self.dtype = "float32"
        for collection, name in ((X, "X"), (sample_weight, "sample_weight")):
            _numeric(collection, name)
        self.collections = [c for c in (X, y, sample_weight) if c is not None]

    @property
    def reader(self):
        """Of the blocks."""
        return Reader(self.dtype, self.n_features, self._indicators)


def _is_frame(collection):
    return (
        dask.is_dask_collection(collection)
        and hasattr(collection, "_meta")
        and hasattr(collection, "divisions")
    )


def _delayed(collection, name, dimensions):
    """Delayed partitions, over rows only."""
    if isinstance(collection, da.Array):
        if collection.ndim not in dimensions:
            expected = " or ".join(map(str, dimensions))
            raise ValueError(f"{name}: expected {expected} dimensions, got {collection.ndim}")
        if collection.ndim == 2 and collection.numblocks[1] > 1:
            collection = collection.rechunk({1: -1})
        return list(collection.to_delayed().ravel())
    if _is_frame(collection):
        if collection._meta.ndim not in dimensions:
            raise ValueError(
                f"{name}: expected a {'Series' if dimensions == (1,) else 'DataFrame'}, got "
                f"{type(collection).__name__}"
            )
        return list(collection.to_delayed())
    raise TypeError(
        f"{name}: expected a Dask Array or DataFrame, got {type(collection).__name__}; the estimators of fastxent "
        "itself take arrays"
    )


def _lengths(collection):
    """Rows of every partition, or None where that is not known."""
    if not isinstance(collection, da.Array) or np.isnan(collection.chunks[0]).any():
        return None
    return tuple(map(int, collection.chunks[0]))


def _numeric(collection, name):
    if collection is None:
        return
    if isinstance(collection, da.Array):
        columns = {name: collection.dtype}
    else:
        meta = collection._meta
        columns = (
            {name: meta.dtype} if meta.ndim == 1 else {f"{name}[{c!r}]": t for c, t in meta.dtypes.items()}
        )
    for column, dtype in columns.items():
        if getattr(dtype, "kind", "O") not in "fiub":
            raise TypeError(f"{column}: expected numbers, got dtype {dtype}")


def current_client(client=None):
    """The client given, or the current one, or None.

    Raises
    ------
    TypeError
        For something else than a client, or an asynchronous one.
    """
    if client is None:
        distributed = sys.modules.get("distributed")
        if distributed is None:
            return None
        try:
            client = distributed.default_client()
        except ValueError:
            return None
    if not hasattr(client, "scheduler_info"):
        raise TypeError(f"client: expected a dask.distributed.Client or None, got {type(client).__name__}")
    if client.asynchronous:
        raise TypeError("client: expected one that is not asynchronous: fit waits for the workers")
    return client


@contextlib.contextmanager
def open_source(X, y, sample_weight, client, num_threads, indicators=False):
    """A source for collections, which leaves nothing on the cluster.

    Parameters
    ----------
    X, y, sample_weight
        As for `Collections`.
    client : None or dask.distributed.Client
        None is the current one, or no cluster.
    num_threads : None or int
    indicators : bool
        As for `Reader`.
    """
    collections = Collections(X, y, sample_weight, indicators)
    client = current_client(client)
    if client is None:
        yield Scheduler(collections, num_threads)
        return
    source = Cluster(collections, client, num_threads)
    try:
        yield source
    finally:
        source.close()


def _total(surveys):
    return functools.reduce(operator.add, surveys) if surveys else None


# ------------------------------------------------------------------------------------------------------ no cluster


class Scheduler:
    """Blocks by Dask's own schedulers (threads, unless Dask's configuration says otherwise), anew for each call."""

    def __init__(self, collections, num_threads=None):
        self.first_X, reader = collections.first_X, collections.reader
        self._num_threads = num_threads if len(collections.parts) == 1 else 1
        read = dask.delayed(reader.block, pure=False)
        self._blocks = [read(number, *part) for number, part in enumerate(collections.parts)]
        self._survey = dask.delayed(reader.survey, pure=False)

    def survey(self):
        """The `Survey` of all blocks."""
        return _total(compute(*(self._survey(i, block) for i, block in enumerate(self._blocks))))

    def prepare(self, recipe):
        """Take the recipe of the objectives."""
        self._recipe = recipe

    def total(self, method, *args):
        """A method of all blocks, added along the tree."""
        run = dask.delayed(functools.partial(_one, self._recipe, method, args, self._num_threads), pure=False)
        return compute(pairwise(added, [run(number, block) for number, block in enumerate(self._blocks)]))[0]


def _one(recipe, method, args, num_threads, number, block):
    return recipe.run(number, recipe.objective(number, block), method, args, num_threads)


def pairwise(add, tasks):
    """Delayed values added as `tree_total` adds blocks."""
    if len(tasks) == 1:
        return tasks[0]
    half = 1 << (len(tasks) - 1).bit_length() - 1
    return dask.delayed(add, pure=False)(pairwise(add, tasks[:half]), pairwise(add, tasks[half:]))


# ------------------------------------------------------------------------------------------------------- a cluster


class Shard:
    """The objectives of a worker's blocks: an actor, which one message asks and one message answers.

    Parameters
    ----------
    recipe
        With `objective(number, block)`.
    numbers : list of int
        Of the blocks.
    num_threads : int
    blocks : Block
    """

    def __init__(self, recipe, numbers, num_threads, *blocks):
        self._objectives = {
            number: recipe.objective(number, block) for number, block in zip(numbers, blocks, strict=True)
        }
        self._run, self._num_threads = recipe.run, num_threads

    def total(self, question):
        """Sums over the blocks here as `Nodes.sums`, or the error; pickled, as the question is.

        Parameters
        ----------
        question : bytes
            Method and arguments.  Bytes cross the connection as they are; arrays would cost Dask's serialization
            of every one of them, a quarter of a millisecond each.
        """
        method, args = pickle.loads(question)
        nodes = Nodes()
        try:
            for number, objective in self._objectives.items():
                nodes.add((0, number), self._run(number, objective, method, args, self._num_threads))
        except Exception as error:  # told apart from an error of the connection
            return _dumped(error)
        return _dumped(nodes.sums)

    @staticmethod
    def ready():
        """True."""
        return True


def _dumped(value):
    try:
        return pickle.dumps(value, 5)
    except Exception:
        from distributed.protocol.pickle import dumps  # errors of a session's own classes

        return dumps(value)


class _Placed(NamedTuple):
    """A `Shard` on its worker.

    Attributes
    ----------
    future : distributed.Future
    actor : distributed.Actor
    group : list of int
        Numbers of its blocks.
    direct : bool
        Whether the client reaches the worker; otherwise the scheduler passes messages on.
    """

    future: object
    actor: object
    group: list
    direct: bool


class Cluster:
    """Blocks that stay on the workers of a cluster.

    Checked partitions are results of tasks, which the scheduler computes again where a worker is lost; beside them
    every worker has one `Shard`, made anew on a worker that lives when its own is gone.  Collections that are
    persisted already stay where they are; others are spread over the workers in runs, by their threads.

    Parameters
    ----------
    collections : Collections
    client : dask.distributed.Client
    num_threads : None or int
        None: as many as the worker has.
    """

    def __init__(self, collections, client, num_threads=None):
        from distributed import futures_of

        self._client, self._num_threads, self._reader = client, num_threads, collections.reader
        self.first_X = collections.first_X
        self._shards, self._recipe = [], None
        self._evaluations, self._marks, self._marked = 0, [], time.monotonic()
        read = dask.delayed(self._reader.block, name="fastxent-read", pure=False)
        reads = [
            read(number, *part, dask_key_name=f"fastxent-read-{id(self)}-{time.monotonic_ns()}-{number}")
            for number, part in enumerate(collections.parts)
        ]
        if any(futures_of(collection) for collection in collections.collections):
            self._blocks = client.compute(reads)
            return
        self._blocks = []
        for address, start, stop in _runs(len(reads), self._threads()):
            placed = {"workers": [address], "allow_other_workers": True}
            self._blocks += client.compute(reads[start:stop], **placed)

    def _threads(self):
        """Workers and their threads; waits for one where there is none yet."""
        threads = self._client.nthreads()
        if not threads:
            self._client.wait_for_workers(1)
            threads = self._client.nthreads()
        return threads

    def survey(self):
        """The `Survey` of all blocks."""
        survey = functools.partial(self._client.submit, self._reader.survey, pure=False)
        futures = [survey(number, block) for number, block in enumerate(self._blocks)]
        try:
            return _total(self._client.gather(futures))
        finally:  # the traceback of an error would hold them
            for future in futures:
                future.release()

    def prepare(self, recipe):
        """Make the shards, in place of earlier ones."""
        _release(self._shards)
        self._shards, self._recipe = [], recipe
        self._place(range(len(self._blocks)))

    def _place(self, numbers):
        """A shard on every worker that has some of the blocks."""
        from distributed import wait

        numbers = list(numbers)
        blocks = [self._blocks[number] for number in numbers]
        wait(blocks)
        threads, where = self._threads(), self._client.who_has(blocks)
        groups = {}
        for number, block in zip(numbers, blocks, strict=True):
            holders = sorted(where.get(block.key) or threads)
            groups.setdefault(holders[0], []).append(number)
        made = []
        for address, group in groups.items():
            given = [self._blocks[number] for number in group]
            future = self._client.submit(
                Shard,
                self._recipe,
                group,
                self._num_threads or threads.get(address, 1),
                *given,
                actor=True,
                pure=False,
                workers=[address],
                allow_other_workers=True,
            )
            made.append((future, group))
        placed = [_Placed(future, future.result(), group, True) for future, group in made]
        self._shards += self._client.sync(self._contacted, placed)

    async def _contacted(self, shards):
        """The shards, and whether the client reaches each of them itself."""
        chosen = self._client.direct_to_workers
        if chosen is not None:
            return [shard._replace(direct=bool(chosen)) for shard in shards]

        async def reaches(shard):
            try:
                call = self._execute(shard, "ready", [])
                return (await asyncio.wait_for(call, _CONTACT))["result"] is True
            except Exception:  # no route, no answer, or somebody else's
                return False

        direct = await asyncio.gather(*map(reaches, shards))
        return [shard._replace(direct=each) for shard, each in zip(shards, direct, strict=True)]

    def _execute(self, shard, method, args):
        """The call of a method as Dask's actors make it, but without the scheduler where it is not needed."""
        from distributed.actor import ProxyRPC

        address = shard.actor._address
        rpc = self._client.rpc(address) if shard.direct else ProxyRPC(self._client.scheduler, address)
        return rpc.actor_execute(actor=shard.actor.key, function=method, args=args)

    def total(self, method, *args):
        """A method of all blocks, added along the tree: one message to every worker, one from it."""
        question = pickle.dumps((method, args), 5)
        parts, waiting = [], list(self._shards)
        while waiting:
            lost = []
            for shard, answer in zip(waiting, self._client.sync(self._ask, waiting, question), strict=True):
                if answer is None:
                    lost.append(shard)
                    continue
                answer = pickle.loads(answer)
                if isinstance(answer, Exception):
                    raise answer
                parts.append(answer)
            waiting = self._replaced(lost) if lost else []
        self._mark()
        return tree_total(parts)

    def _mark(self):
        """Count an evaluation; the count is in the key of a task that does nothing, which the dashboard shows."""
        self._evaluations += 1
        now = time.monotonic()
        if now >= self._marked + _MARK:
            self._marked = now
            key = f"fastxent-evaluation-{self._evaluations}-{id(self)}-{time.monotonic_ns()}"
            self._marks.append(self._client.submit(_nothing, key=key, pure=False))

    async def _ask(self, shards, question):
        """What the shards say, in one wait of the calling thread."""
        return await asyncio.gather(*(self._answer(shard, question) for shard in shards))

    async def _answer(self, shard, question):
        """What a shard says; None where its worker is gone."""
        call = asyncio.ensure_future(self._execute(shard, "total", [question]))
        try:
            while not (await asyncio.wait([call], timeout=_GLANCE))[0]:
                known = await self._client.scheduler.ncores()
                if shard.future.status != "finished" or shard.actor._address not in known:
                    return None
            answer = call.result()
        except OSError:
            return None
        except Exception:
            if shard.future.status != "finished":  # the shard went with its worker, and another answered
                return None
            raise
        finally:
            call.cancel()
        if answer["status"] != "OK":
            raise answer["exception"]
        return answer["result"]

    def _replaced(self, lost):
        """New shards for those whose workers are gone."""
        gone = {shard.actor._address for shard in lost}
        until = time.monotonic() + _PATIENCE
        while gone & set(self._client.nthreads()):
            if time.monotonic() > until:
                raise OSError(
                    f"no answer from {', '.join(sorted(gone))}, though the scheduler knows these workers"
                )
            time.sleep(0.05)
        self._shards = [shard for shard in self._shards if shard not in lost]
        kept = len(self._shards)
        _release(lost)
        self._place(sorted(number for shard in lost for number in shard.group))
        return self._shards[kept:]

    def close(self):
        """Let the scheduler forget everything that was computed here."""
        _release(self._shards)
        for future in (*self._blocks, *self._marks):
            future.release()
        self._shards, self._blocks, self._marks = [], [], []


def _nothing():
    """What a task does that only shows on the dashboard."""


def _release(shards):
    for shard in shards:
        shard.future.release()
        shard.actor._future.release()  # an actor's calls are cycles, which would hold it until the next collection


def _runs(n_blocks, threads):
    """(address, start, stop) of runs of blocks in proportion to the workers' threads, none of them empty."""
    weights = np.cumsum([0, *threads.values()])
    cuts = np.round(weights * n_blocks / weights[-1]).astype(int).tolist()
    return [
        (address, start, stop)
        for address, start, stop in zip(threads, cuts[:-1], cuts[1:], strict=True)
        if start < stop
    ]
