"""Looks through a pickle before anything unpickles it, and reads the values and tensors that torch.save wrote."""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import IO, Any

import torch

from groupwise.errors import GroupwiseError
from groupwise.spec.legible import legible

# Python's hash of a nested tuple calls itself for each level, and crashes where the stack ends.
_DEEPEST = 100
_PUSH = set("NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE".split())
_EMPTY = set("EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET".split())
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CHANGE = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_PLAIN = set("collections.OrderedDict _codecs.encode builtins.set builtins.bytearray builtins.complex".split())
_TENSORS = {
    f"torch.{name}"
    for name in (
        "Size device Tensor storage.UntypedStorage _utils._rebuild_tensor_v2 _utils._rebuild_tensor_v3 "
        "_tensor._rebuild_from_type_v2"
    ).split()
}


class NotAdmittedError(GroupwiseError):
    """Says that a pickle names a class or a function that nobody has admitted."""


class _Value:
    """Stands for a value on the stack of an unpickler: how deeply it nests, and the text if it is one."""

    __slots__ = ("depth", "placed", "text")

    def __init__(self, depth: int = 0, text: str | None = None) -> None:
        self.depth, self.text, self.placed = depth, text, False


class _Stack:
    """Follows what an unpickler does to its stack, without making any value."""

    def __init__(self) -> None:
        self.values: list[_Value] = []
        self.marks: list[int] = []
        self.memo: list[_Value] = []

    def pop(self, count: int = 0) -> list[_Value]:
        """Takes so many values from the stack, or all since the last mark."""
        lowest = self.marks[-1] if self.marks else 0
        if (count == 0 and not self.marks) or len(self.values) - count < lowest:
            raise GroupwiseError("it takes more values than it has")
        start = len(self.values) - count if count else self.marks.pop()
        popped = self.values[start:]
        del self.values[start:]
        return popped

    def push(self, items: list[_Value]) -> None:
        """Puts a new value that holds `items` on the stack."""
        self.values.append(_Value())
        self.fill(items)

    def fill(self, items: list[_Value]) -> None:
        """Puts `items` into the value on top of the stack."""
        (value,) = self.pop(1)
        # Without this rule nobody knew how deep a value is that holds this one.
        if value.placed:
            raise GroupwiseError("it changes a value that another one holds already")
        value.depth = max([value.depth, *(1 + item.depth for item in items)])
        for item in items:
            item.placed = True
        if value.depth > _DEEPEST:
            raise GroupwiseError(f"its values are nested more than {_DEEPEST} deep")
        self.values.append(value)


def look_through(content: bytes, admit: Callable[[str, str], object]) -> None:
    """Calls `admit(module, name)` for each class or function that a pickle names, and refuses what save never writes.

    Raises a `GroupwiseError` for operations of other pickles, and for values that are nested more than 100 deep.
    """
    stack = _Stack()
    argument: Any
    for operation, argument, _ in pickletools.genops(content):
        name = operation.name
        if name in _PUSH:
            stack.values.append(_Value(text=argument if isinstance(argument, str) else None))
        elif name in _EMPTY:
            stack.push([])
        elif name in ("BINGET", "LONG_BINGET"):
            if argument >= len(stack.memo):
                raise GroupwiseError("it refers to a value that it does not hold")
            stack.values.append(stack.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            # An unpickler makes room for all numbers up to this one.
            if name != "MEMOIZE" and argument != len(stack.memo):
                raise GroupwiseError("it does not number its values in their order")
            (value,) = stack.pop(1)
            stack.values.append(value)
            stack.memo.append(value)
        elif name == "MARK":
            stack.marks.append(len(stack.values))
        elif name == "TUPLE":
            stack.push(stack.pop())
        elif name in _TUPLES:
            stack.push(stack.pop(_TUPLES[name]))
        elif name in ("APPENDS", "SETITEMS"):
            stack.fill(stack.pop())
        elif name in _CHANGE:
            stack.fill(stack.pop(_CHANGE[name]))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.push(stack.pop(2))
        elif name == "BINPERSID":
            stack.push(stack.pop(1))
        elif name == "GLOBAL":
            admit(*argument.split(" ", 1))
            stack.push([])
        elif name == "STACK_GLOBAL":
            module, of_module = (value.text for value in stack.pop(2))
            if module is None or of_module is None:
                raise GroupwiseError("it names something by no text")
            admit(module, of_module)
            stack.push([])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise GroupwiseError(f"it holds the operation {name}, which save never writes")


def read_value(file: IO[bytes], **settings: Any) -> Any:
    """Reads what torch.save wrote to `file`: numbers, texts, lists, dicts, tensors, and classes that the user admitted.

    It runs nothing else. Raises a `GroupwiseError` for all that it does not read.
    """
    try:
        look_through(torch._C.PyTorchFileReader(file).get_record("data.pkl"), _admit)
        file.seek(0)
        return torch.load(file, weights_only=True, **settings)
    except GroupwiseError:
        raise
    except Exception as error:
        # PyTorch's text advises to trust the file.
        raise GroupwiseError(f"it is nothing that save writes ({type(error).__name__})") from error


def _admit(module: str, name: str) -> None:
    """Refuses what is no plain value and no tensor, and what no user has admitted."""
    # torch.load reads the names of Python 2, as torch.save writes them.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if full in _PLAIN | _TENSORS:
        return
    if module == "torch":
        known = vars(torch).get(name)
        if isinstance(known, torch.dtype) or (isinstance(known, type) and known in torch._storage_classes):
            return
    # PyTorch admits classes of its own in the same way, such as DeviceMesh, and those start more than they hold.
    elif module.partition(".")[0] != "torch" and full in map(_full_name, torch.serialization.get_safe_globals()):
        return
    raise NotAdmittedError(
        f"it names {legible(full):.100}, which load does not run; use numbers, texts, lists and dicts, or admit a "
        "class that you trust by torch.serialization.add_safe_globals before save and load"
    )


def _full_name(admitted: Any) -> str:
    if isinstance(admitted, tuple):
        return str(admitted[1])
    return f"{admitted.__module__}.{admitted.__qualname__}"
