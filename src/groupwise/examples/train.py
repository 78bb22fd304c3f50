"""Trains a small ResNeXt whose groups are split over several ranks.

    torchrun --nproc-per-node 2 -m groupwise.examples.train --model resnext --data digits

The paths of each block are spread over the ranks, so that a block needs one all-reduce. Every rank gets the same
pictures, and the run equals that of a single process.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from groupwise.errors import GroupwiseError
from groupwise.examples.digits import DigitsResNeXt, digits
from groupwise.parallel import checkpoint, split
from groupwise.parallel.checkpoint import AlikeError, alike
from groupwise.spec.legible import legible

MODELS = {"resnext": DigitsResNeXt}
DATA = {"digits": digits}
NEWEST = ""
# This key is in torchrun's store once a run has begun.
BEGUN = "groupwise/begun"


@dataclass
class Run:
    """A model in training, and how far it has come."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0

    def learn(self, pictures: torch.Tensor, labels: torch.Tensor) -> float:
        """Takes one step and returns the loss."""
        # The rate rises to its peak in a tenth of the steps, and follows a cosine.
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
    """Trains as the command line says, and returns its exit status."""
    options = _parse(arguments)
    rank = _join(options.timeout)
    try:
        train(options)
    except AlikeError as error:
        if rank == 0:
            print(f"groupwise: {legible(str(error))}", file=sys.stderr)
        # torchrun ends all ranks as soon as one ends, so that they wait until the first has printed.
        distributed.barrier()
        return 2
    except GroupwiseError as error:
        print(f"groupwise: rank {rank}: {legible(str(error))}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        newest = checkpoint.list_checkpoints(options.checkpoints)
        state = f"the last checkpoint is {newest[-1]}" if newest else "there is no checkpoint yet"
        reason = str(error).splitlines()[0]
        print(
            f"groupwise: rank {rank} stops, because another rank has stopped or not answered in {options.timeout:g} s; "
            + legible(f"{state}; continue with --resume, or let torchrun --max-restarts do it ({reason})"),
            file=sys.stderr,
        )
        return 1
    finally:
        checkpoint.release(options.checkpoints)
    distributed.destroy_process_group()
    return 0


def train(options: argparse.Namespace) -> float:
    """Trains, writes checkpoints, and returns the accuracy on the test pictures."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    device = _device()
    with alike():
        data = DATA[options.data]()
        if not pathlib.Path(options.checkpoints).exists():
            # A run that has nothing to resume from makes no folder.
            _find(options)
        _check(options, len(data[0]))
    # Workers may outlive a killed torchrun, and two runs in one folder would remove each other's checkpoints.
    checkpoint.claim(options.checkpoints)
    with alike():
        # Before the claim another run may have written there, or left a checkpoint to which the claim gives its name.
        path = _find(options)
    torch.manual_seed(options.seed)
    mesh = init_device_mesh(device.type, (ranks,), mesh_dim_names=("groups",))
    model = split(MODELS[options.model]().to(device), mesh)
    pictures, labels, *test = (tensor.to(device) for tensor in data)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = len(labels) // options.batch
    run = Run(model, optimizer, options.epochs * batches)

    def save() -> pathlib.Path:
        return checkpoint.save(options.checkpoints, run.step, model, optimizer, batch=options.batch)

    def examine(when: str) -> float:
        accuracy = evaluate(model, *test)
        if rank == 0:
            print(f"{when}: {100 * accuracy:.2f} % of {len(test[1])} test pictures")
        return accuracy

    if path is not None:
        _resume(run, path, options)
        if path not in checkpoint.list_checkpoints(options.checkpoints)[-1:]:
            # A restart resumes from the newest checkpoint of the folder.
            path = save()
    for group in optimizer.param_groups:
        group["initial_lr"] = options.lr
    if rank == 0 and (agent := _agent(options.timeout)):
        agent.set(BEGUN, "yes")
    accuracy = 0.0
    if run.step == run.steps:
        accuracy = examine("nothing is left to train")
    for epoch in range(run.step // batches, options.epochs):
        model.train()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(options.seed + epoch))
        for batch in _progress(epoch, options, run.step % batches, batches, rank):
            chosen = order[batch * options.batch : (batch + 1) * options.batch]
            run.learn(_shift(pictures[chosen], epoch * batches + batch), labels[chosen])
            if run.step % options.every == 0 or run.step == run.steps:
                path = save()
        accuracy = examine(f"epoch {epoch + 1:2} of {options.epochs}")
    if rank == 0:
        print(legible(f"the checkpoint is {path}"))
    return accuracy


@torch.no_grad()
def evaluate(model: torch.nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the fraction of pictures that the model classifies correctly."""
    model.eval()
    found: torch.Tensor = model(pictures).argmax(1)
    return (found == labels).float().mean().item()


def _shift(pictures: torch.Tensor, seed: int) -> torch.Tensor:
    """Returns each picture moved by up to one pixel each way, equally on each rank."""
    moves = torch.randint(3, (len(pictures), 2), generator=torch.Generator().manual_seed(seed))
    padded = F.pad(pictures, (1, 1, 1, 1))
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, moves.tolist(), strict=True)])


