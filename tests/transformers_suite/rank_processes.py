"""Starts the processes of transformers' distributed tests: gloo on the CPU, one process a rank.

Stands in for `tests/distributed_testing_utils.py` of transformers, whose names its mixins import.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


# ranks are forked from a server that has imported this already, which takes seconds each time otherwise
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["hf_loop.models", "transformers.testing_utils", "transformers.models.llama.modeling_llama"]
)


def _get_distributed_device_type() -> str:
    return "cpu"


def _get_distributed_backend() -> str:
    return "gloo"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    pass


def _start_rank_processes(function: Callable, args: tuple = (), nprocs: int = 2) -> None:
    mp.start_processes(function, args=args, nprocs=nprocs, start_method="forkserver")


def _run_rank(rank: int, address: dict[str, str], backend: str, function: Callable, args: tuple, kwargs: dict) -> None:
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
    dist.init_process_group(backend=backend)
    function(rank, *args, **kwargs)
    dist.barrier()
    dist.destroy_process_group()


def run_distributed(world_size: int, backend: str = "gloo") -> Callable:
    """A decorator: the function is called in `world_size` processes, with the rank as its first argument."""

    def decorate(function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> None:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
            _start_rank_processes(_run_rank, (address, backend, function, args, kwargs), world_size)

        return run

    return decorate


__all__ = [
    "_get_distributed_backend",
    "_get_distributed_device_type",
    "_get_rank_device",
    "_set_rank_device",
    "_start_rank_processes",
    "run_distributed",
]
