"""The planner's tables in the core: features and choices are those of the definitions in benchmarks."""

from __future__ import annotations

import ctypes
import json
import math
import pathlib
import random
import sys

import pytest
import torch

from groupwise import ConvSpec, enabled, plan, record_plans
from groupwise.kernels import native, tables
from groupwise.kernels.plan import DIRECTIONS, request_numbers
from kernels import ISAS, needs_kernels

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
from features import family as family_of
from features import features

pytestmark = needs_kernels


def drawn(chance):
    """A layer, an input that it takes, and the settings of a plan."""
    while True:
        groups = chance.choice((1, 2, 3, 8, 32))
        spec = ConvSpec(
            groups * chance.choice((1, 2, 3, 16)),
            groups * chance.choice((1, 2, 5, 24)),
            (chance.choice((1, 3, 7)), chance.choice((1, 2, 9))),
            stride=(chance.choice((1, 2, 3)), chance.choice((1, 4))),
            padding=(chance.choice((0, 1, 3)), chance.choice((0, 2))),
            dilation=(chance.choice((1, 2)), chance.choice((1, 3))),
            groups=groups,
            transposed=chance.random() < 0.3,
            bias=chance.random() < 0.5,
        )
        shape = (chance.choice((1, 3, 8)), spec.in_channels, chance.choice((5, 14, 33)), chance.choice((9, 28)))
        try:
            spec.output_size(shape[2:])
        except ValueError:
            continue
        settings = {
            "memory_format": chance.choice(("contiguous", "channels_last")),
            "threads": chance.choice((1, 2, 4)),
            "direction": chance.choice(DIRECTIONS),
        }
        return spec, shape, settings


def row_of(spec, told):
    """A row of the sweep's record."""
    return {
        **told.shape,
        "direction": told.direction,
        "memory_format": told.memory_format,
        "dims": spec.dims,
        "transposed": spec.transposed,
        # The core sees the forward of a transposed layer as a gradient of the input.
        "biased": spec.transposed and spec.bias and told.direction == "grad_input",
    }


def test_the_core_computes_the_features_that_benchmarks_define():
    chance = random.Random(0)
    for _ in range(300):
        spec, shape, settings = drawn(chance)
        numbers = request_numbers(spec, shape, **settings)
        array = (ctypes.c_int64 * len(numbers))(*numbers)
        told = json.loads(native.read_text(native.library().groupwise_features, array, b"float32"))
        expected = features(row_of(spec, plan(spec, shape, **settings)) | {"threads": settings["threads"]})
        assert list(told) == list(expected)
        for name, value in expected.items():
            assert math.isclose(told[name], value, rel_tol=1e-12, abs_tol=1e-12), (name, spec, shape, settings)


NAMES = ["macs", "channels_last", "stride"]


def made_up(margin=0.1, **speeds):
    """A file of two trees a kernel: in channels_last the last leaf, and in contiguous one of two by the products.

    The leaves of the trees differ by 0.2. PyTorch reaches the roofline, which takes each call as long.
    """
    result = [table_of("pytorch", [[-1, 0]])]
    for kernel, (last, small, large) in speeds.items():
        leaves = [[100 * one + by for one in (small, large, last)] for by in (10, -10)]
        trees = [[1, 0.5, 0, 20.0, -1, few, -1, many, -1, end] for few, many, end in leaves]
        result.append(table_of(kernel, trees))
    about = {"format": 3, "class": "some-1-2", "isa": ISAS[-1], "torch": "2.13", "rows": 1234, "bounded": [2]}
    decides = {"margins": [margin] * tables.FAMILIES, "caution": 1, "roofline": [1e30, 1e30, 1]}
    return {**about, **decides, "features": NAMES, "tables": result}


def table_of(kernel, trees):
    return {"kernel": kernel, "least": [0, 0, 0], "most": [40, 1, 2], "trees": trees}


@pytest.fixture
def given():
    """Gives the core a file for the instruction set in use, and takes it away."""
    library, isa = native.library(), native.status().isa
    yield lambda told: tables.give(library, isa, told)
    tables.clear(library, isa)


def test_a_table_tells_transposed_layers_with_a_bias_from_those_without(given):
    found = [table_of("pytorch", [[-1, 0]]), table_of("planar", [[0, 0.5, -1, -100, -1, 200]])]
    for one in found:
        one["least"], one["most"] = [0], [1]
    given(made_up() | {"bounded": [], "features": ["biased"], "tables": found})
    with torch.no_grad(), enabled(tune=False), record_plans() as plans:
        for bias in (True, False):
            torch.nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=16, bias=bias)(torch.ones(1, 16, 9, 9))
    assert [one.kernel for one in plans] == ["planar", "pytorch"]
    for bias, recorded in zip((True, False), plans, strict=True):
        spec = ConvSpec(16, 16, 4, 2, 1, groups=16, transposed=True, bias=bias)
        assert plan(spec, (1, 16, 9, 9)).kernel == recorded.kernel


