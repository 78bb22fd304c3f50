"""Train a small ResNeXt whose groups lie on several ranks.

    torchrun --nproc-per-node 2 -m groupwise.examples.train --model resnext --data digits

The paths of each block are spread over the ranks, so that a block costs one all-reduce. Every rank sees the same
pictures, and the run is the one that a single process would make.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from groupwise.errors import GroupwiseError
from groupwise.examples.digits import DigitsResNeXt, digits
from groupwise.parallel import checkpoint, split

MODELS = {"resnext": DigitsResNeXt}
DATA = {"digits": digits}


@dataclass
class Run:
    """A model in training, and how far it has come."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0

    def learn(self, pictures: torch.Tensor, labels: torch.Tensor) -> float:
        """One step; gives the loss."""
        # Up to the peak in a tenth of the steps, then down a cosine.
        done = self.step / self.steps
        rate = min(done / 0.1, 1) * 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item())
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        loss = F.cross_entropy(self.model(pictures), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        return loss.item()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; gives its exit status."""
    options = _parse(arguments)
    rank = _join(options.timeout)
    try:
        train(options)
    except GroupwiseError as error:
        print(f"groupwise: rank {rank}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        newest = checkpoint.list_checkpoints(options.checkpoints)
        state = f"the last checkpoint is {newest[-1]}" if newest else "there is no checkpoint yet"
        print(
            f"groupwise: rank {rank} stops, because another rank has stopped or not answered in {options.timeout:g} s; "
            f"{state}; go on with --resume, or let torchrun --max-restarts do it ({str(error).splitlines()[0]})",
            file=sys.stderr,
        )
        return 1
    distributed.destroy_process_group()
    return 0


def train(options: argparse.Namespace) -> float:
    """Train, write checkpoints, and give the accuracy on the test pictures."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    device = _device()
    torch.manual_seed(options.seed)
    mesh = init_device_mesh(device.type, (ranks,), mesh_dim_names=("groups",))
    model = split(MODELS[options.model]().to(device), mesh)
    pictures, labels, *test = (tensor.to(device) for tensor in DATA[options.data]())
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = options.lr
    batches = len(labels) // options.batch
    run = Run(model, optimizer, options.epochs * batches)
    if options.resume or _restarts():
        _resume(run, options, must=not _restarts())
    accuracy = 0.0
    for epoch in range(run.step // batches, options.epochs):
        model.train()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(options.seed + epoch))
        for batch in _progress(epoch, options, run.step % batches, batches, rank):
            chosen = order[batch * options.batch : (batch + 1) * options.batch]
            run.learn(_shift(pictures[chosen], epoch * batches + batch), labels[chosen])
            if run.step % options.every == 0:
                checkpoint.save(options.checkpoints, run.step, model, optimizer)
        accuracy = evaluate(model, *test)
        if rank == 0:
            print(f"epoch {epoch + 1:2} of {options.epochs}: {100 * accuracy:.2f} % of {len(test[1])} test pictures")
    checkpoint.save(options.checkpoints, run.step, model, optimizer)
    return accuracy


@torch.no_grad()
def evaluate(model: torch.nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of pictures whose digit the model finds."""
    model.eval()
    found: torch.Tensor = model(pictures).argmax(1)
    return (found == labels).float().mean().item()


def _shift(pictures: torch.Tensor, seed: int) -> torch.Tensor:
    """Each picture moved by up to one pixel each way, the same on each rank."""
    moves = torch.randint(3, (len(pictures), 2), generator=torch.Generator().manual_seed(seed))
    padded = F.pad(pictures, (1, 1, 1, 1))
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, moves.tolist(), strict=True)])


def _resume(run: Run, options: argparse.Namespace, must: bool) -> None:
    found = checkpoint.list_checkpoints(options.checkpoints)
    if not found:
        if must:
            raise GroupwiseError(f"--resume: no checkpoint in {options.checkpoints}; leave it out to begin anew")
        return
    run.step = checkpoint.load(found[-1], run.model, run.optimizer)["step"]
    if distributed.get_rank() == 0:
        print(f"going on from {found[-1]}, step {run.step} of {run.steps}")


def _progress(epoch: int, options: argparse.Namespace, first: int, batches: int, rank: int) -> Iterator[int]:
    from tqdm import tqdm

    shown = None if rank == 0 else True  # None: where there is a terminal
    bar = tqdm(range(first, batches), f"epoch {epoch + 1:2}", disable=shown, leave=False, unit="step")
    yield from bar


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _join(timeout: float) -> int:
    """Join torchrun's process group, or make one of this process alone."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    patience = timedelta(seconds=timeout)
    if "RANK" not in os.environ:
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=patience)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The agent's store outlives a restart, and in it the addresses of the processes before.
        agent = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=patience)
        store = PrefixStore(f"restart-{_restarts()}", agent)
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
    else:
        distributed.init_process_group(backend, timeout=patience)
    return distributed.get_rank()


def _restarts() -> int:
    """How often torchrun has started this rank anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _is_of_the_group(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "connection", "timed out", "socket", "store")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m groupwise.examples.train", description="Train a network split by groups."
    )
    parser.add_argument("--model", choices=MODELS, default="resnext")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1, help="the learning rate at its peak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", default="groupwise-checkpoints", help="the folder for checkpoints")
    parser.add_argument("--every", type=int, default=50, help="steps from one checkpoint to the next")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--timeout", type=float, default=60, help="seconds that a rank waits for the others")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
