"""Where the result of a command goes, and in which format."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import Any

from groupwise.draw.text.busy import warning
from groupwise.errors import GroupwiseError
from groupwise.explanation import Explanation
from groupwise.spec.legible import legible

FORMATS = ("text", "json", "svg", "png", "html")
TABLES = ("text", "json", "csv", "markdown")
# How a result becomes text of each format.
WRITERS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "json": lambda made: json.dumps(made.to_dict(), indent=2),
    "csv": methodcaller("to_csv"),
    "markdown": methodcaller("to_markdown"),
    "html": methodcaller("to_html"),
    "svg": methodcaller("to_svg"),
}
_FORMAT_OF = {"txt": "text", "htm": "html", "md": "markdown", **{name: name for name in (*FORMATS, *TABLES)}}


def format_of(options: argparse.Namespace, known: Sequence[str]) -> str:
    """Returns the format that --format or the ending of -o asks for, of those in `known`; text if neither does.

    Raises `GroupwiseError` for a format that is not known here, and for a file that cannot be written: before any work.
    """
    wanted: str | None = getattr(options, "format", None)
    if options.output in (None, "-"):
        options.output = None
        return wanted or "text"
    path = pathlib.Path(options.output)
    suffix = path.suffix.lower().lstrip(".")
    named = _FORMAT_OF.get(suffix)
    if wanted is None and named not in known:
        endings = ("one of " if len(known) > 1 else "") + ", ".join(map(ending_of, known))
        raise GroupwiseError(f"-o {options.output!r}: name a file that ends in {endings}")
    if wanted and named and named != wanted:
        raise GroupwiseError(f"-o {options.output} asks for {named} and --format for {wanted}; leave one of them out")
    if path.is_dir():
        raise GroupwiseError(f"-o {options.output} is a folder; name a file in it")
    if path.exists() and not (path.is_file() or path.is_char_device()):
        raise GroupwiseError(f"-o {options.output} is a pipe or a socket; name a file, or write to stdout with -o -")
    if not path.parent.is_dir():
        raise GroupwiseError(f"-o {options.output}: there is no folder {path.parent}; make it first")
    return wanted or str(named)


def check_place(option: str, file: str | None) -> None:
    """Refuses a file that cannot be written, which an option names, before any work."""
    if file is None:
        return
    path = pathlib.Path(file)
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise GroupwiseError(f"{option} {file} is no regular file; name a file")
    if not path.parent.is_dir():
        raise GroupwiseError(f"{option} {file}: there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise GroupwiseError(f"{option} {file} cannot be written; choose another place, or allow writing there")


def check_apart(options: argparse.Namespace, written: str, *others: str) -> None:
    """Refuses an output that would take the place of another file of the command."""
    place = getattr(options, written)
    for name in others:
        other = getattr(options, name)
        if place and other and pathlib.Path(place).resolve() == pathlib.Path(other).resolve():
            shown = name.upper() if name == "choice" else f"--{name}"
            raise GroupwiseError(f"--{written} and {shown} name one file, {place}, which would be lost; name two")


def ending_of(name: str) -> str:
    """Returns what the name of a file in this format ends in: `.txt` for text, `.md` for markdown."""
    return "." + {"text": "txt", "markdown": "md"}.get(name, name)


def write(document: str, output: str | None) -> None:
    """Writes text, which ends in one newline, to the file `output` or to stdout."""
    document = document.rstrip("\n") + "\n"
    if output is None:
        sys.stdout.write(document)
    else:
        pathlib.Path(output).write_text(document, encoding="utf-8")


def deliver(made: Any, kind: str, output: str | None) -> None:
    """Writes a result in the format `kind`, one of `WRITERS`, to the file `output` or to stdout.

    Says so if its times were measured on a busy machine, unless what it prints begins with that.
    """
    if output or kind != "text":
        tell_if_busy(made.to_dict())
    write(WRITERS[kind](made), output)


def tell_if_busy(facts: Mapping[str, Any]) -> None:
    """Says so where the times of a result were measured on a busy machine."""
    found = facts.get("interference") or facts.get("facts", {}).get("interference")
    for sentence in warning(found, "its times are not to be trusted"):
        say(sentence)


def emit(explanation: Explanation, kind: str, view: str, output: str | None) -> None:
    """Writes a view of an explanation in the format `kind` to the file `output` or to stdout."""
    if kind == "png":
        _emit_png(explanation, view, output)
    elif kind == "json":
        write(json.dumps(explanation.to_dict(), indent=2), output)
    elif kind == "svg":
        write(explanation.to_svg(view), output)
    elif kind == "html":
        write(str(explanation.to_html(view=view)), output)
    else:
        write(explanation.to_text(view), output)


def _emit_png(explanation: Explanation, view: str, output: str | None) -> None:
    from groupwise.draw.base.png import png_bytes

    if output:
        pathlib.Path(output).write_bytes(png_bytes(explanation.to_svg(view)))
    elif sys.stdout.isatty():
        raise GroupwiseError(
            "a PNG cannot be shown in a terminal; name a file with -o FILE.png, or redirect the output"
        )
    else:
        sys.stdout.buffer.write(png_bytes(explanation.to_svg(view)))


def allowing_fft(allowed: bool) -> contextlib.AbstractContextManager[None]:
    """Within the block the planner may choose the FFT, if it is allowed."""
    if not allowed:
        return contextlib.nullcontext()
    from groupwise.kernels.dispatch import enabled

    return enabled(fft=True)


def say(message: str) -> None:
    """Prints a message to stderr, so that it stays out of the result."""
    print(f"groupwise: {legible(message)}", file=sys.stderr)
