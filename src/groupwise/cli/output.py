"""Where a command's result goes, and in which format."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from groupwise.errors import GroupwiseError
from groupwise.explanation import Explanation

FORMATS = ("text", "json", "svg", "png", "html")


def format_of(options: argparse.Namespace, known: Sequence[str]) -> str:
    """The format that --format or the ending of -o asks for; refused before any work if it cannot be written."""
    wanted: str | None = getattr(options, "format", None)
    if options.output in (None, "-"):
        options.output = None
        return wanted or "text"
    path = pathlib.Path(options.output)
    suffix = path.suffix.lower().lstrip(".")
    named = {"txt": "text", "htm": "html", **{name: name for name in FORMATS}}.get(suffix)
    if wanted is None and named not in known:
        endings = ", ".join("." + {"text": "txt"}.get(name, name) for name in known)
        raise GroupwiseError(f"-o {options.output!r}: name a file that ends in one of {endings}")
    if wanted and named and named != wanted:
        raise GroupwiseError(f"-o {options.output} asks for {named} and --format for {wanted}; leave one of them out")
    if path.is_dir():
        raise GroupwiseError(f"-o {options.output} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise GroupwiseError(f"-o {options.output}: there is no folder {path.parent}; make it first")
    return wanted or str(named)


def write(document: str, output: str | None) -> None:
    """Write text with one newline at its end to the file `output`, or to stdout."""
    document = document.rstrip("\n") + "\n"
    if output is None:
        sys.stdout.write(document)
    else:
        pathlib.Path(output).write_text(document, encoding="utf-8")


def emit(explanation: Explanation, kind: str, view: str, output: str | None) -> None:
    """Write a view of an explanation to the file `output`, or to stdout, in the format `kind`."""
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
        explanation.to_png(output, view)
    elif sys.stdout.isatty():
        raise GroupwiseError("a PNG is not for the terminal; name a file with -o FILE.png or redirect")
    else:
        sys.stdout.buffer.write(png_bytes(explanation.to_svg(view)))


def say(message: str) -> None:
    """Tell the person at the terminal, beside the result."""
    print(f"groupwise: {message}", file=sys.stderr)
