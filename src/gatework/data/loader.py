"""A data loader that can stop after any batch and start again there, with the same data as if it had not.

Which batch comes when is a function of the seed, the epoch and the number of the batch, and of nothing else:
neither of what was read before, nor of the number of loader processes, nor of anyone's random state.
"""

from __future__ import annotations

import atexit
import random
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from gatework.checks import check_bool, check_int, check_seed
from gatework.signals import ignore_interrupts, interrupts_blocked

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)

# How loader processes start: at once and with the data where that is safe, as new interpreters elsewhere, to
# which the data are sent. Said here, because Python's own choice depends on its version.
_START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# Sets the random numbers of transforms apart from those of the order.
_TRANSFORMS = 0x7472616E


@runtime_checkable
class Examples(Protocol[BatchT_co]):
    """What a loader reads: a sized collection with ``data[index]``."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, index: int, /) -> BatchT_co:
        """Return one item."""


class _Key(NamedTuple):
    """One batch: the seed of its transforms, and the items in it (one number for a ready-made batch)."""

    seed: tuple[int, ...]
    items: int | list[int]


class ResumableLoader(Generic[BatchT]):
    """Batches of a data set, in an order that follows from ``seed`` and epoch alone.

    One pass is one epoch, and the next pass the next epoch. :meth:`state_dict` says after which batch the
    reader is: batches that workers have prepared but nobody has taken do not count. Random transforms inside
    the data set or ``collate`` draw from Python's, numpy's and PyTorch's generators as usual; these are
    seeded for every batch, and put back in the main process.

    Args:
        data: The examples, or with ``batch_size=None`` ready-made batches.
        batch_size: Examples per batch; the last batch of an epoch may be shorter. None if ``data`` holds
            batches.
        seed: Seed of order and transforms.
        shuffle: Whether every epoch has an order of its own; otherwise all have that of ``data``.
        collate: Makes a batch of a list of examples; not used with ``batch_size=None``.
        num_workers: Loader processes; 0 loads in the main process. Outside Linux they are new interpreters,
            so that ``data`` and ``collate`` must be picklable: classes and functions of a module, no lambda.
        rank: Number of this process in training with several.
        world_size: How many processes train: each reads every ``world_size``-th batch, and as many as the
            others (what remains at the end of an epoch is left out).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        data: Examples[Any],
        batch_size: int | None = None,
        *,
        seed: int = 0,
        shuffle: bool = False,
        collate: Callable[[list[Any]], BatchT] | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size is not None:
            check_int("batch_size", batch_size, at_least=1)
            if collate is None:
                raise TypeError("collate must say how to make a batch of examples, got None")
        check_seed(seed)
        check_bool("shuffle", shuffle)
        check_int("num_workers", num_workers, at_least=0)
        check_int("world_size", world_size, at_least=1)
        check_int("rank", rank, at_least=0)
        if rank >= world_size:
            raise ValueError(f"rank must be below world_size={world_size}, got {rank}")
        self.data, self.batch_size, self.collate = data, batch_size, collate
        self.seed, self.shuffle, self.num_workers = seed, shuffle, num_workers
        self.rank, self.world_size = rank, world_size
        self._position = 0
        self._loader: DataLoader[BatchT] | None = None
        self._planned: range = range(0)

    def configured(
        self, *, num_workers: int | None = None, rank: int | None = None, world_size: int | None = None
    ) -> ResumableLoader[BatchT]:
        """Return a loader of the same data for other processes, at the beginning of the first epoch."""
        return ResumableLoader(
            self.data,
            self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            collate=self.collate,
            num_workers=self.num_workers if num_workers is None else num_workers,
            rank=self.rank if rank is None else rank,
            world_size=self.world_size if world_size is None else world_size,
        )

    def __len__(self) -> int:
        """Return the number of batches that this process reads in an epoch."""
        items = len(self.data)
        batches = items if self.batch_size is None else -(-items // self.batch_size)
        return batches // self.world_size

    def __iter__(self) -> Iterator[BatchT]:
        """Read what is left of the present epoch; the next pass is the next epoch.

        Nothing happens before the first batch is asked for, so that an iterator made in vain moves nothing.
        """
        length = len(self)
        if length == 0:
            return
        end = (self._position // length + 1) * length
        yield from self.read(self._position, end)

    def read(self, start: int, stop: int) -> Iterator[BatchT]:
        """Read the batches ``start .. stop - 1``, counted from the beginning of the first epoch.

        Raises:
            ValueError: If there is nothing to read from.
        """
        check_int("start", start, at_least=0)
        if start < stop and len(self) == 0:
            raise ValueError(
                f"data must hold at least one batch for each of the {self.world_size} processes, "
                f"got {len(self.data)} items"
            )
        self._planned = range(start, stop)
        for number, batch in enumerate(self._batches(), start=start):
            self._position = number + 1  # before the reader has it: what he may save counts this batch
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of ``epoch``, counted from 0.

        Raises:
            ValueError: If ``epoch`` is negative.
        """
        check_int("epoch", epoch, at_least=0)
        self._position = epoch * len(self)

    def state_dict(self) -> dict[str, int]:
        """Return the position: ``epoch``, and ``batch``, the number of its batches that were read."""
        epoch, batch = divmod(self._position, max(1, len(self)))
        return {"epoch": epoch, "batch": batch, "length": len(self), "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position.

        Raises:
            ValueError: If it is that of a loader with other data or another seed.
        """
        for name, own in (("length", len(self)), ("seed", self.seed)):
            if state.get(name) != own:
                raise ValueError(f"state must be of a loader with {name}={own}, got {state.get(name)!r}")
        self._position = state["epoch"] * len(self) + state["batch"]

    def _batches(self) -> Iterator[BatchT]:
        if self._loader is None:
            self._loader = DataLoader(
                _Batches(self.data, self.collate),
                batch_size=None,
                sampler=_Plan(self),
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                multiprocessing_context=_START_METHOD if self.num_workers > 0 else None,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                # Without a generator of its own, a loader draws a number from the global one for every pass.
                generator=torch.Generator(),
            )
            if self.num_workers > 0:
                _with_workers.add(self)
        starts_interpreters = self.num_workers > 0 and _START_METHOD == "spawn"
        with interrupts_blocked() if starts_interpreters else nullcontext():
            return iter(self._loader)

    def close(self) -> None:
        """End the loader processes; they start again when they are needed."""
        end = getattr(getattr(self._loader, "_iterator", None), "_shutdown_workers", None)
        self._loader = None
        if end is not None:
            end()

    def _keys(self, planned: range) -> Iterator[_Key]:
        """Say what is in each batch; here alone the order is decided."""
        length, order, epoch_of_order = len(self), np.empty(0, np.int64), -1
        for position in planned:
            epoch, number = divmod(position, length)
            if epoch != epoch_of_order:
                order, epoch_of_order = self._order(epoch), epoch
            number = number * self.world_size + self.rank
            seed = (self.seed, epoch, number, _TRANSFORMS)
            if self.batch_size is None:
                yield _Key(seed, int(order[number]))
            else:
                first = number * self.batch_size
                yield _Key(seed, order[first : first + self.batch_size].tolist())

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if not self.shuffle:
            return np.arange(len(self.data))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.data))


