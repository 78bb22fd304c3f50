"""`Optimized`: a network that runs a rewritten form of a model, and has the model's parameters."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from groupwise.errors import GroupwiseError
from groupwise.rewrite.capture import twin
from groupwise.rewrite.heap import trim
from groupwise.rewrite.pickled import reduced
from groupwise.rewrite.plan import Plan, Plans
from groupwise.rewrite.region import MOST_PROGRAMS, Met, Planner, Refused, Region, key_of, plan_of, reason_to_run_whole
from groupwise.rewrite.structure import Structure, countable
from groupwise.rewrite.watch import check_watchable


class Optimized(torch.nn.Module):
    """A network for inference that `groupwise.optimize` made of a model.

    It is called as the model is. `print(network.plan)` says how it runs. Its parameters, buffers and state_dict are the
    model's own, and it packs its weights again when one of them changes, and plans anew when a submodule of the model
    is replaced. Inputs of another shape make a plan of their own when they first come. Submodules that stay as they are
    belong to the model, and follow its `train()` and `eval()`.
    """

    def __init__(self, model: torch.nn.Module, seconds: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        vars(self)["_source"] = model
        self._arrange(twin(model), seconds, dtype)
        self.training = False

    def _arrange(self, model: torch.nn.Module, seconds: float, dtype: torch.dtype | None) -> None:
        # The model is no submodule: names would begin with its name. What it holds belongs to both, so that whatever
        # walks over modules, such as torch.export, finds its parameters.
        vars(self)["_model"] = model
        for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[held] = vars(model)[held]
        vars(self)["_seconds"] = seconds
        vars(self)["_dtype"] = dtype
        # Children of the region's model may become regions themselves. It shares whatever holds parameters.
        vars(self)["_region"] = Region(twin(model), "", Planner(seconds, dtype))
        vars(self)["_plan"] = None
        vars(self)["_plans"] = OrderedDict()
        vars(self)["_structures"] = (Structure(vars(self)["_source"]), Structure(model))

    @property
    def model(self) -> torch.nn.Module:
        """The model as it was given, in a structure of its own."""
        model: torch.nn.Module = vars(self)["_model"]
        return model

    @property
    def dtype(self) -> torch.dtype | None:
        """What its layers compute in, if `optimize` was given that; None if each computes in its own dtype."""
        dtype: torch.dtype | None = vars(self)["_dtype"]
        return dtype

    @property
    def plan(self) -> Plan:
        """The plan that was made last. It says for which inputs it is; `plan_of` returns that of others."""
        plan: Plan | None = vars(self)["_plan"]
        if plan is None:
            raise GroupwiseError("this copy of an optimized network has no plan yet; call it once on an input")
        return plan

    @property
    def plans(self) -> Plans:
        """The plans that the network keeps, one for each kind of input, the newest at the end."""
        region: Region = vars(self)["_region"]
        return Plans(plan for key, plan in list(vars(self)["_plans"].items()) if region.knows(key))

    def plan_of(self, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Plan:
        """Returns the plan for inputs like these, and runs the network on them if there is none yet."""
        named = dict(kwargs or {})
        key = key_of(inputs, named)
        if key is None:
            raise GroupwiseError(
                "there is no plan for these inputs: under autocast and torch.func, and for tensors that are not plain "
                "CPU tensors, the network runs the model's own code"
            )
        if key[0] not in vars(self)["_plans"] or not vars(self)["_region"].knows(key[0]):
            with torch.no_grad():
                self(*inputs, **named)
        plan: Plan = vars(self)["_plans"][key[0]]
        return plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the model computes."""
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return self.model(*args, **kwargs)
        if torch.is_grad_enabled():
            self._refuse_gradients(args, kwargs)
        source, model = vars(self)["_structures"]
        if not (source.holds() and model.holds()):
            self._notice_modules(source)
        region: Region = vars(self)["_region"]
        thread, news, started = region.planner.thread, region.planner.news, time.perf_counter()
        outer, thread.met = (thread.met, thread.deadline), []
        thread.deadline = None
        try:
            output = region(*args, **kwargs)
            if region.planner.news != news:
                trim()
            if region.planner.news != news and thread.met:
                self._describe(thread.met, args, kwargs, started)
            elif vars(self)["_plan"] is None and not thread.met:
                self._describe([(region, Refused(reason_to_run_whole(args, kwargs)))], args, kwargs, started)
        finally:
            thread.met, thread.deadline = outer
        return output

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Plans for such inputs, as a first call does. Runs only what cannot be planned as a whole."""
        thread = vars(self)["_region"].planner.thread
        thread.only_plans = True
        try:
            self(*args, **kwargs)
        finally:
            thread.only_plans = False

    def _describe(self, met: Sequence[Met], args: Any, kwargs: Any, started: float) -> None:
        key, plans = key_of(args, kwargs), vars(self)["_plans"]
        plan = plan_of(met, type(self.model).__name__, tree_leaves((args, kwargs)), started)
        vars(self)["_plan"] = plan
        if key is not None:
            plans.pop(key[0], None)
            plans[key[0]] = plan
            while len(plans) > MOST_PROGRAMS:
                plans.popitem(last=False)

    def _notice_modules(self, source: Structure) -> None:
        """Plans anew for a model in which submodules were added, removed or replaced."""
        with vars(self)["_region"].planner.lock:
            if vars(self)["_structures"][0] is not source:
                return  # another thread has just done so
            model = self.model if source.holds() else twin(vars(self)["_source"])
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                check_watchable(name, tensor)
            self._arrange(model, vars(self)["_seconds"], self.dtype)

    def repack(self) -> None:
        """Plans anew and packs the weights again at the next call.

        A change that PyTorch does not count needs this: one through `parameter.data` or a NumPy array.
        """
        vars(self)["_region"].forget()

    def train(self, mode: bool = True) -> Optimized:
        """Refuses training: train the model, which shares its parameters with this network."""
        if mode:
            raise GroupwiseError(
                "an optimized network is for inference; train the model itself: its parameters are this network's, "
                "which packs them again when they change"
            )
        return self

    def _refuse_gradients(self, args: Any, kwargs: Any) -> None:
        for name, tensor in (*self.named_parameters(), *(("an input", leaf) for leaf in tree_leaves((args, kwargs)))):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                raise GroupwiseError(
                    f"{name} requires a gradient, and an optimized network computes none; call it in "
                    "torch.inference_mode() or torch.no_grad(), or train the model itself"
                )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Optimized:
        """Refuses what would change the dtype or the device: `.to`, `.half`, `.cuda`."""
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            with torch.no_grad():
                changed = fn(tensor)
            if (changed.dtype, changed.device) != (tensor.dtype, tensor.device):
                raise GroupwiseError(
                    f"{name} would become {changed.dtype} on {changed.device}; change the model, and call "
                    "groupwise.optimize on that"
                )
        return self

    # The model may have hooks on its state_dict.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the model's state_dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state_dict of the model."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    # A copy plans anew when it is first called: packed weights belong to a process and a machine.

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, self.model)

    def __getstate__(self) -> dict[str, Any]:
        dropped = {"_region", "_plans", "_structures", "_source", "_parameters", "_buffers", "_modules"}
        return {name: value for name, value in vars(self).items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        plan, model = vars(self)["_plan"], vars(self)["_model"]
        countable(model)
        vars(self)["_source"] = model
        self._arrange(model, vars(self)["_seconds"], vars(self)["_dtype"])
        vars(self)["_plan"] = plan

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimized:
        made = type(self).__new__(type(self))
        # Tensors that are made in inference mode count no changes.
        with torch.inference_mode(False), torch.no_grad():
            made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Returns the model's name and the summary of the plan."""
        plan: Plan | None = vars(self)["_plan"]
        return type(self.model).__name__ if plan is None else str(plan).split("\n")[0]
