from __future__ import annotations

import csv
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
import torch

from commands import run, write_net
from groupwise import ConvSpec, __version__, explain, plan
from groupwise.cli.parser import parser
from groupwise.kernels import native
from kernels import needs_kernels


def test_explain_prints_what_explain_says(capsys):
    status, out, err = run(capsys, "explain", "8", "4", "--groups", "4", "--kernel", "5", "--size", "56")
    assert (status, out, err) == (0, str(explain(8, 4, 5, groups=4, size=56)) + "\n", "")


def test_explain_json_takes_every_option(capsys):
    options = (
        "--groups 2 --kernel 3x5 --size 9x8 --stride 2,1 --padding 1 --dilation 1x2 --transposed --output-padding 1,0 "
        "--no-bias --batch 3 --dtype bfloat16 --format json"
    )
    status, out, _ = run(capsys, "explain", "8", "4", *options.split())
    expected = explain(
        8, 4, (3, 5), groups=2, size=(9, 8), stride=(2, 1), padding=1, dilation=(1, 2), transposed=True,
        output_padding=(1, 0), bias=False, batch=3, dtype="bfloat16",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out) == expected.to_dict()


@needs_kernels
def test_plan_and_tune_allow_the_fft(capsys, tmp_path, own_cache):
    long = "plan 16 16 -g 16 --kernel 2048 --size 4096 --dims 1".split()
    refused = json.loads(run(capsys, *long, "-f", "json")[1])
    assert "enable(fft=True) allows it" in {**refused["refused"], **refused["others"]}["fft"]
    allowed = json.loads(run(capsys, *long, "--fft", "-f", "json")[1])
    assert "enable(fft=True)" not in str(allowed["others"] | allowed["refused"])
    assert "fft" in {allowed["kernel"], *allowed["others"]}
    assert json.loads(run(capsys, *long, "-f", "json")[1]) == refused, "the wish ends with the command"
    net = write_net(tmp_path, "nn.Conv1d(4, 4, 2048, groups=4)")
    for words, able in (((), False), (("--fft",), True)):
        arguments = ["tune", f"{net}:Net", "--input-shape", "1,4,4096", "--calls", "1", "-f", "json"]
        (made,) = json.loads(run(capsys, *arguments, *words)[1])["plans"]
        assert ("enable(fft=True)" not in str(made["others"] | made["refused"])) == able


def test_dims_and_named_padding(capsys):
    _, out, _ = run(capsys, *"explain 4 4 -g 4 -k 3 --dims 3 --padding same --size 5 -f json".split())
    facts = json.loads(out)
    assert (facts["op"], facts["padding"], facts["output_size"]) == ("conv3d", "same", [5, 5, 5])


@pytest.mark.parametrize("view", ["wiring", "weight", "cost", "all"])
def test_views(capsys, view):
    shown = explain(8, 4, groups=4)
    assert run(capsys, "explain", "8", "4", "-g", "4", "--view", view)[1] == shown.to_text(view) + "\n"
    assert run(capsys, "explain", "8", "4", "-g", "4", "--view", view, "-f", "svg")[1] == shown.to_svg(view)


