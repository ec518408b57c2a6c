"""Several processes that work on one task, as `torchrun` starts them: each does its share, and all have the result."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from .errors import EmmetError, LostProcessError
from .storage import first_line

_Item = TypeVar("_Item")

# A process that dies is noticed at once. This is for a machine that is gone without a word.
_LONGEST_WAIT = timedelta(hours=6)
_ERROR = "emmet.error"  # key of the store; torchrun has another store for each restart


@dataclass(frozen=True)
class World:
    """The processes of one run; by default a single one, for which nothing here does anything.

    `rank` is the number of this one, of `size`. All of them call the same methods in the same order, with tensors of
    one shape, and for the same number of them the results are the same bits. Each method raises the error that another
    process ended with, and LostProcessError if it ended without a word.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None

    def shard(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This process's share: every `size`-th item."""
        return items[self.rank :: self.size]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in the memory of `tensor`."""
        if self.size > 1:
            self.meet()
            self._together(lambda: dist.all_reduce(tensor))
        return tensor

    def agreed(self, value: _Item) -> _Item:
        """What the first process has as `value`."""
        values = [value]
        if self.size > 1:
            self._together(lambda: dist.broadcast_object_list(values))
        return values[0]

    def meet(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            self._together(lambda: dist.all_reduce(torch.zeros(1)))

    def _together(self, collective: Callable[[], object]) -> None:
        self._check()
        try:
            collective()
        except RuntimeError as error:  # of gloo and NCCL
            self._check()
            message = f"lost one of the {self.size} processes ({first_line(error)}): it was killed, or its machine or "
            message += "network failed; run the same command again, which goes on where it was"
            raise LostProcessError(message) from error

    def _check(self) -> None:
        """Raise the error that a process has ended with, if any has."""
        assert self.store is not None
        try:
            found = self.store.get(_ERROR).decode() if self.store.check([_ERROR]) else ""
        except RuntimeError:  # the store's own process has ended
            return
        if found:
            raise EmmetError(found)

    def _tell(self, error: Exception) -> None:
        """Let the others end with this error."""
        assert self.store is not None
        text = str(error)
        if not isinstance(error, EmmetError):
            text = f"process {self.rank} of {self.size} failed with {type(error).__name__}: {first_line(error)}"
        try:
            if not self.store.check([_ERROR]):
                self.store.set(_ERROR, text)
        except RuntimeError:  # the store's own process has ended
            return


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started along with this one, in the body; without torchrun, this one alone.

    An error in the body of one process is raised in all of them, at the next method of `World` that they call or at the
    end of the body. SIGTERM, which torchrun sends when a process has died, raises LostProcessError. With CUDA, each
    process has a GPU of its own as the current device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    store, rank, size = next(rendezvous("env://", timeout=_LONGEST_WAIT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST_WAIT)
    world = World(rank, size, store)
    try:
        with _terminable(world):
            yield world
            world.meet()
    except LostProcessError:
        raise
    except Exception as error:
        world._tell(error)
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _terminable(world: World) -> Iterator[None]:
    """Let SIGTERM raise the error that another process has ended with, or LostProcessError."""

    def end(_signal: int, _frame: object) -> None:
        world._check()
        message = f"asked to end (SIGTERM), as torchrun does when one of the {world.size} processes has died; "
        message += "run the same command again, which goes on where it was"
        raise LostProcessError(message)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
