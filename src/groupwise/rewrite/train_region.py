"""`Region`: a module for training, whose calls are traced, fused and run in its place.

A module that cannot be traced runs its own code, and its children are regions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map

from groupwise.kernels import native
from groupwise.nn.forwards import has_own_forward
from groupwise.rewrite.capture import LOCK
from groupwise.rewrite.plan import Left
from groupwise.rewrite.train_filters import FUNCTIONS
from groupwise.rewrite.train_fuse import Fused, Notes, fuse_graph, has_hooks
from groupwise.rewrite.train_keep import keep_less
from groupwise.rewrite.train_linear import dispatch_linear
from groupwise.rewrite.train_squeeze import fuse_squeezes
from groupwise.rewrite.train_switch import dispatch_backward
from groupwise.rewrite.train_trace import Form, Holder, is_plain, take_apart, trace

# The most graphs that a region keeps: another makes it forget the oldest.
MOST_GRAPHS = 8


@dataclass
class Settings:
    """What the regions of a network share."""

    channels_last: bool = False
    fuse: bool = True
    least: float = 0
    """Activations of at least so many numbers a sample are computed again in the backward, and not kept: 0 for all,
    infinity for none."""
    distrusted: str = ""
    """Why the model's own traced form is not used; empty if it is."""


@dataclass
class _Ready:
    """A traced form of a module."""

    holder: Holder
    forward: Callable[..., Any]
    notes: Notes
    regions: list[Region]
    any_format: bool
    """Whether it computes the same for inputs of any memory format."""


