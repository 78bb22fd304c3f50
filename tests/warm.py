"""Starts Python processes that have torch imported: each is forked from a server that has it, and nothing of groupwise.

An interpreter takes seconds to import torch, which most tests of processes do not test. What is forked is otherwise a
process of its own: it imports groupwise itself, and runs `-c CODE`, `-m MODULE` or a script. At its end it waits for
its threads and runs what is registered for the exit, but takes no modules apart, which with torch takes a second more.
The server has no threads, and its OpenMP has one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

FORKS = sys.platform == "linux"
# The word that stands for `-m torch.distributed.run` where its ranks, too, are to be forked.
TORCHRUN = "torchrun"
# The environment variable by which the processes that a process starts find its server.
ADDRESS = "WARM_SERVER"
ENOUGH = 300
# What groupwise.parallel and torchrun import of others.
IMPORTED = """
torch torch._dynamo torch.distributed.checkpoint.state_dict torch.distributed.device_mesh torch.distributed.fsdp
torch.distributed.run torch.distributed.tensor.parallel
""".split()


class Process:
    """A process that runs the words of an interpreter's command line, as `subprocess.Popen` would show it.

    Its standard input stays open and empty until this object is closed.
    """

    def __init__(self, *words, folder=None, environment=None):
        self.words = [str(word) for word in words]
        self.returncode = None
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name).open("wb") for name in ("out", "err")]  # noqa: SIM115
        self._input, self._hold = os.pipe()
        given = os.environ if environment is None else environment
        environment = {name: str(value) for name, value in given.items()}
        folder = str(folder or Path.cwd())
        if FORKS:
            self._begin(folder, environment)
        else:
            first = ["-m", "torch.distributed.run"] if self.words[0] == TORCHRUN else self.words[:1]
            out, err = self._files
            self._popen = subprocess.Popen(
                [sys.executable, *first, *self.words[1:]],
                cwd=folder,
                env=environment,
                stdin=self._input,
                stdout=out,
                stderr=err,
            )
            self.pid = self._popen.pid

    def _begin(self, folder, environment):
        self._told = socket.socket(socket.AF_UNIX)
        self._told.connect(_server())
        socket.send_fds(self._told, [b" "], [self._input, *(file.fileno() for file in self._files)])
        # A process that it starts finds the server, too.
        environment = environment | {ADDRESS: os.environ[ADDRESS]}
        request = {"words": self.words, "folder": folder, "environment": environment}
        self._told.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._told.makefile()
        self.pid = int(self._lines.readline())

    def wait(self, timeout=ENOUGH):
        if self.returncode is None:
            if FORKS:
                if not select.select([self._told], [], [], timeout)[0]:
                    raise TimeoutError(f"{self.words} has not ended in {timeout} s")
                self.returncode = int(self._lines.readline())
            else:
                self.returncode = self._popen.wait(timeout)
        return self.returncode

    def poll(self):
        if self.returncode is None:
            with contextlib.suppress(TimeoutError, subprocess.TimeoutExpired):
                self.wait(0)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def output(self):
        """What it has written to stdout and stderr."""
        # Each is opened anew: the files' position is also the process's, which would write its next word where this
        # has read.
        return [Path(file.name).read_bytes().decode() for file in self._files]

    def first_line(self):
        """Waits for the first line of its output."""
        end = time.monotonic() + ENOUGH
        while "\n" not in (out := self.output()[0]):
            assert self.poll() is None, self.output()
            assert time.monotonic() < end, "it has said nothing"
            time.sleep(0.01)
        return out.partition("\n")[0]

    def finish(self, timeout=ENOUGH):
        """Waits for its end; gives the exit status, and what it wrote."""
        try:
            self.wait(timeout)
        finally:
            self.close()
        return self.returncode, *self.said

    def close(self):
        """Kills what still runs."""
        if self._hold is not None:
            self.kill()
            self.wait()
            self.said = self.output()
            for file in self._files:
                file.close()
            self._folder.cleanup()
            os.close(self._input)
            os.close(self._hold)
            self._hold = None
            if FORKS:
                self._lines.close()
                self._told.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def run(*words, timeout=ENOUGH, **where):
    """What a process prints to stdout, which must end well."""
    status, out, err = Process(*words, **where).finish(timeout)
    assert status == 0, err
    return out


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(ranks, *words, **where):
    """torchrun with so many ranks of what its further words say; each rank is forked from it."""
    return Process(TORCHRUN, "--nproc-per-node", ranks, "--master-port", free_port(), *words, **where)


def _server():
    """The address of the server, which begins with the first process, and ends with the process that began it."""
    if ADDRESS not in os.environ:
        with socket.socket(socket.AF_UNIX) as listener:
            # The system chooses a name, of no file.
            listener.bind("")
            listener.listen(64)
            address = listener.getsockname().decode()
            server = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        # An environment has no zero byte, with which such a name begins.
        os.environ[ADDRESS] = address[1:]
        atexit.register(server.communicate)
    return "\0" + os.environ[ADDRESS]


def _serve(listener):
    """Forks for each request, and returns the words that the process is to run, in that process."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        # Its input ends with the process that began it.
        if 0 in select.select([listener, 0], [], [])[0]:
            os._exit(0)
        told, _ = listener.accept()
        if os.fork() == 0:
            break
        told.close()
    # This process waits for the one that runs, as its parent.
    listener.close()
    _, standard, _, _ = socket.recv_fds(told, 1, 3)
    request = json.loads(told.makefile().readline())
    if (child := os.fork()) == 0:
        told.close()
        _become(standard, request["environment"])
        os.chdir(request["folder"])
        return request["words"]
    told.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        told.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(standard, environment):
    """Takes the standard files and the environment of a process that begins."""
    for number, file in enumerate(standard):
        if file is not None:
            os.dup2(file, number)
            os.close(file)
    os.environ.clear()
    os.environ.update(environment)


