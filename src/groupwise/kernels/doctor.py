"""What the native kernels need here, what of it is missing, and the commands that bring it.

Works where torch is missing or broken: that is when it is asked.
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
from groupwise.kernels import native
from groupwise.kernels.processor import processor_flags, processor_name

# The flags of /proc/cpuinfo that each instruction set of csrc/ needs; every processor has the baseline.
ISA_FLAGS = {"avx2": {"avx2", "fma"}}

# The first of these tools that is there installs a compiler.
INSTALLERS = {
    "apt-get": "apt-get install g++",
    "dnf": "dnf install gcc-c++",
    "yum": "yum install gcc-c++",
    "zypper": "zypper install gcc-c++",
    "pacman": "pacman -S gcc",
    "apk": "apk add g++",
}

# GROUPWISE_ISA is left to the library, which knows the processor.
SETTINGS = {"GROUPWISE_ENABLE": ("0", "1"), "GROUPWISE_ISA": None}


@dataclass(frozen=True)
class Diagnosis:
    """This machine and this environment, as the native kernels see them; `str()` of it is the text of `doctor`."""

    groupwise: str
    python: str
    torch: str | None
    torch_problem: str | None
    """Why torch cannot be imported."""
    system: str
    processor: str
    isas: tuple[str, ...]
    """The instruction sets of the processor, of those that groupwise has kernels for."""
    threads: int
    compiler: str | None
    library: native.Status
    settings: dict[str, str]
    """The environment variables of groupwise that are set."""
    notes: tuple[str, ...]
    """Settings that are not understood."""
    commands: tuple[str, ...]
    """What to run, in this order, for kernels that can run."""

    @property
    def ok(self) -> bool:
        """Whether the kernels can run."""
        return self.library.problem is None

    def to_dict(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        return {"ok": self.ok, **asdict(self)}

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
            "settings": settings or "none",
        }
        lines = [f"{name:<9}  {value}" for name, value in rows.items()]
        lines += ["", *self.notes]
        if self.ok:
            lines.append("The kernels can run.")
        else:
            lines.append(f"The kernels cannot run: {self.library.problem}.")
            if self.commands:
                lines += ["To have them:", *(f"  {command}" for command in self.commands)]
            else:
                lines.append(f"The way out is to {self.library.fix}.")
        return "\n".join(lines)


def _torch_text(version: str | None, problem: str | None) -> str:
    if version is None:
        return "not installed"
    return version + (f", which cannot be imported: {problem}" if problem else "")


def _library_text(library: native.Status) -> str:
    if library.path is None:
        return "none"
    facts = f"built by {library.compiler} for torch {library.torch_built}, with {' and '.join(library.isas)}"
    return facts + (f"; {library.isa} in use" if library.isa else "")


def diagnose() -> Diagnosis:
    """Look at this machine and this environment; loads torch and the library if it can."""
    problem = native.torch_problem()
    library = native.status()
    compiler = find_compiler()
    settings = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    notes = [
        f"{name}={settings[name]!r} is not understood; set it to one of: {', '.join(choices)}."
        for name, choices in SETTINGS.items()
        if choices and name in settings and settings[name] not in choices
    ]
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
        settings=settings,
        notes=tuple(notes),
        commands=tuple(_commands(library, compiler)),
    )


def find_compiler() -> str | None:
    """The C++ compiler that a build would take, with its version, searched where CMake does; None if there is none."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        try:
            word, *more = shlex.split(name)
        except ValueError:  # blank, or a quote that does not end
            continue
        path = shutil.which(word)
        if path is None:
            continue
        # With all its words, as `ccache g++` is a compiler and ccache is none.
        command = [path, *more]
        try:
            shown = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        told = shown.stdout.strip()
        return f"{told.splitlines()[0].strip()} ({shlex.join(command)})" if told else shlex.join(command)
    return None


def _commands(library: native.Status, compiler: str | None) -> list[str]:
    # What a broken torch needs, only its own error can say.
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
    return ("baseline", *(isa for isa, needed in ISA_FLAGS.items() if needed <= flags))


def _threads() -> int:
    import torch

    return torch.get_num_threads()
