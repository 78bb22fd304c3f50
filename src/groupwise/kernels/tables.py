"""The planner's tables and cost model: what was measured on processors, as benchmarks wrote it.

Both are data: `policy/<class>-<isa>.json` of processors of a class, and `policy/model.json` of all. The core reads
their numbers, and chooses by them what was not measured on this machine.
"""

from __future__ import annotations

import array
import ctypes
import json
import pathlib
import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from groupwise.kernels.processor import processor_class

FOLDER = pathlib.Path(__file__).with_name("policy")
MODEL = FOLDER / "model.json"
FORMAT = 3
# The dtypes beside float32.
OTHER_DTYPES = ("bfloat16", "float16", "float64")
# How many families of layers have a margin of their own (csrc/plan/features.h).
FAMILIES = 5


@dataclass(frozen=True)
class Kind:
    """Convolutions that have tables of their own: 3-D ones (`volumes`) or not, of one dtype."""

    volumes: bool
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} 3-D" if self.volumes else self.dtype

    @property
    def name_in_core(self) -> str:
        """What the core calls their tables, after the instruction set."""
        return " 3-D" * self.volumes + f" {self.dtype}" * (self.dtype != "float32")

    @property
    def file_suffix(self) -> str:
        """What the name of their file has after the instruction set."""
        return "-3d" * self.volumes + f"-{self.dtype}" * (self.dtype != "float32")


# The first is that of most convolutions, whose tables also tell from which work on threads share it.
KINDS = tuple(Kind(volumes, dtype) for dtype in ("float32", *OTHER_DTYPES) for volumes in (False, True))


@cache
def _class() -> str:
    return processor_class()


def table_path(isa: str) -> pathlib.Path:
    """Returns where the tables of this processor's class and an instruction set are, if there are any."""
    return FOLDER / f"{_class()}-{isa}.json"


def _kinds(isa: str) -> dict[str, pathlib.Path]:
    """Returns by what the core calls the tables of each kind of convolutions where they are, if there are any."""
    return {f"{isa}{kind.name_in_core}": _path(isa, kind) for kind in KINDS}


def _path(isa: str, kind: Kind) -> pathlib.Path:
    plain = table_path(isa)
    return plain.with_stem(f"{plain.stem}{kind.file_suffix}")


def covered(isa: str) -> tuple[Kind, ...]:
    """Returns of which kinds of convolutions tables are shipped for this processor's class and an instruction set."""
    return tuple(kind for kind in KINDS if _path(isa, kind).is_file())


def use(library: ctypes.CDLL, isa: str) -> None:
    """Gives the core what is shipped: the tables of an instruction set, if there are any, and the cost model.

    Warns (`RuntimeWarning`) of a file that cannot be read; the planner then goes on without it.
    """
    # What a table says of sharing replaces what the model says.
    readers = (
        (MODEL, partial(give_model, library)),
        *((path, partial(give, library, name)) for name, path in _kinds(isa).items()),
    )
    for path, gives in readers:
        if not path.is_file():
            continue
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["format"] != FORMAT:
                raise ValueError(f"its format is {told['format']}, and this version of groupwise reads {FORMAT}")
            gives(told)
            give_sharing(library, isa, told)
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"{path} cannot be read ({type(error).__name__}: {error}), so that kernels are chosen without it; "
                "install groupwise again",
                RuntimeWarning,
                stacklevel=2,
            )


def clear(library: ctypes.CDLL, isa: str) -> None:
    """Takes the tables and the model away: all threads compute, by the first kernel that can run. For tests."""
    none = (ctypes.c_double * 1)()
    for name in _kinds(isa):
        library.groupwise_tables(name.encode(), b"", b"", b"", none, 0)
    library.groupwise_model(b"", b"", none, 0)
    library.groupwise_share(isa.encode(), 0.0)


def give(library: ctypes.CDLL, isa: str, told: dict[str, Any]) -> None:
    """Gives the core the contents of a file. Raises `ValueError` if its numbers do not fit together."""
    numbers = flat(told)
    given = (ctypes.c_double * len(numbers)).from_buffer(numbers)
    record = f"{told['class']}, {told['isa']}, torch {told['torch']}: {told['rows']:,} timed passes"
    names = [",".join(told["features"]), ",".join(table["kernel"] for table in told["tables"])]
    texts = (name.encode() for name in (isa, record, *names))
    if library.groupwise_tables(*texts, given, len(numbers)) != 1:
        raise ValueError("its numbers do not fit together")


def flat(told: dict[str, Any]) -> array.array[float]:
    """Returns a file's numbers in the order in which csrc/plan/forest.h reads them."""
    numbers = array.array("d", [*told["margins"], told["caution"], *told["roofline"]])
    numbers.extend([len(told["bounded"]), *told["bounded"]])
    for table in told["tables"]:
        numbers.extend([*table["least"], *table["most"], len(table["trees"])])
        for tree in table["trees"]:
            numbers.extend(tree)
    return numbers


def give_model(library: ctypes.CDLL, told: dict[str, Any]) -> None:
    """Gives the core the contents of the model's file. Raises `ValueError` if its numbers do not fit together."""
    numbers = [float(told["spread"])]
    for cost in told["kernels"].values():
        numbers.append(float(cost["overhead"]))
        numbers += [float(number) for formats in cost["reached"] for kinds in formats for number in kinds]
    given = (ctypes.c_double * len(numbers))(*numbers)
    count = len(told["classes"])
    record = f"from {told['rows']} layers on {count} " + ("processor" if count == 1 else "processors")
    if library.groupwise_model(record.encode(), ",".join(told["kernels"]).encode(), given, len(numbers)) != 1:
        raise ValueError("its numbers do not fit together")


def give_sharing(library: ctypes.CDLL, isa: str, told: dict[str, Any]) -> None:
    """Tells the core from how many products on threads share work, if the file says so. Raises `ValueError`."""
    if "shared_from" in told and not library.groupwise_share(isa.encode(), float(told["shared_from"])):
        raise ValueError(f"threads cannot share work from {told['shared_from']} products on")