def _execute(words):
    """Runs the words of an interpreter's command line in this process, and ends it."""
    status = 1
    try:
        _run(words)
        status = 0
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(words):
    _fork_what_is_spawned()
    del sys.modules["__main__"]
    packages = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = ["", *filter(None, packages)]
    kind, *rest = words
    if kind == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif kind == "-m":
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.path[0] = str(Path.cwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == TORCHRUN:
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
        from torch.distributed.run import main

        sys.modules["__main__"] = types.ModuleType("__main__")
        subprocess_handler.Popen = _Rank
        main(rest)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.path[0] = str(Path(kind).resolve().parent)
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


def _fork_what_is_spawned():
    """Lets `torch.multiprocessing.spawn` fork: no import of torch, and an end that takes no modules apart.

    An interpreter that ends while a thread of gloo still gives back a tensor ends by a signal: that thread waits for
    the lock of an interpreter that is no more (https://github.com/pytorch/pytorch/pull/179291). What forks must have
    one OpenMP thread.
    """
    from torch import multiprocessing

    multiprocessing.spawn = functools.partial(multiprocessing.start_processes, start_method="fork")


class _Rank:
    """A process that torchrun starts: forked from it, where `subprocess.Popen` would begin another interpreter."""

    def __init__(self, args, env, stdout=None, stderr=None, start_new_session=False):
        self.args, self.returncode = args, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._begin([word for word in args[1:] if word != "-u"], env, [None, stdout, stderr], start_new_session)

    def _begin(self, words, environment, standard, alone):
        if alone:
            os.setsid()
        # torchrun handles them by ending its ranks.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        _become([None if file is None else file.fileno() for file in standard], environment)
        _execute(words)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.05)
        return self.returncode


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    # What is there now is neither looked at nor copied by the collections of those that are forked.
    gc.freeze()
    _execute(_serve(socket.socket(fileno=int(sys.argv[1]))))
