"""Batches in a given order, made in worker processes where asked, pinned where they go to a GPU."""

import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from dataloader import parallel
from dataloader.batch import Batch, Parcel
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.packing import Batches, Budget, epoch_order, mixed_order, pack, refuse_oversized

Plan = Sequence[NDArray[np.int64]]  # indices of the structures of each batch


class Loader:
    """Yields the batches of a plan; workers live as long as the loader.

    The content and order of the batches are the plan's alone: the number of workers changes nothing but the time.
    """

    def __init__(self, dataset: Dataset, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.dataset = dataset
        self._plan = _PlanSampler()
        self._fetch = _Fetch(dataset, travels=num_workers > 0)
        self._board = parallel.Board(num_workers)
        self._ending: weakref.finalize[[list[BaseProcess]], object] | None = None
        self._workers: DataLoader[Parcel] | None = (
            DataLoader(
                self._fetch,  # type: ignore[arg-type]
                sampler=self._plan,
                batch_size=None,
                num_workers=num_workers,
                pin_memory=pin_memory,
                persistent_workers=True,
                generator=torch.Generator(),  # or every epoch would draw a seed from the global one
                worker_init_fn=partial(_begin, board=self._board),
            )
            if num_workers
            else None
        )

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The batches of a plan, in its order.

        Raises:
            InputError: a record could not be read; it names file and key. Or a worker died; it names the file.
        """
        self._plan.plan = plan
        fetched = self._by_workers() if self._workers is not None else (self._fetch[indices] for indices in plan)
        for item in fetched:
            if isinstance(item, str):
                raise InputError(item)
            yield item.batch() if isinstance(item, Parcel) else item

    def _by_workers(self) -> Iterator[Parcel | str]:
        """What the workers make; the death of one is met here, within five seconds, and not by a handler anywhere."""
        assert self._workers is not None
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            iterator = iter(self._workers)
            if in_main_thread:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own would raise in the middle of a step
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        workers = list(iterator._workers)  # type: ignore[attr-defined]
        if self._ending is None or not self._ending.alive:
            self._ending = weakref.finalize(iterator, _kill, workers)
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError):  # the last two: what it had sent is gone with it
                gone = wait([worker.sentinel for worker in workers], timeout=2)
                for worker in workers:  # its files are closed before it can be asked how it ended
                    if worker.sentinel in gone:
                        worker.join(timeout=5)
                dead = [(i, w.exitcode) for i, w in enumerate(workers) if not w.is_alive()]
                if not dead:
                    raise
                raise InputError(parallel.death(dead[0][1], self._board.read(dead[0][0]))) from None
            yield item


def _kill(workers: list[BaseProcess]) -> None:
    """End what is left when the process ends: Python would send SIGTERM, which workers outlive, and wait for ever."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()


class _PlanSampler(Sampler[NDArray[np.int64]]):
    """Hands the plan of the moment to torch's DataLoader."""

    def __init__(self) -> None:
        self.plan: Plan = ()

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


class _Fetch:
    """Makes one batch; an input error travels as its text: a worker's exception arrives wrapped in a traceback."""

    def __init__(self, dataset: Dataset, *, travels: bool) -> None:
        self.dataset, self.travels = dataset, travels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch | Parcel | str:
        try:
            batch = self.dataset.batch(indices.tolist())
            return Parcel(batch) if self.travels else batch
        except InputError as error:
            return str(error)


def _begin(worker: int, board: parallel.Board) -> None:
    """In a worker: outlive signals to the process group, note what is read, leave the cores to the others."""
    parallel.live_and_die_with_the_run()
    board.use(worker)
    torch.set_num_threads(1)


class EpochBatches:
    """The training batches of any epoch: order from (seed, epoch), cut by the budget."""

    def __init__(self, dataset: Dataset, budget: Budget, seed: int, loader: Loader) -> None:
        self.dataset, self.budget, self.seed, self.loader = dataset, budget, seed, loader
        n_edges = dataset.n_edges if budget.edges is not None else None
        self._sizes = (dataset.n_atoms, n_edges)
        self._own, self._shares = dataset.shares()
        refuse_oversized(*self._sizes, budget, dataset.name)

    def plan(self, epoch: int) -> Batches:
        """Indices of the structures of every batch of an epoch."""
        if self._shares:
            order = mixed_order(self._own, self._shares, self.seed, epoch)
        else:
            order = epoch_order(len(self.dataset), self.seed, epoch)
        return pack(order, *self._sizes, self.budget)

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The batches of (a part of) a plan."""
        return self.loader.batches(plan)


def evaluation_plan(dataset: Dataset, indices: NDArray[np.int64], budget: Budget) -> Plan:
    """Batches of some structures of a data set, in their own order."""
    n_edges = dataset.n_edges if budget.edges is not None else None
    return pack(indices, dataset.n_atoms, n_edges, budget)