SMALL, LARGE = (ConvSpec(channels, channels, 3, padding=1, groups=channels) for channels in (16, 1024))


def test_a_plan_takes_the_best_of_the_kernels_that_are_almost_surely_faster(given):
    given(made_up(planar=(1, 0.5, -1), narrow=(2, 0, 0.5)))
    last = plan(SMALL, (1, 16, 9, 9), memory_format="channels_last")
    assert (last.kernel, last.source, last.speedup) == ("narrow", "table", 4)
    words = "{} PyTorch's speed by the table, give or take 1.07x (some-1-2, " + ISAS[-1]
    words += ", torch 2.13: 1,234 timed passes)"
    assert last.evidence == words.format("4.00x")
    assert last.others["planar"] == words.format("2.00x") + "; narrow 4.00x"
    first = plan(SMALL, (1, 16, 9, 9))
    assert (first.kernel, first.source) == ("planar", "table")
    large = plan(LARGE, (1, 1024, 28, 28))
    assert (large.kernel, round(large.speedup, 2)) == ("narrow", 1.41)


@pytest.mark.parametrize(
    ("speed", "caution", "kernel"),
    [(0.2, 1, "pytorch"), (0.23, 1, "pytorch"), (0.3, 1, "planar"), (0.2, 0.5, "planar"), (0.3, 2, "pytorch")],
)
def test_a_kernel_that_may_be_slower_leaves_pytorchs(given, speed, caution, kernel):
    # log2 of the margin is 0.1375, and the spread of the trees 0.1.
    given(made_up(planar=(speed, speed, speed)) | {"caution": caution})
    told = plan(ConvSpec(2, 2, 3, groups=2), (1, 2, 9, 9))
    assert (told.kernel, told.source) == (kernel, "table")


def test_the_spread_of_a_ratio_has_that_of_pytorch(given):
    told = made_up(planar=(1, 1, 1))
    told["tables"][0]["trees"] = [[-1, 20], [-1, -4]]
    given(told)
    found = plan(SMALL, (1, 16, 9, 9))
    assert found.speedup == pytest.approx(2 ** (1 - 0.08), rel=1e-5)
    assert f"give or take {2 ** math.hypot(0.1, 0.12):.2f}x" in found.evidence


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_kernel_takes_as_much_longer_as_it_executes_more_products(given, direction):
    spec = ConvSpec(16, 16, 3, padding=1, groups=4)
    settings = {"direction": direction, "threads": 1}
    told = made_up(planar=(2, 2, 2))
    given(told | {"roofline": [1e9, 1e30, 1e-30]})
    found = plan(spec, (8, 16, 9, 9), **settings)
    executed = 8 * 16 * 4 * 9 * 81
    assert (found.kernel, found.products > executed) == ("planar", True), "nine columns fill no vector"
    assert found.speedup == pytest.approx(4 * executed / found.products, rel=1e-5)
    # The bytes are the same whichever kernel runs.
    given(told | {"roofline": [1e9, 1e3, 1e-30]})
    assert plan(spec, (8, 16, 9, 9), **settings).speedup == pytest.approx(4, rel=1e-3)
    # Two threads execute half as much each, and move as much in all.
    rates = [1e9, 1e9, 1e-30]
    given(told | {"roofline": rates})
    moved = 4 * (2 * 8 * 16 * 81 + 16 * 4 * 9)
    for threads in (1, 2):
        found = plan(spec, (8, 16, 9, 9), direction=direction, threads=threads)
        theirs, ours = (products / threads / rates[0] + moved / rates[1] for products in (executed, found.products))
        assert found.speedup == pytest.approx(4 * theirs / ours, rel=1e-5)


