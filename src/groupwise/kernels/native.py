"""The native core: finds the library that fits this torch, and loads it when it is first wanted.

There are two. `_native.so` has everything, by PyTorch's C++ interface: it fits the one release of torch that it was
built for, and is never opened with another, which may crash the process. `_stable.so` has the kernels behind PyTorch's
convolutions, by the stable C interface of torch 2.10 and later. `_native.json` beside them says how they were built.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import sys
import threading
import types
import urllib.parse
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any

import groupwise
from groupwise.errors import GroupwiseError
from groupwise.kernels import tables

# GROUPWISE_API_VERSION of csrc/binding/c_api.h, as are the signatures below. It counts operators and classes too.
API_VERSION = 17

# The environment variable that names the library to use, for tests and comparisons.
BINDING, BINDINGS = "GROUPWISE_BINDING", ("exact", "stable")

CLOCK = ctypes.CFUNCTYPE(ctypes.c_double)
NOTICE = ctypes.CFUNCTYPE(None)
_TEXT = [ctypes.c_char_p, ctypes.c_int64]  # the buffer that a call fills, and its size
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "groupwise_api_version": (ctypes.c_int32, []),
    "groupwise_failure": (ctypes.c_char_p, []),
    "groupwise_build": (ctypes.c_int64, _TEXT),
    "groupwise_isa": (ctypes.c_int64, _TEXT),
    "groupwise_register": (ctypes.c_int32, []),
    "groupwise_dispatch": (None, [ctypes.c_int32]),
    "groupwise_dispatch_thread": (ctypes.c_int32, [ctypes.c_int32]),
    "groupwise_force": (ctypes.c_char_p, [ctypes.c_char_p]),
    "groupwise_force_isa": (ctypes.c_int32, [ctypes.c_char_p]),
    "groupwise_forced_isa": (ctypes.c_char_p, []),
    "groupwise_plan": (ctypes.c_int64, [ctypes.POINTER(ctypes.c_int64), ctypes.c_char_p, *_TEXT]),
    "groupwise_features": (ctypes.c_int64, [ctypes.POINTER(ctypes.c_int64), ctypes.c_char_p, *_TEXT]),
    "groupwise_tables": (
        ctypes.c_int32,
        [*[ctypes.c_char_p] * 4, ctypes.POINTER(ctypes.c_double), ctypes.c_int64],
    ),
    "groupwise_model": (
        ctypes.c_int32,
        [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_double), ctypes.c_int64],
    ),
    "groupwise_share": (ctypes.c_int32, [ctypes.c_char_p, ctypes.c_double]),
    "groupwise_start_takes": (None, [ctypes.c_double]),
    "groupwise_machine": (ctypes.c_int64, _TEXT),
    "groupwise_tune": (ctypes.c_int32, [ctypes.c_double, ctypes.c_double, ctypes.c_int32, ctypes.c_char_p]),
    "groupwise_fft": (None, [ctypes.c_int32]),
    "groupwise_remember": (
        ctypes.c_int32,
        [*[ctypes.c_char_p] * 3, ctypes.POINTER(ctypes.c_double), ctypes.c_int64, ctypes.c_int64],
    ),
    "groupwise_forget": (ctypes.c_int32, []),
    "groupwise_policy_changed": (None, []),
    "groupwise_measured": (ctypes.c_int64, _TEXT),
    "groupwise_clock": (None, [CLOCK]),
    **dict.fromkeys(("groupwise_when_spent", "groupwise_when_unknown"), (None, [NOTICE])),
    "groupwise_record_start": (ctypes.c_int64, []),
    "groupwise_record_stop": (ctypes.c_int64, [ctypes.c_int64, *_TEXT]),
}


@dataclass(frozen=True)
class Status:
    """The state of the native core: what was built, what can run, and what is wrong with it."""

    path: str | None = None
    """Path of the library, if there is one."""
    torch_built: str | None = None
    """Version of the torch that the library was built for."""
    torch_here: str | None = None
    """Version of the torch in this environment."""
    compiler: str | None = None
    """The compiler that built the library."""
    isas: tuple[str, ...] = ()
    """The instruction sets that the library has kernels for."""
    isa: str | None = None
    """The instruction set in use."""
    kernels_alone: str | None = None
    """Why the kernels come without the operators by which optimized networks run; None if both are there."""
    problem: str | None = None
    """Why the kernels cannot run; None if they can."""
    fix: str | None = None
    """What to do about the problem."""
    cause: str | None = None
    """Where the problem is: `platform`, `torch`, `library` or `setting`."""

    @property
    def operators_problem(self) -> str | None:
        """Why groupwise's own operators cannot run; None if they can."""
        return self.problem or self.kernels_alone

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        return {**asdict(self), "isas": list(self.isas)}


@dataclass(frozen=True)
class _State:
    status: Status = field(default_factory=Status)
    library: ctypes.CDLL | None = None

    def broken(self, problem: str, fix: str, cause: str = "library") -> _State:
        return _State(replace(self.status, problem=problem, fix=fix, cause=cause))


