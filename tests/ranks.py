"""Four processes that run functions of the tests as the ranks of a process group, kept for as long as tests run."""

from __future__ import annotations

import copy
import math
import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import warm

WORLD = 4
# How long ranks wait for one another, and the test for them.
PATIENCE = 60
BEGIN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ranks import serve
rank, port, address, key = sys.argv[1:]
serve(int(rank), int(port), address, bytes.fromhex(key))
"""


class Ranks:
    def __init__(self) -> None:
        self._processes: list[warm.Process] = []
        self._pipes: list[connection.Connection] = []

    def run(self, ranks: int | tuple[int, ...], function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(mesh, *arguments)` on each of so many ranks; what each gave. Raises what one raised."""
        count = ranks if isinstance(ranks, int) else math.prod(ranks)
        if not self._processes:
            self._start()
        for pipe in self._pipes[:count]:
            pipe.send((ranks, function, arguments))
        answers: dict[int, tuple[bool, Any]] = {}
        while len(answers) < count:
            # Once one has failed the others may wait for it in vain.
            failed = any(not good for good, _ in answers.values())
            waiting = [self._pipes[rank] for rank in range(count) if rank not in answers]
            ready = connection.wait(waiting, 3 if failed else 2 * PATIENCE)
            if not ready:
                break
            for pipe in ready:
                answers[self._pipes.index(pipe)] = pipe.recv()
        texts = [f"rank {rank} of {count}:\n{text}" for rank, (good, text) in answers.items() if not good]
        if texts or len(answers) < count:
            self.stop()
            raise AssertionError("\n".join([*texts, f"of {count} ranks {sorted(answers)} have answered"]))
        return [answers[rank][1] for rank in range(count)]

    def stop(self) -> None:
        for process in self._processes:
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        import torch.distributed as distributed

        # Rank 0 of the ranks is in a process of its own: the store lives here, and so outlives each of them.
        self._store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        key = bytes(multiprocessing.current_process().authkey)
        with connection.Listener(authkey=key) as listener:
            for rank in range(WORLD):
                self._processes.append(warm.Process("-c", BEGIN, rank, self._store.port, listener.address, key.hex()))
                self._pipes.append(listener.accept())


def serve(rank: int, port: int, address: str, key: bytes) -> None:
    """Runs what the tests' process asks for, until that process ends."""
    # Tensors that come from there are fetched with its key.
    multiprocessing.current_process().authkey = key
    pipe = connection.Client(address, authkey=key)
    import torch
    import torch.distributed as distributed
    from torch.distributed.device_mesh import DeviceMesh

    torch.set_num_threads(1)
    store = distributed.TCPStore("127.0.0.1", port, is_master=False)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=PATIENCE)
    )
    # Each rank takes part in making each mesh, also of those that it is not in.
    meshes: dict[Any, DeviceMesh] = {n: DeviceMesh("cpu", list(range(n))) for n in range(1, WORLD + 1)}
    meshes[2, 2] = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("data", "groups"))
    while True:
        try:
            ranks, function, arguments = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            # Tensors come in memory that all ranks share.
            pipe.send((True, function(meshes[ranks], *copy.deepcopy(arguments))))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


ranks = Ranks()
