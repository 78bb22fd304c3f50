"""`Optimized`: a network that runs a rewritten form of a model, and has the model's parameters."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from groupwise.errors import GroupwiseError
from groupwise.rewrite.capture import twin
from groupwise.rewrite.plan import Plan
from groupwise.rewrite.region import Planner, Region, plan_of


class Optimized(torch.nn.Module):
    """A network for inference that `groupwise.optimize` made of a model.

    It is called as the model is. `print(network.plan)` says how it runs. Its parameters, buffers and state_dict are the
    model's own, and it packs its weights again when one of them changes. Inputs of another shape make a plan of their
    own when they first come.
    """

    def __init__(self, model: torch.nn.Module, measure: bool, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._arrange(twin(model), measure, dtype)
        super().train(False)

    def _arrange(self, model: torch.nn.Module, measure: bool, dtype: torch.dtype | None) -> None:
        # The model is no submodule: names in the state_dict would begin with its name.
        vars(self)["_model"] = model
        vars(self)["_measure"] = measure
        vars(self)["_dtype"] = dtype
        # Children of the region's model may become regions themselves. It shares whatever holds parameters.
        vars(self)["_region"] = Region(twin(model), "", Planner(measure, dtype))
        vars(self)["_plan"] = None

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
        """How the network runs on the shapes that it planned last."""
        plan: Plan | None = vars(self)["_plan"]
        if plan is None:
            raise GroupwiseError("this copy of an optimized network has no plan yet; call it once on an input")
        return plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the model computes."""
        if torch.compiler.is_compiling():
            return self.model(*args, **kwargs)
        if torch.is_grad_enabled():
            self._refuse_gradients(args, kwargs)
        region: Region = vars(self)["_region"]
        before, started = _planned(region), time.perf_counter()
        output = region(*args, **kwargs)
        if _planned(region) != before:
            shapes = tuple(tuple(t.shape) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
            vars(self)["_plan"] = plan_of(region, type(self.model).__name__, shapes, started)
        return output

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

    # Names and values are the model's.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the model's state_dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state_dict of the model."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Returns the model's parameters."""
        return self.model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Returns the model's buffers."""
        return self.model.named_buffers(*args, **kwargs)

    # A copy plans anew when it is first called: packed weights belong to a process and a machine.

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        return {**state, "_region": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        plan = vars(self)["_plan"]
        self._arrange(vars(self)["_model"], vars(self)["_measure"], vars(self)["_dtype"])
        vars(self)["_plan"] = plan

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimized:
        made = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def extra_repr(self) -> str:
        """Returns the model's name and the summary of the plan."""
        plan: Plan | None = vars(self)["_plan"]
        return type(self.model).__name__ if plan is None else str(plan).split("\n")[0]


def _planned(region: Region) -> list[int]:
    """Returns what changes when a region or one of its children makes a program."""
    found = [id(ready.program) for _, ready in region.programs()]
    return found + [number for child in region.children for number in _planned(child)]
