"""Who computes the shards of a job: this process, several on this machine, or a Ray cluster.

The one idea: each takes a shard and gives a Future of the bytes of its file, so one loop drives all three. A
worker on another machine needs Transom and the model at the same place; the rows and their answers travel.
Read next: shard, batch.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from transom.errors import Refused

from .shard import Job, answers

AHEAD = 2
"""Shards that each worker has in hand or waiting."""


class Workers(NamedTuple):
    """Those who wait for shards."""

    submit: Callable[[Job, Sequence[str | None]], Future[bytes | Refused]]
    at_once: int
    """Shards that are worth giving out at a time."""
    lost: tuple[type[Exception], ...] = ()
    """What a Future raises when its worker has died."""


def workers_for(job: Job, n: int, ray: str | None) -> AbstractContextManager[Workers]:
    """n workers on this machine, or those of the Ray cluster at an address. Raises Refused."""
    if ray is not None:
        return _cluster(ray, job)
    return _processes(n) if n > 1 else _here()


@contextmanager
def _here() -> Iterator[Workers]:
    def submit(job: Job, texts: Sequence[str | None]) -> Future[bytes | Refused]:
        done: Future[bytes | Refused] = Future()
        done.set_result(answers(job, texts))
        return done

    yield Workers(submit, 1)


@contextmanager
def _processes(n: int) -> Iterator[Workers]:
    spawn = multiprocessing.get_context("spawn")  # a fork of a process whose torch has worked may hang
    others = {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(n, mp_context=spawn, initializer=_as_worker)
    try:
        yield Workers(lambda job, texts: pool.submit(answers, job, texts), AHEAD * n, (BrokenProcessPool,))
    except BaseException:  # nobody waits for what they are at
        for child in {*multiprocessing.active_children()} - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _as_worker() -> None:
    """End quietly at Ctrl-C, and with the process that started this one, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _cluster(address: str, job: Job) -> Iterator[Workers]:
    """Tasks of Ray: one whose worker is killed is done again, once."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise Refused("--ray needs Ray: pip install 'transom[ray]'") from None
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and "/" not in host:  # Ray itself looks for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="transom")
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        says = str(error).splitlines()[0]
        raise Refused(f"--ray {address}: no Ray cluster there ({says}); `local` starts one") from None
    try:
        needs: dict[str, Any] = {"num_cpus": job.threads, "num_gpus": int(job.device == "cuda")}
        n = int(ray.cluster_resources().get("CPU", 0)) // job.threads
        if n == 0:
            raise Refused(f"--ray {address}: no node has the {job.threads} CPUs of a worker; --workers takes"
                          " more workers with fewer")  # fmt: skip
        task = ray.remote(max_retries=1, **needs)(answers)
        yield Workers(lambda job, texts: task.remote(job, texts).future(), AHEAD * n, (RayError,))
    finally:
        ray.shutdown()