def test_a_file_without_pytorchs_times_knows_nothing(given):
    told = made_up(planar=(2, 2, 2))
    del told["tables"][0]
    given(told)
    assert plan(SMALL, (1, 16, 9, 9)).source != "table"


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        (0, ConvSpec(16, 16, 3, stride=3, groups=16)),
        (1, ConvSpec(16, 16, 3, stride=(1, 3), groups=4)),
        (2, ConvSpec(16, 16, 3, stride=2)),
        (3, ConvSpec(64, 28, 3, groups=4)),
        (4, ConvSpec(64, 32, 3, groups=4)),
    ],
)
def test_each_family_of_layers_has_its_margin(given, family, spec):
    # Less the spread, the speed is 1.07 times PyTorch's.
    for own, others, kernel in ((0.05, 0.5, "planar"), (0.5, 0.05, "pytorch")):
        margins = [own if number == family else others for number in range(tables.FAMILIES)]
        given(made_up(planar=(0.2, 0.2, 0.2)) | {"margins": margins, "bounded": []})
        assert plan(spec, (1, spec.in_channels, 9, 9)).kernel == kernel
    assert family_of(row_of(spec, plan(spec, (1, spec.in_channels, 9, 9)))) == family


def test_tables_know_nothing_of_layers_unlike_all_that_were_measured(given):
    given(made_up(planar=(2, 2, 2)))
    strided = ConvSpec(16, 16, 3, stride=(2, 4), padding=1, groups=16)
    assert plan(strided, (1, 16, 99, 99)).source != "table"
    assert plan(SMALL, (1, 16, 9, 9)).source == "table"


def test_a_layer_whose_outputs_see_padding_alone_never_goes_to_pytorch(given):
    given(made_up(planar=(-3, -3, -3)))
    told = plan(ConvSpec(16, 16, 1, padding=1, groups=16), (1, 16, 9, 9))
    assert told.kernel == "planar"
    assert told.evidence == "PyTorch's kernel may read outside its tensors here"


@pytest.mark.parametrize("channels", [8, 16])
def test_a_gradient_that_ends_the_process_in_pytorch_stays_here(given, channels):
    given(made_up(planar=(-3, -3, -3), pixels=(-4, -4, -4)))
    spec = ConvSpec(channels, 8, 1, stride=2)
    told = plan(spec, (8, channels, 56, 56), memory_format="channels_last", direction="grad_weight")
    # With AVX-512 alone, and where channels do not fill oneDNN's vectors.
    assert (told.kernel != "pytorch") == ("avx512" in ISAS and channels == 8)
    assert plan(spec, (8, channels, 56, 56), memory_format="channels_last").kernel == "pytorch"


def harm(told, how):
    tree = told["tables"][1]["trees"][0]
    if how == "a child too few":
        del tree[-2:]
    elif how == "a child too many":
        tree += [-1, 0]
    elif how == "a node that is none":
        tree[0] = -2
    elif how == "no such feature":
        tree[0] = 3
    elif how == "a number too few":
        tree.pop()
    elif how == "no tree":
        told["tables"][1]["trees"] = []
    elif how == "a number too many":
        told["tables"][0]["most"].append(1)
    elif how == "more trees than numbers":
        told["tables"][1]["trees"] += [[-1, 0]] * 3
        told["tables"].pop()
        told["tables"][0]["trees"] = [[2.0**62]]
    elif how == "a bound of no feature":
        told["bounded"] = [3]
    elif how == "a leaf that is no number":
        tree[5] = math.inf
    elif how == "no threshold":
        tree[1] = math.nan
    elif how == "no margin":
        told["margins"][4] = math.nan
    elif how == "a caution below 0":
        told["caution"] = -0.5
    else:
        told["roofline"][1] = {"a rate of 0": 0, "no rate": math.nan}[how]


