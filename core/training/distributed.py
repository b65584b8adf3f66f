"""Several ranks: what they share out, sum and agree on over `torch.distributed`.

Gradients are summed once the backward pass is over, and not by DistributedDataParallel, which overlaps the two but fixes at
its start which parameters train (groups may freeze and thaw), wants each of them used in every step, and a forward pass of
every rank, where here the last batch of an epoch may leave some of them without a sample. On one host the overlap hides
little: 100 MB, a ResNet-50's, take a millisecond or so between GPUs of one NVLink.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import accumulate, islice
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore  # torch.distributed has it too, but not for type checkers

from core import randomness
from core.loss.means import LossFunction
from core.models.norms import across_ranks, sees_all_ranks
from core.models.outputs import loss_of
from core.training.left_out import agree
from core.training.ranks import Batches, Ranks, Runs, Window
from core.training.readback import Readback

_BUCKET = 25 << 20
"""Bytes of gradients that are sent together, as DistributedDataParallel has it: the next is packed while one is on its way."""
_MEET = timedelta(minutes=5)
_NEVER = timedelta(days=365)
"""A rank may wait long for another that validates, writes, or stands still for its lease; who watches the processes ends all."""

T = TypeVar("T")


class SharedBatches(Batches, Protocol):
    """What several ranks need of it besides."""

    def batches(
        self, epoch: int, start: int = 0, *, step: int = 1, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each `step`th batch from `start` on, and of each the share of one rank."""
        ...

    def sizes(self, epoch: int) -> list[int]:
        """The samples of each batch of an epoch, over all ranks."""
        ...

    @property
    def may_lose(self) -> bool:
        """Whether images may be left out in mid-epoch, since they can no longer be read."""
        ...

    @property
    def corrupt(self) -> dict[int, str]:
        """What cannot be read, by its index, and why."""
        ...

    def leave_out(self, corrupt: Mapping[int, str]) -> None:
        """What is asked for from here on is without it."""
        ...