# Loading imports torch. A fork does not wait for that, because an import may wait for a lock that the fork holds; the
# child gets a lock of its own instead, and loads the library itself.
_loading = types.SimpleNamespace(lock=threading.RLock())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: setattr(_loading, "lock", threading.RLock()))


def library() -> ctypes.CDLL:
    """Returns the library with its functions' signatures. Raises `GroupwiseError`, with the fix, if there is none."""
    state = _state()
    if state.library is None:
        raise GroupwiseError(f"groupwise's kernels cannot run: {state.status.problem}; {state.status.fix}")
    return state.library


def status() -> Status:
    """Returns the state of the native core, which this loads if it can."""
    return _state().status


def build() -> dict[str, Any]:
    """Returns what the library holds: its instruction sets, those that this machine runs, and its table of kernels.

    Raises `GroupwiseError`, with the fix, if there is none.
    """
    facts: dict[str, Any] = json.loads(read_text(library().groupwise_build))
    return facts


def machine() -> dict[str, float]:
    """Returns what one core reaches by the instruction set in use, measured once a process in about 10 ms.

    - `peak`: float32 operations a second, a multiply-add counting as two
    - `bandwidth`: bytes a second that a copy reads and writes

    Raises `GroupwiseError`, with the fix, if there is no library.
    """
    facts: dict[str, float] = json.loads(read_text(library().groupwise_machine))
    return facts


@cache
def digest() -> str:
    """Returns what tells this library from every other build; "" if there is none."""
    path = _state().status.path
    return "" if path is None else hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:12]


def runnable() -> tuple[str, ...]:
    """Returns the instruction sets of the library that this machine runs, the plainest first."""
    return tuple(build()["runs"])


@cache
def prepare(isa: str) -> None:
    """Gives the core the shipped tables of an instruction set. That in use has them since the library was loaded."""
    if isa != status().isa:
        tables.use(library(), isa)


def available() -> bool:
    """Tells whether the kernels can run here.

    Warns once (`RuntimeWarning`) if there is a library that cannot be used, but not if there is none.
    """
    state = _state()
    if state.library is None and state.status.path:
        _warn(f"groupwise's kernels cannot run: {state.status.problem}; {state.status.fix}")
    return state.library is not None


def read_text(function: Callable[..., int], *arguments: Any) -> str:
    """Returns the text that a function of the library writes into its last two arguments, a buffer and its size."""
    size = 1024
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed = function(*arguments, buffer, size)
        if needed <= size:
            return buffer.value.decode()
        size = needed


def torch_problem() -> str | None:
    """Imports torch; returns why that failed, or None."""
    try:
        importlib.import_module("torch")
    except Exception as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def torch_command() -> str:
    """Returns the command that installs torch."""
    return f'{_pip(_origin()[1])} install "torch>=2.10"'


def rebuild_command() -> str:
    """Returns the command that builds the library for the torch of this environment."""
    source, installer = _origin()
    # A build that the user asked for shows its errors.
    command = "GROUPWISE_REQUIRE_NATIVE=1 "
    if installer == "uv":
        # uv builds in an environment that hides this one's torch.
        torch = importlib.util.find_spec("torch")
        folders = (torch.submodule_search_locations if torch else None) or ["FOLDER_OF_TORCH"]
        command += f"GROUPWISE_TORCH={shlex.quote(folders[0])} "
        options = "--reinstall-package groupwise --no-deps --no-cache"
    else:
        options = "--force-reinstall --no-deps --no-cache-dir"
    return f"{command}{_pip(installer)} install {options} {source}"


def _pip(installer: str) -> str:
    if installer == "uv":
        return "uv pip"
    here = shutil.which("pip")
    if here and pathlib.Path(here).parent == pathlib.Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