_with_workers: weakref.WeakSet[ResumableLoader[Any]] = weakref.WeakSet()


@atexit.register  # before PyTorch and multiprocessing do, who would wait for workers that outlive one SIGTERM
def _close_all() -> None:
    for loader in list(_with_workers):
        loader.close()


class _Plan(Sampler[_Key]):
    """The batches that the present pass of a loader asks for."""

    def __init__(self, loader: ResumableLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[_Key]:
        return self.loader._keys(self.loader._planned)

    def __len__(self) -> int:
        return len(self.loader._planned)


class _Batches(Dataset[Any]):
    """Makes a batch from its key, here or in a worker."""

    def __init__(self, data: Examples[Any], collate: Callable[[list[Any]], Any] | None) -> None:
        self.data = data
        self.collate = collate

    def __getitem__(self, key: _Key) -> Any:
        with _seeded(key.seed):
            if isinstance(key.items, int):
                return self.data[key.items]
            assert self.collate is not None
            return self.collate([self.data[item] for item in key.items])


@contextmanager
def _seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed the generators that transforms use, and put them back."""
    words = np.random.SeedSequence(seed).generate_state(4, np.uint32)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1:3])
        # Not torch.manual_seed, which would seed accelerators too, where nothing is put back.
        torch.default_generator.manual_seed(int(words[3]) << 32 | int(words[0]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    """Let a worker outlive the signals that tell the main process to finish its step and save."""
    ignore_interrupts()
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
