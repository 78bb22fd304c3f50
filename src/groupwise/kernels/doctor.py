"""`doctor`: what the native kernels need, what of it is missing here, and the commands that install it.

It works without torch and with a broken one, since that is when users ask.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

import groupwise
from groupwise.kernels import native, tables, tuning
from groupwise.kernels.processor import processor_flags, processor_name
from groupwise.spec.legible import Printed

# The instruction set of csrc/ that every processor of a machine has, where it has a name of its own.
PLAIN_ISAS = {"aarch64": "neon", "arm64": "neon"}
# The flags of /proc/cpuinfo that each other instruction set needs.
ISA_FLAGS = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
}

# The first of these tools that exists installs a compiler.
INSTALLERS = {
    "apt-get": "apt-get install g++",
    "dnf": "dnf install gcc-c++",
    "yum": "yum install gcc-c++",
    "zypper": "zypper install gcc-c++",
    "pacman": "pacman -S gcc",
    "apk": "apk add g++",
}

# None: the library checks GROUPWISE_ISA, since it knows the processor.
SETTINGS = {
    "GROUPWISE_ENABLE": ("0", "1"),
    "GROUPWISE_TUNE": ("0", "1"),
    "GROUPWISE_ISA": None,
    native.BINDING: native.BINDINGS,
}


@dataclass(frozen=True)
class Diagnosis(Printed):
    """This machine and this environment, as far as the native kernels depend on them. `print()` it for the text."""

    groupwise: str
    python: str
    torch: str | None
    torch_problem: str | None
    """Why torch cannot be imported."""
    system: str
    processor: str
    isas: tuple[str, ...]
    """The processor's instruction sets among those that groupwise has kernels for."""
    threads: int
    compiler: str | None
    library: native.Status
    table: str | None
    """The processor class and instruction set whose tables choose kernels here; None if there are none."""
    tables: tuple[str, ...]
    """The dtypes that have tables, and those with tables of 3-D layers: "float32", "float32 3-D", ..."""
    cache: str | None
    """The file of what was measured here; None if there can be none."""
    measured: int
    """How many requests that file holds: passes of a convolution with their shapes and threads."""
    settings: dict[str, str]
    """The environment variables of groupwise that are set."""
    notes: tuple[str, ...]
    """One sentence for each setting that is not understood."""
    commands: tuple[str, ...]
    """The commands that make the kernels run, in their order."""

    @property
    def ok(self) -> bool:
        """Tells whether the kernels can run."""
        return self.library.problem is None

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        facts = {"ok": self.ok, **asdict(self), "library": self.library.to_dict()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        rows = {
            "groupwise": f"{self.groupwise}, Python {self.python}",
            "torch": _torch_text(self.torch, self.torch_problem),
            "system": self.system,
            "processor": f"{self.processor} ({', '.join(self.isas)})",
            "threads": str(self.threads),
            "compiler": self.compiler or "none",
            "library": _library_text(self.library),
            "tuning": _tuning_text(self),
            "settings": settings or "none",
        }
        facts = [f"{name:<9}  {value}" for name, value in rows.items()]
        if not self.ok:
            # What is wrong comes first: everything else that is missing may follow from it.
            return "\n".join([*self._cause(), "", *facts, *(["", *self.notes] if self.notes else [])])
        alone = self.library.kernels_alone
        more = [f"Optimized networks run by PyTorch's operators: {alone}."] if alone else []
        return "\n".join([*facts, "", *self.notes, "The kernels can run.", *more])

    def _cause(self) -> list[str]:
        lines = [f"The kernels cannot run: {self.library.problem}."]
        if self.commands:
            return [*lines, "To install them:", *(f"  {command}" for command in self.commands)]
        return [*lines, f"To fix it: {self.library.fix}."]


def _torch_text(version: str | None, problem: str | None) -> str:
    if version is None:
        return "not installed"
    return version + (f", which cannot be imported: {problem}" if problem else "")


def _library_text(library: native.Status) -> str:
    if library.path is None:
        return "none"
    facts = f"built by {library.compiler} for torch {library.torch_built}, with {' and '.join(library.isas)}"
    return facts + (f"; {library.isa} in use" if library.isa else "")


def _tuning_text(found: Diagnosis) -> str:
    if not found.ok:
        # Which table would be read depends on the instruction set that the kernels would use.
        covered = "not known while the kernels cannot run"
    else:
        covered = (
            f"tables for {found.table} of {', '.join(found.tables)}" if found.table else "no table for this processor"
        )
    if found.cache is None:
        return f"{covered}; no folder for measurements"
    requests = "1 request" if found.measured == 1 else f"{found.measured:,} requests"
    return f"{covered}; {requests} measured, in {found.cache}"


def diagnose() -> Diagnosis:
    """Examines this machine and this environment. It loads torch and the library if it can."""
    problem = native.torch_problem()
    library = native.status()
    compiler = find_compiler()
    settings = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    notes = [
        f"{name}={settings[name]!r} is not understood; set it to one of: {', '.join(choices)}."
        for name, choices in SETTINGS.items()
        if choices and name in settings and settings[name] not in choices
    ]
    path, saved = tuning.cache_path(), tuning.saved()
    if saved.problem:
        notes.append(f"groupwise {saved.problem}.")
    covered = tables.covered(library.isa) if library.isa else ()
    return Diagnosis(
        groupwise=groupwise.__version__,
        python=platform.python_version(),
        torch=library.torch_here,
        torch_problem=problem,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor_name(),
        isas=_isas(),
        threads=_threads() if problem is None else os.cpu_count() or 1,
        compiler=compiler,
        library=library,
        table=tables.table_path(str(library.isa)).stem if covered else None,
        tables=tuple(map(str, covered)),
        cache=None if path is None else str(path),
        measured=len(saved.seconds),
        settings=settings,
        notes=tuple(notes),
        commands=tuple(_commands(library, compiler)),
    )


def find_compiler() -> str | None:
    """Returns the C++ compiler that a build would use, with its version. None if there is none where CMake looks."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        try:
            word, *more = shlex.split(name)
        except ValueError:  # blank, or a quote that does not end
            continue
        path = shutil.which(word)
        if path is None:
            continue
        # All words belong to the command: `ccache g++` is a compiler, and ccache is none.
        command = [path, *more]
        try:
            shown = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        version = shown.stdout.strip()
        return f"{version.splitlines()[0].strip()} ({shlex.join(command)})" if version else shlex.join(command)
    return None


def _commands(library: native.Status, compiler: str | None) -> list[str]:
    # Only torch's own error can say how to fix a broken torch.
    broken = library.cause == "torch" and library.torch_here is not None
    if library.problem is None or library.cause in ("platform", "setting") or broken:
        return []
    return [
        *([native.torch_command()] if library.torch_here is None else []),
        *([_compiler_command()] if compiler is None else []),
        native.rebuild_command(),
    ]


def _compiler_command() -> str:
    if os.environ.get("CXX"):
        return "unset CXX  # it names no compiler that works"
    if os.environ.get("CONDA_PREFIX") and shutil.which("conda"):
        return "conda install -c conda-forge cxx-compiler"
    for tool, command in INSTALLERS.items():
        if shutil.which(tool):
            return f"sudo {command}" if os.geteuid() and shutil.which("sudo") else command
    return "(install a compiler for C++20, such as g++ or clang++)"


def _isas() -> tuple[str, ...]:
    flags = processor_flags()
    plain = PLAIN_ISAS.get(platform.machine(), "baseline")
    return (plain, *(isa for isa, needed in ISA_FLAGS.items() if needed <= flags))


def _threads() -> int:
    import torch

    return torch.get_num_threads()