@pytest.mark.parametrize(
    "how",
    [
        *("a child too few", "a child too many", "a node that is none", "no such feature", "a number too few"),
        *("no tree", "a number too many", "a rate of 0", "no rate", "more trees than numbers", "a caution below 0"),
        *("a bound of no feature", "a leaf that is no number", "no threshold", "no margin"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(given, how):
    given(made_up(planar=(2, 2, 2)))
    told = made_up(planar=(3, 3, 3))
    harm(told, how)
    with pytest.raises(ValueError, match="do not fit together"):
        given(told)
    assert plan(SMALL, (1, 16, 9, 9)).speedup == 4, "nothing has changed"


def test_a_table_says_from_how_many_products_threads_share_work_and_else_the_model(monkeypatch, tmp_path):
    paths = {name: tmp_path / f"{name}.json" for name in ("model", "table")}
    monkeypatch.setattr(tables, "MODEL", paths["model"])
    monkeypatch.setattr(tables, "table_path", lambda isa: paths["table"])
    isa = native.status().isa

    def shared(**numbers):
        known = {
            "model": a_model(pytorch=(0, 0.1), planar=(0, 0.9)),
            "table": made_up(planar=(2, 2, 2)),
        }
        for name, path in paths.items():
            number = {"shared_from": numbers[name] * per_output} if name in numbers else {}
            path.write_text(json.dumps({**known[name], **number}))
        tables.use(native.library(), isa)
        return [size for size in (4, 8, 32, 64) if plan(SMALL, (1, 16, size, size), threads=2).threads == 2]

    # A lane's products of each output, for each of two threads: 16 channels and 9 taps.
    per_output = 16 * 9 / {"baseline": 4, "neon": 4, "avx2": 8, "avx512": 16}[isa] / 2
    try:
        assert shared(model=60) == [8, 32, 64]
        assert shared(model=60, table=1000) == [32, 64]
        assert shared(model=60) == [8, 32, 64], "a table without a number leaves the model's"
        with pytest.warns(RuntimeWarning, match=r"threads cannot share work from -[\d.]+ products on"):
            shared(model=60, table=-1)
    finally:
        tables.clear(native.library(), isa)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', '{"format": 3, "tables": 3}'])
def test_a_file_that_cannot_be_read_warns_and_changes_nothing(monkeypatch, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    monkeypatch.setattr(tables, "table_path", lambda isa: tmp_path / "x.json")
    with pytest.warns(RuntimeWarning, match="x.json cannot be read .*; install groupwise again"):
        tables.use(native.library(), native.status().isa)


def test_the_shipped_tables_are_read():
    for path in tables.FOLDER.glob("*-*.json"):
        told = json.loads(path.read_text("utf-8"))
        library = native.library()
        tables.give(library, "of a test", told)
        library.groupwise_tables(b"of a test", b"", b"", b"", (ctypes.c_double * 1)(), 0)


def a_model(**costs):
    """A file in which every kernel reaches the same fraction in all directions, formats and kinds."""
    kernels = {
        name: {"overhead": overhead, "reached": [[[reached] * 5] * 2] * 3}
        for name, (overhead, reached) in costs.items()
    }
    return {"format": 3, "classes": ["a-1"], "rows": 12, "spread": 1.25, "kernels": kernels}


@pytest.fixture
def model():
    """Gives the core a cost model, and takes it away."""
    library, isa = native.library(), native.status().isa
    yield lambda told: tables.give_model(library, told)
    tables.clear(library, isa)


def test_where_no_table_knows_a_layer_the_cost_model_chooses(model, given):
    model(a_model(pytorch=(0, 0.1), planar=(0, 0.3), narrow=(1, 0.9)))
    spec = ConvSpec(64, 64, 3, padding=1, groups=4)
    told = plan(spec, (8, 64, 24, 48), threads=1)
    # The roofline counts what planar executes, which 48 columns fill.
    assert (told.kernel, told.source) == ("planar", "model")
    assert 2 < told.speedup < 3.5
    words = f"{told.speedup:.2f}x PyTorch's speed by the cost model, {told.speedup / 1.25:.2f}x or less for a tenth"
    assert told.evidence == f"{words} (from 12 layers on 1 processor)"
    given(made_up(planar=(-2, -2, -2)))
    assert plan(spec, (8, 64, 24, 48)).source == "table"


def test_a_kernel_within_the_models_spread_leaves_pytorchs(model):
    model(a_model(pytorch=(0, 0.5), planar=(0, 0.55)))
    assert plan(ConvSpec(64, 64, 3, padding=1, groups=4), (8, 64, 24, 48)).kernel == "pytorch"


def test_an_overhead_decides_for_small_layers_alone(model):
    model(a_model(pytorch=(0.1, 0.1), planar=(0.2, 0.9)))
    assert plan(ConvSpec(8, 8, 3, groups=8), (1, 8, 9, 9)).kernel == "pytorch"


def test_empty_lanes_cost_products(model):
    model(a_model(pytorch=(0, 0.5), planar=(0, 0.6)))
    # One column fills one lane of a vector, whatever its width.
    told = plan(ConvSpec(256, 256, (3, 1), padding=(1, 0)), (8, 256, 24, 1), threads=1)
    assert told.kernel == "pytorch"
    assert told.others["planar"].startswith("0.")


@pytest.mark.parametrize("harm", ["too few numbers", "no number", "below 0"])
def test_a_model_whose_numbers_do_not_fit_together_is_refused(model, harm):
    told = a_model(pytorch=(0, 0.1), planar=(0, 0.3))
    if harm == "too few numbers":
        told["kernels"]["planar"]["reached"].pop()
    elif harm == "no number":
        told["spread"] = math.nan
    else:
        told["kernels"]["planar"]["overhead"] = -1
    with pytest.raises(ValueError, match="do not fit together"):
        model(told)