class Region:
    """Computes what a module computes, by its traced form. Modules, parameters and modes are read when it runs."""

    def __init__(self, module: torch.nn.Module, name: str, settings: Settings) -> None:
        self.module, self.name, self.settings = module, name, settings
        self._modules = list(module.modules())
        self._ready: OrderedDict[Any, _Ready] = OrderedDict()
        self._last: _Ready | Notes | None = None
        self._whole: Shell | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the traced form, which is made when a form of arguments, or a state of the modules, is new."""
        apart = take_apart(args, kwargs)
        if apart is None:
            return self._run_whole(args, kwargs)
        form, tensors = apart
        key = (form, tuple(map(repr, form.args)), self._state())
        ready = self._ready.get(key)
        if ready is None:
            ready = self._prepare(form)
        self._last = ready
        if self.settings.channels_last and ready.any_format:
            return _run_in_channels_last(ready, tensors)
        return ready.forward(ready.holder, *tensors)

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], expected: Notes | None = None) -> bool:
        """Traces the module for such arguments; tells whether it computes the same for any memory format.

        Children of a module that runs its own code are traced when it runs. Until then, `expected` says what is done.
        """
        apart = take_apart(args, kwargs)
        if apart is None:
            self._last = expected or _not_traced(args, kwargs)
            return False
        ready = self._last = self._prepare(apart[0])
        if ready.regions:
            untraced = (Left(region.name, "it has not run, and is traced when it does") for region in ready.regions)
            self._last = expected or replace(ready.notes, left=(*ready.notes.left, *untraced))
        return ready.any_format

    def notes(self) -> Notes:
        """Returns what was done in the form that ran last, with the names of the whole model."""
        if self._last is None:
            return Notes((), ())
        if isinstance(self._last, Notes):
            own, regions = self._last, self._whole.regions if self._whole else []
        else:
            own, regions = self._last.notes, self._last.regions
        inner = [region.notes() for region in regions]
        fused = [self._named(it) for it in own.fused]
        left = [Left(_join(self.name, it.name), it.reason) for it in own.left]
        return Notes(
            (*fused, *(it for notes in inner for it in notes.fused)),
            (*left, *(it for notes in inner for it in notes.left)),
            (*(_join(self.name, it) for it in own.squeezed), *(it for notes in inner for it in notes.squeezed)),
        )

    def _named(self, fused: Fused) -> Fused:
        residual = _join(self.name, fused.residual) if fused.residual else ""
        return replace(fused, name=_join(self.name, fused.name), residual=residual)

    def _run_whole(self, args: Any, kwargs: Any) -> Any:
        """Runs the module's own code on regions as its children."""
        self._last = _not_traced(args, kwargs)
        if self.settings.distrusted:
            return type(self.module).forward(self.module, *args, **kwargs)
        if self._whole is None:
            self._whole = Shell(self.module, self.name, self.settings)
        return self._whole.forward(*args, **kwargs)

    def _state(self) -> tuple[Any, ...]:
        """Returns what a traced form depends on: modes, classes, hooks, own forwards and children of the modules."""
        return tuple(
            (m.training, m.__class__, has_hooks(m) or has_own_forward(m), *m._modules.values()) for m in self._modules
        )

    def _prepare(self, form: Form) -> _Ready:
        with LOCK:
            self._modules = list(self.module.modules())
            key = (form, tuple(map(repr, form.args)), self._state())
            if key not in self._ready:
                self._ready[key] = self._made(form)
                while len(self._ready) > MOST_GRAPHS:
                    self._ready.popitem(last=False)
            return self._ready[key]

    def _made(self, form: Form) -> _Ready:
        holder, graph, kept = trace(self.module, form, "" if self.name else self.settings.distrusted)
        modules = dict(holder.named_modules(remove_duplicate=False))
        _skip_identities(graph, modules)
        notes, squeezed = Notes((), ()), tuple[str, ...]()
        if self.settings.fuse:
            notes, squeezed = fuse_graph(graph, holder), fuse_squeezes(graph, holder)
        if self.settings.channels_last:
            _reshape_instead_of_view(graph)
        if self.settings.fuse and not math.isinf(self.settings.least):
            keep_less(graph, modules, self.settings.least)
        mark_convolutions(graph, modules)
        dispatch_linear(graph, modules)
        left = {it.name: it for it in (*(Left(path, reason) for path, reason in kept.items()), *notes.left)}
        regions: list[Region] = []
        for path in kept:
            if not has_hooks(modules[path]):
                regions += self._divide(graph, holder, modules[path], path)
        graph.lint()
        forward = type(GraphModule(holder, graph)).forward
        named = Notes(
            tuple(replace(it, name=_within(it.name), residual=_within(it.residual)) for it in notes.fused),
            tuple(Left(_within(it.name), it.reason) for it in left.values()),
            tuple(map(_within, squeezed)),
        )
        return _Ready(holder, forward, named, regions, not kept and not _reads_memory(graph))

    def _divide(self, graph: Graph, holder: Holder, module: torch.nn.Module, path: str) -> list[Region]:
        """Lets a module that is kept whole call regions as its children."""
        shell = Shell(module, _join(self.name, _within(path)), self.settings)
        if not shell.regions:
            return []
        target = f"shell_{len(holder._modules)}"
        holder.add_module(target, shell)
        for node in graph.nodes:
            if node.op == "call_module" and node.target == path:
                node.target = target
        return shell.regions


def _not_traced(args: Any, kwargs: Mapping[str, Any]) -> Notes:
    kinds = {type(value).__name__: None for value in (*args, *kwargs.values()) if not is_plain(value)}
    return Notes((), (Left("", f"its arguments are more than tensors and plain values: {', '.join(kinds)}"),))