def _find(options: argparse.Namespace) -> pathlib.Path | None:
    """Returns the checkpoint to resume from, or None for a new run, which needs a folder without checkpoints."""
    folder = pathlib.Path(options.checkpoints)
    found = checkpoint.list_checkpoints(folder)
    newest = found[-1] if found else None
    if _restarts() and ((agent := _agent(options.timeout)) is None or agent.check([BEGUN])):
        return newest
    if options.resume == NEWEST:
        if newest is None:
            raise GroupwiseError(f"--resume: no checkpoint in {folder}; leave it out to start a new run")
        return newest
    path = None if options.resume is None else pathlib.Path(options.resume)
    if newest is not None and (path is None or path.resolve().parent != folder.resolve()):
        raise GroupwiseError(
            f"--checkpoints {folder} holds checkpoints of another run, the newest {newest}, which this one would "
            "replace; continue with --resume, or give another --checkpoints folder"
        )
    return path


def _check(options: argparse.Namespace, pictures: int) -> None:
    """Refuses, before any work, a batch of more than all pictures, and a folder that cannot be written."""
    if options.batch > pictures:
        raise GroupwiseError(
            f"--batch {options.batch} is more than the {pictures} pictures to train on; give at most {pictures}"
        )
    try:
        pathlib.Path(options.checkpoints).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.checkpoints).close()
    except OSError as error:
        raise GroupwiseError(
            f"--checkpoints {options.checkpoints} cannot be written ({error}); give another folder"
        ) from error


def _resume(run: Run, path: pathlib.Path, options: argparse.Namespace) -> None:
    """Loads a checkpoint of this run, or of a run that had fewer steps."""
    try:
        facts = checkpoint.load(path, run.model, run.optimizer)
    except AlikeError as error:
        beside = checkpoint.list_checkpoints(path.parent)
        older = beside[: beside.index(path)] if path in beside else []
        raise AlikeError(f"{error} (the one before it: --resume {older[-1]})" if older else f"{error}") from error
    step, batch = facts["step"], facts.get("batch")
    with alike():
        if batch != options.batch:
            raise GroupwiseError(
                f"{path} counts its steps by --batch {batch}, and --batch is {options.batch} now; give --batch {batch}"
            )
        if step > run.steps:
            epochs = -(-step * options.epochs // run.steps)
            raise GroupwiseError(
                f"{path} is at step {step}, and --epochs {options.epochs} ends at step {run.steps}; give at least "
                f"--epochs {epochs}"
            )
    run.step = step
    if distributed.get_rank() == 0:
        print(legible(f"resuming from {path}, step {step} of {run.steps}"))


def _progress(epoch: int, options: argparse.Namespace, first: int, batches: int, rank: int) -> Iterator[int]:
    from tqdm import tqdm

    shown = None if rank == 0 else True  # None shows the bar only in a terminal.
    bar = tqdm(range(first, batches), f"epoch {epoch + 1:2}", disable=shown, leave=False, unit="step")
    yield from bar


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _join(timeout: float) -> int:
    """Joins torchrun's process group, or makes one of this process alone, and returns the rank."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    patience = timedelta(seconds=timeout)
    if "RANK" not in os.environ:
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=patience)
    elif agent := _agent(timeout):
        # Each restart gets a prefix of its own: the store still has the addresses of the processes before it.
        store = PrefixStore(f"restart-{_restarts()}", agent)
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
    else:
        distributed.init_process_group(backend, timeout=patience)
    return distributed.get_rank()


def _agent(timeout: float) -> TCPStore | None:
    """Returns torchrun's own store, which outlives a restart; None if torchrun does not offer it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout))


def _restarts() -> int:
    """Returns how often torchrun has restarted this rank."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _is_of_the_group(error: RuntimeError) -> bool:
    """Says whether another rank was lost: gloo's error names its source then, and others have a type of their own."""
    return isinstance(error, distributed.DistError) or re.match(r"\[\S*gloo/\S+\] ", str(error)) is not None


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} must be a whole number from 1 up")
    return int(word)


def _positive(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = 0
    if not 0 < number <= 1e9:
        raise argparse.ArgumentTypeError(f"{word} must be a number above 0 and up to 1e9")
    return number


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m groupwise.examples.train",
        description="Train a network split by groups, over the ranks that torchrun starts or in one process.",
    )

    def add(name: str, what: str, **settings: Any) -> None:
        parser.add_argument(name, help=f"{what}, default %(default)s", **settings)

    add("--model", "the network", choices=MODELS, default="resnext")
    add("--data", "the pictures", choices=DATA, default="digits")
    add(
        "--epochs",
        "passes over all pictures; the learning rate falls along a cosine over them",
        type=_count,
        default=15,
    )
    add("--batch", "pictures per step", type=_count, default=64)
    add("--lr", "peak of the learning rate", type=_positive, default=0.1)
    add("--seed", "seed of the initial weights and of the order of the pictures", type=int, default=0)
    add("--checkpoints", "the folder for checkpoints", metavar="FOLDER", default="groupwise-checkpoints")
    add("--every", "steps from one checkpoint to the next", type=_count, default=50)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="PATH",
        help="resume from the checkpoint PATH, or without PATH from the newest in FOLDER; by default a new run starts",
    )
    add("--timeout", "seconds that a rank waits for other ranks", type=_positive, default=60)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of gloo that releases its last tensor after Python began to end would abort the process.
    os._exit(status)