@pytest.mark.parametrize("suffix", ["txt", "json", "svg", "png", "html"])
def test_the_file_name_picks_the_format(capsys, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    assert run(capsys, "explain", "8", "4", "-g", "4", "-o", str(path)) == (0, "", "")
    content = path.read_bytes()
    if suffix == "svg":
        assert ET.fromstring(content).tag.endswith("svg")
    begin = {"txt": b"conv2d", "json": b"{", "svg": b"<svg", "png": b"\x89PNG", "html": b"<!doctype html>"}
    assert content.startswith(begin[suffix])


def test_png_to_a_pipe():
    command = [sys.executable, "-m", "groupwise", "explain", "8", "4", "--format", "png"]
    assert subprocess.run(command, capture_output=True, check=True).stdout.startswith(b"\x89PNG")


def test_a_png_may_have_any_name(capsys, tmp_path):
    """As an SVG may: the format is an option of its own."""
    assert run(capsys, "explain", "8", "4", "--format", "png", "-o", str(tmp_path / "picture"))[0] == 0
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")


def test_groups_lists_every_valid_value(capsys):
    status, out, _ = run(capsys, "groups", "96", "64")
    assert status == 0
    assert [line.split()[0] for line in out.split("\n")[3:-1]] == ["1", "2", "4", "8", "16", "32"]
    facts = json.loads(run(capsys, "groups", "8", "4", "--format", "json", "--size", "9")[1])
    assert facts["valid_groups"] == [1, 2, 4]
    assert [row["weights"] for row in facts["rows"]] == [288, 144, 72]


@pytest.mark.parametrize(("kind", "suffix"), [("csv", "csv"), ("markdown", "md")])
@pytest.mark.parametrize("size", [[], ["--size", "9x7", "--batch", "2"]])
def test_a_comparison_for_other_programs(capsys, tmp_path, kind, suffix, size):
    """The raw values of `explain`, whatever the format."""
    arguments = ["groups", "8", "4", "-k", "3x5", *size]
    status, out, _ = run(capsys, *arguments, "-f", kind)
    lines = out.splitlines()
    if kind == "markdown":
        assert lines.pop(1).strip("| -") == ""
        lines = [",".join(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    found = list(csv.DictReader(lines))
    facts = json.loads(run(capsys, *arguments, "-f", "json")[1])["rows"]
    assert status == 0
    assert [int(row["groups"]) for row in found] == [1, 2, 4]
    for row, fact in zip(found, facts, strict=True):
        assert row["weight_shape"] == "×".join(map(str, fact["weight_shape"]))
        assert [row[key] for key in ("kind", "parameters", "inputs_per_filter")] == [
            fact["kind"], str(fact["parameters"]), str(fact["inputs_per_filter"])
        ]  # fmt: skip
        if size:
            assert (int(row["macs"]), int(row["bytes"])) == (fact["macs"]["forward"], fact["bytes"])
            # Markdown is for readers, and has six digits.
            assert float(row["intensity"]) == pytest.approx(fact["intensity"], rel=1e-5 if kind == "markdown" else 0)
        else:
            assert "macs" not in row
    path = tmp_path / f"a.{suffix}"
    assert run(capsys, *arguments, "-o", str(path)) == (0, "", "")
    assert path.read_text(encoding="utf-8") == out


def test_the_help_of_a_command_opens_with_its_line_in_the_list(capsys):
    for command in ("explain", "groups", "compare", "plan", "bench", "report", "explore", "doctor"):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0
        listed = re.search(rf"^    {command}  +(.*(?:\n {{10,}}.*)*)", parser().format_help(), re.M).group(1)
        summary = " ".join(listed.split())
        assert f"{summary[0].upper()}{summary[1:]}." in " ".join(out.split())


def test_explore_opens_a_layer_of_a_model(capsys, tmp_path):
    page = tmp_path / "page.html"
    status, _, err = run(capsys, "explore", "alexnet", "--layer", "conv2", "-o", str(page))
    assert status == 0, err
    start = re.search(r'const START = "(.*)"', page.read_text(encoding="utf-8")).group(1)
    assert "in_channels=96&out_channels=256&groups=2" in start
    assert "kernel_size=5" in start


def test_compare_shows_the_chosen_ones(capsys):
    status, out, _ = run(capsys, *"compare 128 128 --groups 1,2,32 --size 56 --padding 1".split())
    assert status == 0
    assert [line.split()[0] for line in out.split("\n")[3:-1]] == ["1", "2", "32"]
    dense, _, grouped = (re.split(r"\s{2,}", line) for line in out.split("\n")[3:-1])
    assert dense == ["1", "dense", "128", "128×128×3×3", "148 k", "0.0 %", "462 M", "3.80 MB", "243"]
    assert grouped == ["32", "grouped", "4", "128×4×3×3", "4.74 k", "96.8 %", "14.5 M", "3.23 MB", "8.95"]


NUMBERS = "8 16 -g 4 -k 3x5 --size 9x8 --stride 2,1 --padding 1 --dilation 1x2 --batch 3 --threads 3"
SPEC = ConvSpec(8, 16, (3, 5), (2, 1), 1, (1, 2), groups=4)


@needs_kernels
def test_plan_prints_what_plan_says(capsys):
    for options, more in (
        ("", {}),
        (
            " --memory-format channels_last --direction grad_weight",
            {"memory_format": "channels_last", "direction": "grad_weight"},
        ),
        (" --dtype float64", {"dtype": "float64"}),
    ):
        made = plan(SPEC, (3, 8, 9, 8), threads=3, **more)
        assert run(capsys, *f"plan {NUMBERS}{options}".split()) == (0, f"{made}\n", "")
        assert json.loads(run(capsys, *f"plan {NUMBERS}{options} -f json".split())[1]) == made.to_dict()
    transposed = plan(ConvSpec(8, 8, 3, transposed=True), (1, 8, 5, 5))
    assert run(capsys, *"plan 8 8 --size 5 --transposed".split())[1] == f"{transposed}\n"


def test_plan_without_kernels_says_how_to_have_them():
    """In a process of its own, where nothing is loaded yet."""
    code = (
        "import sys, groupwise, groupwise.cli, groupwise.kernels.plan; groupwise.__path__[:] = ['nowhere'];"
        "sys.exit(groupwise.cli.main(['plan', '8', '8', '--size', '9']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("groupwise plan: groupwise's kernels cannot run: ")
    assert done.stderr.count("\n") == 1


def test_bench_times_one_layer(capsys, tmp_path):
    path = tmp_path / "a.json"
    assert run(capsys, *f"bench {NUMBERS} --repeats 2 -o {path}".split()) == (0, "", "")
    facts = json.loads(path.read_text())
    at = explain(SPEC, size=(9, 8), batch=3).to_dict()
    assert {key: facts[key] for key in ("weight_shape", "macs", "bytes", "batch")} == {
        key: at[key] for key in ("weight_shape", "macs", "bytes", "batch")
    }
    assert (facts["repeats"], facts["machine"]["threads"]) == (2, 3)
    status, out, _ = run(capsys, *f"bench {NUMBERS} --repeats 1".split())
    assert status == 0
    assert out.startswith("conv2d 8 → 16, kernel 3×5, stride 2×1, padding 1×1, dilation 1×2, groups=4; 9×8, batch 3")
    assert out.count("\ntraining step  ") == len(facts["timings"]) / 2


def test_explaining_numbers_takes_no_torch(capsys):
    """Nor the planner; with torch at hand in the process, the answer is the same."""
    arguments = ["explain", "8", "8", "-g", "8", "--size", "9", "-f", "json"]
    code = (
        f"import sys, groupwise.cli; status = groupwise.cli.main({arguments});"
        "sys.exit(status or 'torch' in sys.modules or 'groupwise.kernels.native' in sys.modules)"
    )
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(alone) == json.loads(run(capsys, *arguments)[1])


def test_where_arrows_cannot_be_written():
    command = [sys.executable, "-m", "groupwise", "explain", "8", "4"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    assert shown.startswith(b"conv2d 8 ? 4")


def test_commands_in_the_docs_are_understood():
    root = pathlib.Path(__file__).parent.parent
    pages = "\n".join(page.read_text() for page in [root / "README.md", *(root / "docs").glob("*.md")])
    lines = re.findall(r"^groupwise ((?:report|explore|plan|bench)(?: [^\n\[]*)?)(?=\[|$)", pages, re.M)
    assert {line.split()[0] for line in lines} == {"report", "explore", "plan", "bench"}
    for line in lines:
        parser().parse_args(shlex.split(re.split(r"\s{2,}", line.strip(), maxsplit=1)[0], comments=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("explain 8 4 --groups 3", "valid groups: 1, 2, 4"),
        (
            "explain 8 4 --groups two",
            "groups='two' is a str; groups must be an integer from 1 to 16777216; valid groups",
        ),
        ("explain 8 4 --groups 2.0", "valid groups: 1, 2, 4"),
        ("explain 8 4 --groups True", "valid groups: 1, 2, 4"),
        ("explain 8 4 --padding SAME", "'SAME' is not same, valid, a number or numbers"),
        ("explain 8 4 --batch -1", "batch=-1 is too small"),
        ("explain 8 4 --grops 2", "--grops 2: no such option; see groupwise explain --help"),
        (
            "explain 8 4 --input-shape 1,3,9,9",
            "--input-shape goes with a MODEL; write: groupwise explain MODEL --layer NAME",
        ),
        ("explain ² 4", "neither IN OUT"),
        ("explain +-5 4", "neither IN OUT"),
        ("explain 8 4 -f svg -o a.png", "asks for png and --format for svg"),
        ("groups 8 4 -o a.svg", "name a file that ends in one of .txt, .json, .csv, .md"),
        ("compare 8 4 --groups 1,x", "groups='x' is a str"),
        ("explain alexnet --layer conv2 -g 5", "--groups goes with IN OUT"),
        ("explain alexnet --layer conv2 --input-shape 1,3", "alexnet failed on one input of shape (1, 3)"),
        ("report alexnet --input-shape 1,3,-9,9", "is not a shape of positive numbers such as 1,3,224,224"),
        ("report alexnet --input-shape 1,3,32,32 --repeats 1", "give another shape with --input-shape"),
        ("report alexnet -o {tmp}/none/r.html", "there is no folder"),
        ("report net.py", "'net.py' lacks a name; give net.py:NAME"),
        ("report :", "':' is not a TARGET"),
        ("report ..:x", "'..:x' is not a TARGET"),
        ("report alexnet --input-shape 1,3,999999999,999999999", "alexnet failed on one input of shape"),
        ("report alexnet -o {tmp}", "name a file that ends in"),
        ("explain 8 4 -f svg -o {tmp}", "is a folder; name a file in it"),
        ("explore 8 4 --groups 3", "valid groups: 1, 2, 4"),
        ("explore 8 4 -o a.svg", "name a file that ends in .html"),
        ("explore 8", "neither IN OUT"),
        ("explain 8 4 --kernel five", "'five' is not a number or numbers such as 3, 3x5 or 3,5"),
        ("explain 8 4 --kernel 3x3x3x3", "it must have 1, 2 or 3"),
        ("explain 8 4 --kernel 5 --size 3", "the kernel reaches over 5 positions"),
        ("explain 8 4 --dtype float31", "invalid choice: 'float31' (choose from"),
        ("explain 8", "neither IN OUT"),
        ("explain 8 4 2", "neither IN OUT"),
        ("explain 8 2.0", "neither IN OUT"),
        ("explain 1099511627776 4", "in_channels=1099511627776 is too large"),
        ("explain 8 4 --layer conv1", "--layer goes with a MODEL"),
        ("explain 8 4 -o a.bmp", "name a file that ends in one of .txt, .json, .svg, .png, .html"),
        ("explain 8 4 -o {tmp}/none/a.svg", "there is no folder"),
        ("explain alexnet", "--layer NAME is needed with alexnet; its convolutions: "),
        ("explain alexnet --layer conv9", "no convolution named 'conv9' in alexnet; its convolutions: "),
        ("explain alexnet --layer conv9 --kernel 5", "--kernel goes with IN OUT"),
        ("explain alexnot --layer conv1", "no model named 'alexnot'; nearest: alexnet"),
        ("groups 8 0", "out_channels=0 is too small"),
        ("compare 8 4 --groups 1,3", "valid groups: 1, 2, 4"),
        ("plan 8 4", "the following arguments are required: --size"),
        ("plan 8 4 --size 9 --groups 3", "valid groups: 1, 2, 4"),
        ("plan 8 4 --size 9 --direction back", "direction='back' is not known; choose one of: forward, grad_input"),
        ("plan 8 4 --size 9 --memory-format NHWC", "choose one of: contiguous, channels_last"),
        ("plan 8 4 --size 9x9x9", "a 2-D convolution takes one int or 2 of them"),
        ("plan 8 4 --size 2", "the kernel reaches over 3 positions"),
        ("plan 8 4 --size 9 -o a.svg", "name a file that ends in one of .txt, .json"),
        ("bench 8 4", "the following arguments are required: --size"),
        ("bench 8 4 --size 9 --groups 3", "valid groups: 1, 2, 4"),
        ("bench 8 4 --size 9 --repeats 0", "repeats=0 is too small"),
        ("bench 8 4 --size 9 --threads 0", "threads=0 is too small"),
        ("bench 8 4 --size 9 --batch 0", "batch=0 is too small"),
        ("bench 8 4 --size 9 --dtype int8", "dtype='int8' is not known; choose one of: float32, float64, bfloat16"),
        ("compare 8 4", "the following arguments are required: --groups"),
        ("report alexnet --image {tmp}/none.jpg", "none.jpg does not exist"),
        ("report alexnet --image {tmp}/none.jpg --input-shape 1,3,9,9", "not allowed with argument"),
        ("report alexnet -o a.xml", "name a file that ends in one of .txt, .json, .csv, .md, .html, .svg"),
        ("report alexnet --repeats 0", "repeats=0 is too small"),
        ("report nothing:Net", "no module named 'nothing'"),
        ("", "the following arguments are required: COMMAND"),
        ("exlpore", "no command named 'exlpore'; did you mean explore?"),
        ("xyz 8 4", "no command named 'xyz'; the commands are: explain, groups, compare, plan"),
        ("plan resnet18", "'resnet18' is no number of channels; this command takes one layer, as IN OUT"),
        ("plan resnet18 --size 9", "To see a model, write: groupwise report MODEL"),
        ("bench 8 x --size 9", "argument OUT: 'x' is no number of channels"),
        ("report alexnet --threads 0", "threads=0 is too small"),
    ],
)
def test_a_bad_request_ends_with_status_2_and_one_line(capsys, tmp_path, arguments, message):
    status, out, err = run(capsys, *arguments.format(tmp=tmp_path).split())
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", ["groups 720720 720720", "--help", "report --help", "--print-completion bash"])
def test_a_closed_pipe_is_no_error(words):
    if "completion" in words:
        pytest.importorskip("shtab")
    code = f"import sys; from groupwise.cli import main; sys.exit(main({words.split()}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_version_and_entry_points(capsys):
    status, out, _ = run(capsys, "--version")
    assert status == 0
    known = native.status()
    used = f"no kernels: {known.problem}" if known.problem else f"kernels {known.isa}"
    assert out == f"groupwise {__version__}, torch {torch.__version__}, {used}\n"
    script = pathlib.Path(sys.executable).parent / "groupwise"
    if script.exists():
        shown = subprocess.run([script, "explain", "8", "4", "-g", "4"], capture_output=True, text=True, check=True)
        assert shown.stdout.startswith("conv2d 8 → 4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_as_output_is_refused_and_not_waited_for(capsys, tmp_path):
    path = tmp_path / "picture.svg"
    os.mkfifo(path)
    status, out, err = run(capsys, "explain", "8", "8", "-o", str(path))
    assert (status, out) == (2, "")
    assert f"-o {path} is a pipe or a socket; name a file" in err
