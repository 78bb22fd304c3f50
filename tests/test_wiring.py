from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from cases import SCENARIOS, layer_of, specs
from groupwise import ConvSpec, GroupwiseError, Wiring


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_paths_of_the_scenarios(scenario):
    n_in, n_out, kernel, groups = scenario[:4]
    paths = list(Wiring(ConvSpec(n_in, n_out, kernel, groups=groups)))
    assert len(paths) == groups
    for j, path in enumerate(paths):
        assert (path.group, path.inputs) == (j, range(j * n_in // groups, (j + 1) * n_in // groups))
        assert path.outputs == path.weight == range(j * n_out // groups, (j + 1) * n_out // groups)


def test_channel_multiplier():
    wires = Wiring(ConvSpec(4, 12, 3, groups=4))
    assert [list(wires.inputs_of(o)) for o in range(12)] == [[o // 3] for o in range(12)]
    assert [list(wires.outputs_of(i)) for i in range(4)] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)]


@settings(max_examples=60, deadline=None)
@given(specs())
def test_wiring_is_where_gradients_flow(spec):
    """Input i reaches output o when the gradient of o with respect to i is not zero."""
    layer = layer_of(spec)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    size = tuple(2 * d * (k - 1) + 6 for k, d in zip(spec.kernel_size, spec.dilation, strict=True))
    source = torch.ones(1, spec.in_channels, *size, dtype=torch.float64, requires_grad=True)
    output = layer(source)
    wires = Wiring(spec)
    found = 0
    for o in range(spec.out_channels):
        (gradient,) = torch.autograd.grad(output[0, o].sum(), source, retain_graph=True)
        reached = (gradient[0].flatten(1) != 0).any(1).nonzero().flatten().tolist()
        assert reached == list(wires.inputs_of(o))
        found += len(reached)
    assert found == wires.connected_pairs
    assert wires.all_pairs == spec.in_channels * spec.out_channels


@given(specs())
def test_the_weight_slice_of_a_path_is_all_that_joins_it(spec):
    layer = layer_of(spec)
    rows = [row for path in Wiring(spec) for row in path.weight]
    assert rows == list(range(layer.weight.shape[0]))


def test_a_channel_that_is_not_there():
    with pytest.raises(GroupwiseError, match="output=4 is too large; output must be an integer from 0 to 3"):
        Wiring(ConvSpec(8, 4, 3)).inputs_of(4)
    with pytest.raises(GroupwiseError, match="group=-1 is too small"):
        Wiring(ConvSpec(8, 4, 3)).path(-1)


@given(specs())
def test_the_texts_of_a_wiring_are_its_facts(spec):
    wires = Wiring(spec)
    facts = wires.to_dict()
    assert facts["paths"] == [path.to_dict() for path in wires]
    first, *lines = str(wires).split("\n")
    assert first == f"{facts['connected_pairs']:,} of {facts['all_pairs']:,} channel pairs"
    assert lines == [str(path) for path in wires] or len(lines) == 7 < len(wires)
    assert wires._repr_html_().count("<tr>") == 1 + len(lines)


def test_a_path_as_text():
    assert str(Wiring(ConvSpec(8, 4, 3, groups=4)).path(1)) == "group 1: in 2-3 → out 1"
    assert "… 2,042 more groups of the same shape\ngroup 2047: in" in str(Wiring(ConvSpec(2048, 2048, 3, groups=2048)))