class Shell(torch.nn.Module):
    """Runs a module's own code on a stand-in that has its attributes, and whose children are regions."""

    def __init__(self, module: torch.nn.Module, name: str, settings: Settings) -> None:
        super().__init__()
        self.regions: list[Region] = []
        # The module is no submodule, as it is one of the holder already.
        vars(self)["_model"] = module
        vars(self)["_forwards"] = self._children_of(module, name, settings)

    def _children_of(self, module: torch.nn.Module, name: str, settings: Settings) -> dict[str, Any]:
        """Returns the region of each child, and what takes the place of its own children."""
        found: dict[str, Any] = {}
        for key, child in module.named_children():
            path = _join(name, key)
            container = type(child).forward is torch.nn.Module.forward or isinstance(child, torch.nn.Sequential)
            inner = self._children_of(child, path, settings) if container else {}
            region = None
            if type(child).forward is not torch.nn.Module.forward and any(True for _ in child.children()):
                region = Region(child, path, settings)
                self.regions.append(region)
            if region is not None or inner:
                found[key] = (region, inner)
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's own forward, and hands on the attributes that it sets."""
        made: list[tuple[torch.nn.Module, torch.nn.Module]] = []
        stand_in = _stand_in(vars(self)["_model"], None, vars(self)["_forwards"], made)
        try:
            return type(stand_in).forward(stand_in, *args, **kwargs)
        finally:
            for copied, module in made:
                for name, value in vars(copied).items():
                    if name not in ("_modules", "forward"):
                        vars(module)[name] = value


def _stand_in(
    module: torch.nn.Module, region: Region | None, inner: dict[str, Any], made: list[Any]
) -> torch.nn.Module:
    copied: torch.nn.Module = object.__new__(type(module))
    children = dict(module._modules)
    for key, (own, below) in inner.items():
        child = children.get(key)
        if child is not None and not (own is not None and own.module is not child):
            children[key] = _stand_in(child, own, below, made)
    copied.__dict__ = {**vars(module), "_modules": children}
    # A module with hooks of its own runs its own code in its region.
    if region is not None:
        vars(copied)["forward"] = region
    made.append((copied, module))
    return copied


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name and key else name or key


def _within(path: str) -> str:
    """Returns the name below the traced module of a name below its holder."""
    return path.removeprefix("model").removeprefix(".") if path.split(".", maxsplit=1)[0] == "model" else path


def _skip_identities(graph: Graph, modules: Mapping[str, torch.nn.Module]) -> None:
    for node in list(graph.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        plain = type(module) is torch.nn.Identity and not has_hooks(module) and "forward" not in vars(module)
        if plain and len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _run_in_channels_last(ready: _Ready, tensors: list[torch.Tensor]) -> Any:
    """Runs a traced form on images in channels_last, and returns outputs as contiguous as the model's would be."""
    images = [it.dim() == 4 and it.is_floating_point() and it.is_contiguous() for it in tensors]
    if not any(images):
        return ready.forward(ready.holder, *tensors)
    last = torch.channels_last
    changed = [it.contiguous(memory_format=last) if image else it for it, image in zip(tensors, images, strict=True)]
    return tree_map(_contiguous_image, ready.forward(ready.holder, *changed))


def _contiguous_image(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) and value.dim() == 4 else value


_MEMORY = {"stride", "as_strided", "is_contiguous", "data_ptr", "storage_offset", "view_as_real", "view_as_complex"}


def _reads_memory(graph: Graph) -> bool:
    """Tells whether a graph depends on how its tensors lie in memory."""
    names = (
        node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "") for node in graph.nodes
    )
    return any(name in _MEMORY for name in names)


def _reshape_instead_of_view(graph: Graph) -> None:
    """Makes views that would fail for channels_last tensors copy."""
    for node in graph.nodes:
        is_view = node.op == "call_method" and node.target == "view"
        if is_view and not any(isinstance(arg, torch.dtype) for arg in (*node.args, *node.kwargs.values())):
            node.target = "reshape"


def mark_convolutions(graph: Graph, modules: Mapping[str, torch.nn.Module]) -> None:
    """Lets the backward of each convolution run with dispatch on, as the forward does."""
    if native.status().operators_problem is not None:
        return
    for node in list(graph.nodes):
        found = node.op == "call_function" and node.target in FUNCTIONS
        if node.op == "call_module":
            found = isinstance(modules.get(str(node.target)), torch.nn.modules.conv._ConvNd)
        if found:
            with graph.inserting_after(node):
                marked = graph.call_function(dispatch_backward, (node,))
            node.replace_all_uses_with(marked, delete_user_cb=lambda user, marked=marked: user is not marked)