def _origin() -> tuple[str, str]:
    """Returns the argument with which an installer installs this package again, and the installer that installed it."""
    try:
        distribution = importlib.metadata.distribution("groupwise")
    except importlib.metadata.PackageNotFoundError:
        return shlex.quote(str(pathlib.Path(__file__).parents[3])), "pip"
    installer = (distribution.read_text("INSTALLER") or "pip").strip()
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    url = origin.get("url", "")
    if "vcs_info" in origin:
        return shlex.quote(f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"), installer
    path = urllib.parse.unquote(urllib.parse.urlparse(url).path)
    # A wheel holds no sources to build, and its name may belong to another package in an index.
    if path.endswith(".whl"):
        return ".  # in a clone of groupwise", installer
    if not url:
        return "groupwise", installer
    if not url.startswith("file:"):
        return shlex.quote(url), installer
    editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
    return editable + shlex.quote(path), installer


def _state() -> _State:
    with _loading.lock:
        return _load()


@cache
def _load() -> _State:
    found = _found()
    if found.status.problem:
        return found
    if (reason := torch_problem()) is not None:
        fix = "install torch again" if found.status.torch_here else f"install it: {torch_command()}"
        return found.broken(f"torch cannot be imported: {reason}", fix, "torch")
    import torch

    here = _State(replace(found.status, torch_here=str(torch.__version__)))
    built, rebuild = here.status.torch_built, f"rebuild it: {rebuild_command()}"
    asked = os.environ.get(BINDING, "")
    if asked not in ("", *BINDINGS):
        return here.broken(f"{BINDING}={asked} is not known; valid: {', '.join(BINDINGS)}", "unset it", "setting")
    problem = f"the library was built for torch {built} and this is torch {here.status.torch_here}"
    if asked == "stable":
        problem = f"{BINDING}=stable asks for the kernels alone"
    elif same_release(str(built), str(here.status.torch_here)):
        try:
            return _opened(here, "_native.so")
        except OSError as error:
            problem = f"the library cannot be loaded: {error}"
    if asked != "exact":
        # The exact library was not opened: two in one process would register the same operators.
        with contextlib.suppress(OSError):
            stable = _opened(here, "_stable.so")
            return _State(replace(stable.status, kernels_alone=problem), stable.library)
    return here.broken(problem, rebuild)


def same_release(built: str, here: str) -> bool:
    """Tells whether a library that was built for one version of torch fits another.

    The builds of one release (2.13.0+cpu and 2.13.0+cu130) have one C++ interface. Versions before a release name many.
    """
    releases = [version.partition("+")[0] for version in (built, here)]
    return built == here or (releases[0] == releases[1] and all(part.isdigit() for part in releases[0].split(".")))


def _found() -> _State:
    """Reads the library's record, without torch. Returns a problem if there is nothing to load."""
    rebuild = f"build it: {rebuild_command()}"
    state = _State(Status(torch_here=_torch_version()))
    # An editable install has two folders: the sources and what was built.
    records = [pathlib.Path(folder) / "_native.json" for folder in groupwise.__path__]
    record = next((path for path in records if path.is_file()), None)
    if record is None:
        if not sys.platform.startswith("linux"):
            return state.broken("they are built on Linux only", "use Linux; everything else works here", "platform")
        # Setups without CMake leave none either.
        return state.broken("groupwise was installed without kernels, as from the wheel for every system", rebuild)
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
        if "problem" in facts:
            return state.broken(f"when groupwise was installed, {facts['problem']}", f"fix that and {rebuild}")
        known = replace(
            state.status,
            torch_built=str(facts["torch"]),
            compiler=str(facts["compiler"]),
            isas=tuple(map(str, facts["isas"])),
        )
        api = int(facts["api"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return state.broken(f"{record} cannot be read ({type(error).__name__}: {error})", f"re{rebuild}")
    path = record.with_name("_native.so")
    if not path.is_file():
        return _State(known).broken(f"{path} is missing", f"re{rebuild}")
    state = _State(replace(known, path=str(path)))
    if api != API_VERSION:
        return state.broken(_other_version(api), f"re{rebuild}")
    return state


def _opened(state: _State, name: str) -> _State:
    """Opens a library, and says what is wrong with it. Raises `OSError` if it cannot be opened."""
    rebuild = f"rebuild it: {rebuild_command()}"
    path = str(pathlib.Path(str(state.status.path)).with_name(name))
    state = _State(replace(state.status, path=path))
    opened = ctypes.CDLL(path)
    try:
        opened.groupwise_api_version.restype = ctypes.c_int32
        if (api := opened.groupwise_api_version()) != API_VERSION:
            return state.broken(_other_version(api), rebuild)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(opened, name)
            function.restype, function.argtypes = result, arguments
            # -1 is a state of a thread, and no failure.
            if name not in ("groupwise_dispatch_thread", "groupwise_failure"):
                function.errcheck = partial(_checked, opened)
    except AttributeError as error:
        return state.broken(f"the library cannot be loaded: {error}", rebuild)
    isa = read_text(opened.groupwise_isa)
    if isa.startswith("!"):
        # The reason names the value and those that this processor has.
        return state.broken(isa[1:], "set one of them, or unset GROUPWISE_ISA for the best", "setting")
    tables.use(opened, isa)
    return _State(replace(state.status, isa=isa), opened)


def _checked(opened: ctypes.CDLL, result: Any, function: Any, arguments: Any) -> Any:
    """Returns what a function returned. Raises `GroupwiseError` if it failed."""
    failed = result is None if function.restype is ctypes.c_char_p else isinstance(result, int) and result < 0
    if failed:
        raise GroupwiseError(f"groupwise's native core failed: {opened.groupwise_failure().decode(errors='replace')}")
    return result


def _other_version(api: int) -> str:
    return f"the library is of another version of groupwise (interface {api}, and this one has {API_VERSION})"


def _torch_version() -> str | None:
    """Returns the version of this environment's torch, without importing it."""
    if loaded := getattr(sys.modules.get("torch"), "__version__", None):
        return str(loaded)
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