class Group(Ranks):
    """One of several ranks. Every method is a collective one: all ranks call the same ones in the same order."""

    def __init__(self, device: torch.device) -> None:
        """`torch.distributed` has its process group already; `device` is this rank's."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device
        self._trained: list[int] = []
        self._used: list[bool] = []
        self._flags = torch.tensor([0.0, 1.0], device=device)
        self._wishes: Readback[None] = Readback(device)
        self._wish = self._heard = False
        self._host: dist.ProcessGroup | None = None

    def adopt(self, model: nn.Module, seed: int) -> None:
        """The norms see all ranks' samples, the weights are rank 0's to the bit, and each rank draws numbers of its own."""
        across_ranks(model, self._device)
        self._broadcast([*model.parameters(), *model.buffers()])
        if self.rank:
            randomness.reseed(seed, self.rank)

    def windows(self, loader: Batches, epoch: int, start: int = 0, size: int = 1) -> Iterator[Window]:
        """A rank may have no sample of a batch: fewer than there are ranks.

        What one of them can no longer read all leave out of the very window: it is shared out, and read, once more.
        """
        self._trained = []
        shared = cast("SharedBatches", loader)
        mine, sizes, known = self._from(shared, epoch, start * size)
        while window := list(islice(mine, size)):
            if shared.may_lose and self._any(len(shared.corrupt) > known):
                agree(shared, self.gather)
                mine, sizes, known = self._from(shared, epoch, start * size)
                continue
            yield Window(window, sum(islice(sizes, len(window))))
            start += 1

    def reduce(self, model: nn.Module, loss: Tensor) -> Tensor:
        """With the loss goes what rank 0 wishes; it is read off the device as late as the losses are."""
        self._sum_gradients(model)
        told = torch.stack([loss.detach().float(), self._flags[int(self._wish)]])
        dist.all_reduce(told)
        self._heard |= any(wish for _, wish in self._wishes.push(told[1], None))
        return told[0]

    def whole_batches(self, loader: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each `size`th, whole: the sums over all ranks are then those of one."""
        shared = cast("SharedBatches", loader)
        sizes = shared.sizes(0)
        begins = list(zip(accumulate(sizes, initial=0), sizes, strict=False))  # the last of the sums begins nothing
        there = [first for first, size in begins[self.rank :: self.size] if size]
        mine = shared.batches(0, self.rank, step=self.size)
        for first, (images, targets) in zip(there, mine, strict=not shared.may_lose):  # of what is lost there may be no batch
            yield first, images, targets

    def total(self, tensor: Tensor) -> Tensor:
        """In place."""
        dist.all_reduce(tensor)
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """In place."""
        self._broadcast(model.buffers())

    def agreed(self, wish: bool) -> bool:
        """The wish goes with the losses of the next step, and is heard when those are read."""
        heard = self._heard
        if heard:
            self._forget()
        self._wish = wish and not heard and self.rank == 0
        return heard

    def first(self, make: Callable[[], T]) -> T:
        """The others wait for it. A wish that is on its way is forgotten."""
        self._forget()
        made: list[Any] = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(made, device=self._device)
        return cast("T", made[0])

    def gather(self, mine: T) -> list[T]:
        """By pickle, between processes of one job."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def _from(self, shared: SharedBatches, epoch: int, batch: int) -> tuple[Iterator[tuple[Tensor, Tensor]], Iterator[int], int]:
        """This rank's share of an epoch's batches from that one on, the samples of each over all ranks, and what they lack."""
        mine = shared.batches(epoch, batch, rank=self.rank, ranks=self.size)
        return mine, iter(shared.sizes(epoch)[batch:]), len(shared.corrupt)

    def _any(self, mine: bool) -> bool:
        """Whether it is so on any rank: between the processes, while the device goes on with what it has."""
        if self._host is None:
            self._host = cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=_NEVER))  # of which all are members
        told = torch.tensor(int(mine))
        dist.all_reduce(told, group=self._host)
        return bool(told)

    def _forget(self) -> None:
        """Wishes on their way, all from before this moment, are void: it is agreed now, or asked anew."""
        self._wishes.drain()
        self._wish = self._heard = False

    def _loss(self, runs: Runs, images: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
        if len(targets):
            return super()._loss(runs, images, targets, loss_fn)
        if sees_all_ranks(runs.model):  # its norms wait for this rank too
            return loss_of(runs(images), targets, lambda logits, _: logits.sum())
        return torch.zeros((), device=self._device, requires_grad=True)

    def _sum_gradients(self, model: nn.Module) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if [id(one) for one in trained] != self._trained:
            self._agree_on_used(trained)
        if any(one.grad is not None and not used for one, used in zip(trained, self._used, strict=True)):
            raise RuntimeError(
                "a parameter has a gradient that no rank had for it in this epoch's first step; a model that takes turns with "
                "its parameters trains on one GPU: set resources.gpus to 1"
            )
        gradients = []
        for parameter in (one for one, used in zip(trained, self._used, strict=True) if used):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        _sum(gradients)

    def _agree_on_used(self, trained: list[nn.Parameter]) -> None:
        """Which parameters have a gradient on any rank: the optimizer must pass over the others on all, as it would on one.

        That is asked once an epoch, and when groups freeze or thaw, since it waits for the device.
        """
        used = torch.tensor([float(one.grad is not None) for one in trained], device=self._device)
        dist.all_reduce(used)
        self._used = [bool(one) for one in used.tolist()]
        self._trained = [id(one) for one in trained]

    def _broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's bytes, whatever type they stand for."""
        for tensor in tensors:
            flat = tensor.detach().contiguous().reshape(-1)
            if flat.numel():
                dist.broadcast(flat.view(torch.uint8), 0)
            tensor.detach().copy_(flat.view(tensor.shape))


def join(device: torch.device) -> Ranks:
    """The ranks that the environment names, as torch has it: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Without them, alone.

    Rank 0 listens on that port; whoever chose it may hold it bound (SO_REUSEPORT), so that nobody else can take it before. A
    process group that was made already is taken as it is.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if not dist.is_initialized():
        if size == 1:
            return Ranks()
        for name in "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME":  # all ranks are on this host
            os.environ.setdefault(name, "lo")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        rank, backend = int(os.environ["RANK"]), "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(rank, size), rank=rank, world_size=size, timeout=_NEVER)
    return Group(device)


def is_lost(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone; why, that one knows."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _store(rank: int, size: int) -> TCPStore:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening = socket.create_server((address, port), reuse_port=True).detach() if rank == 0 else None
    return TCPStore(address, port, size, rank == 0, timeout=_MEET, wait_for_workers=False, master_listen_fd=listening)


def _sum(gradients: list[Tensor]) -> None:
    """Sum each over the ranks, in place."""
    waiting = []
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        waiting.append((dist.all_reduce(flat, async_op=True), flat, bucket))
    for work, flat, bucket in waiting:
        work.wait()
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view(one.shape) for part, one in zip(parts, bucket, strict=True)])


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= _BUCKET or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket
