"""Several processes as one: who they are, what they agree on, and how a model is spread over them.

Every rank runs the same loop over its share of each batch. Gradients are summed over ranks by DDP (every
rank holds all weights) or FSDP2 (every rank holds a slice). What only one process may do (write, print,
prepare data), rank 0 does while the others wait without a deadline; `watchdog` ends the wait if a rank dies.
Sources: Li et al. 2020 (DDP), Zhao et al. 2023 (FSDP). Read next: watchdog.
"""

from __future__ import annotations

import datetime
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import Refused
from .watchdog import Watchdog

GROUP_TIMEOUT = 45.0
"""Seconds a collective may wait for a rank before it fails."""


class World:
    """All processes of a run, as one of them sees it. With one process, everything here is trivial."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        kind: Literal["none", "ddp", "fsdp"] = "none",
        device: torch.device | None = None,
        store: Any = None,
        timeout: float = GROUP_TIMEOUT,
    ) -> None:
        self.rank, self.size, self.kind = rank, size, kind
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size)) if size > 1 else 1
        self.device = device or torch.device("cpu")
        self.store = store
        # Sooner than the collectives give up, since it can name the rank.
        self.watchdog = Watchdog(store.clone(), rank, size, timeout * 2 / 3) if size > 1 else None
        self._calls = 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    # ---- agreeing

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Add numbers over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def on_rank_zero(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 while the others wait as long as it takes; all get its result (JSON values
        only).

        A `Refused` on rank 0 ends the others quietly, with the same exit code: one line is enough.
        """
        if self.size == 1:
            return work()
        self._calls += 1
        key = f"first/{self._calls}"
        if not self.is_first:
            assert self.watchdog is not None
            while not self.store.check([key]):
                if self.watchdog.has_left(0):  # stopped by a signal before it came this far
                    raise SystemExit(0)
                time.sleep(0.02)
            answer = json.loads(self.store.get(key))
            if "refused" in answer:
                raise SystemExit(2)
            return answer["result"]
        try:
            result = work()
        except Refused as refusal:
            self.store.set(key, json.dumps({"refused": str(refusal)}))
            raise
        self.store.set(key, json.dumps({"result": result}))
        return result

    def gather(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], int]:
        """Return the rows of all ranks, one rank's behind another's, and where this rank's begin; each rank
        gives as many rows of every tensor.
        """
        n = len(tensors[0])
        if self.size == 1:
            return list(tensors), 0
        counts = [int(count) for count in self.sum([n * (rank == self.rank) for rank in range(self.size)])]
        first, whole = sum(counts[: self.rank]), []
        for tensor in tensors:
            rows = tensor.new_zeros(sum(counts), *tensor.shape[1:])
            rows[first : first + n] = tensor
            dist.all_reduce(rows)
            whole.append(rows)
        return whole, first

    # ---- spreading a model

    def wrap(self, objective: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
        """Spread an objective over the ranks; its loss is then called through what comes back."""
        if self.kind == "ddp":
            devices = [self.device.index] if self.device.type == "cuda" else None
            # Buffers are equal on all ranks from the start. The switch got another name in torch 2.13.
            known = inspect.signature(DistributedDataParallel).parameters
            switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            options: dict[str, Any] = {switch: False, "device_ids": devices, "gradient_as_bucket_view": True}
            return DistributedDataParallel(objective, **options)
        if self.kind == "fsdp":
            mesh = init_device_mesh(self.device.type, (self.size,))
            for layer in layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(objective, mesh=mesh)
        return objective

    @contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Exchange gradients only with the `last` micro-batch of a step."""
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
            return
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        yield

    def sum_squares(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the sum of squares of each gradient, (n,) float32, over all of its shards."""
        local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
        norms = torch._foreach_norm(local)  # pyright: ignore[reportPrivateImportUsage]
        squares = torch.stack([norm.float() for norm in norms]).square()
        if self.kind == "fsdp":
            dist.all_reduce(squares)
        return squares

    def close(self) -> None:
        """Leave, in good order: the others are told, so that they do not miss this rank."""
        if self.watchdog is not None:
            self.watchdog.close()
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def together(kind: str, device: str | torch.device) -> Iterator[World]:
    """Join the world, as a context: when a rank fails, every rank ends, and one message says why."""
    world = join(kind, device)
    try:
        yield world
    except Exception as error:
        if world.watchdog is not None and is_of_a_collective(error):
            world.watchdog.explain(error)  # does not return
        if world.watchdog is not None:
            world.watchdog.report(error)
            if isinstance(error, Refused) and world.watchdog.first_said():
                raise SystemExit(2) from None  # rank 0 refuses the same: its line is enough
            if isinstance(error, Refused):
                world.watchdog.end_last()
        raise
    finally:  # SystemExit of a rank that ends quietly comes this way too
        if world.watchdog is not None:
            world.watchdog.stop()
    world.close()


def is_of_a_collective(error: BaseException) -> bool:
    """Tell whether an error says that talking to another rank failed."""
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def join(kind: str = "auto", device: str | torch.device = "cpu") -> World:
    """Join the world that the environment describes (torchrun sets RANK, WORLD_SIZE, ...), or be alone.

    kind: 'none', 'ddp', 'fsdp', or 'auto' (ddp when there are several processes).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(device)
    if size == 1:
        if kind in ("ddp", "fsdp"):
            raise Refused(
                f"run.parallel is '{kind}', but this is one process; start several with: "
                f"torchrun --nproc-per-node 2 -m transom train ..."
            )
        return World(device=device)
    if kind == "none":
        raise Refused(f"run.parallel is 'none', but {size} processes were started; use ddp or fsdp")
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if os.environ.get("MASTER_ADDR", "") in ("127.0.0.1", "localhost", "::1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing listens to the network
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    seconds = float(os.environ.get("TRANSOM_RANK_TIMEOUT", GROUP_TIMEOUT))
    timeout = datetime.timedelta(seconds=seconds)
    raw, _, _ = next(rendezvous("env://", timeout=datetime.timedelta(seconds=max(60.0, seconds))))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"transom/{attempt}", raw)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    chosen = "fsdp" if kind == "fsdp" else "ddp"
    return World(rank, size, kind=chosen, device=device, store=store, timeout=seconds)
