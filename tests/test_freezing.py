"""Graphs that `torch.compile` freezes: the kernels do not see their convolutions, and a warning says so once."""

from __future__ import annotations

import contextlib
import sys
import warnings

import pytest
import torch

import groupwise
from groupwise import record_plans
from groupwise.kernels import dispatch, freezing
from kernels import needs_kernels

# Inductor itself uses what PyTorch deprecates.
pytestmark = [needs_kernels, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def source():
    return torch.randn(2, 16, 12, 12)


def dispatched(model):
    """Whether the model's convolution is dispatched now."""
    with torch.no_grad(), record_plans() as plans:
        model(source())
    return bool(plans)


@pytest.fixture
def unfrozen(monkeypatch):
    """As in a process that has frozen no graph and was not warned."""
    import torch._inductor.config

    monkeypatch.delitem(sys.modules, freezing.MODULE, raising=False)
    monkeypatch.setattr(dispatch, "_frozen", freezing.Watch(lambda: dispatch._switches.on))
    finders = [finder for finder in sys.meta_path if not isinstance(finder, freezing.Watch)]
    monkeypatch.setattr(sys, "meta_path", finders)
    torch._dynamo.reset()
    groupwise.disable()
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        yield
    groupwise.disable()
    # Tests after these are in a process that has frozen nothing.
    sys.modules.pop(freezing.MODULE, None)


def layer():
    return torch.nn.Conv2d(16, 16, 3, padding=1, groups=4)


def frozen():
    """A model whose graph is frozen when it is first called."""
    return torch.compile(torch.nn.Sequential(layer(), torch.nn.ReLU()))


@pytest.mark.parametrize("switch", [groupwise.enabled, lambda: contextlib.nullcontext(groupwise.enable())])
def test_a_graph_that_is_frozen_while_enabled_warns_once(unfrozen, switch):
    with switch():
        model = frozen()
        with pytest.warns(RuntimeWarning, match="torch.compile freezes a graph.*compile without freezing") as caught:
            model(source())
        assert len([warning for warning in caught if warning.message.args == (freezing.MESSAGE,)]) == 1
        # oneDNN's own operator computes the frozen graph's convolution.
        assert dispatched(model) != torch.backends.mkldnn.is_available()
        frozen()(source())
    with groupwise.enabled():
        assert dispatched(layer())


def test_a_graph_that_was_frozen_before_warns_once_when_enabled(unfrozen):
    frozen()(source())
    with pytest.warns(RuntimeWarning, match="torch.compile freezes a graph"), groupwise.enabled():
        pass
    with groupwise.enabled():
        groupwise.enable()


def test_the_warning_is_true_whatever_inductor_replaced(unfrozen):
    """With the option alone some versions of PyTorch replace nothing: the sentence has an if."""
    model = torch.compile(torch.nn.Sequential(layer(), torch.nn.ReLU()), options={"freezing": True})
    with (
        groupwise.enabled(),
        torch._inductor.config.patch(freezing=False),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        model(source())
    texts = [str(warning.message) for warning in caught if "freezes a graph" in str(warning.message)]
    assert len(texts) <= 1
    assert all("if inductor replaces" in text and "record_plans() lists what does" in text for text in texts)


def test_a_graph_that_is_not_frozen_does_not_warn(unfrozen):
    with torch._inductor.config.patch(freezing=False), groupwise.enabled():
        assert dispatched(frozen())
