"""Checkpoints whose files are damaged, or hold what `save` never writes: each is refused before anything changes."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess

import pytest
import torch

from groupwise import GroupwiseError
from groupwise.parallel import list_checkpoints, load, save, split
from ranks import ranks
from test_checkpoints import OTHERS, refused, small, told, written
from test_parallel_split import whole


def made(folder):
    """A checkpoint that 2 ranks wrote."""
    return pathlib.Path(ranks.run(2, written, str(folder))[0][0])


@pytest.fixture
def path(tmp_path):
    return made(tmp_path)


def resum(path, sizes=True):
    """Writes down what the files are now, as one does who has changed them on purpose."""
    facts = path / "groupwise.json"
    if sizes:
        content = json.loads(facts.read_text())
        content["files"] = {name: (path / name).stat().st_size for name in content["files"]}
        facts.write_text(json.dumps(content))
    names = sorted(file.name for file in path.iterdir() if file.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / "SHA256SUMS").write_text("".join(sums))


def say(path, *words, count=2):
    """Has each rank refuse the checkpoint in one line with these words."""
    texts = ranks.run(count, refused, str(path))
    assert len(set(texts)) == 1
    for word in words:
        assert word in texts[0]
    assert "\n" not in texts[0]
    return texts[0]


def test_the_sums_are_those_of_sha256sum(path):
    before = (path / "SHA256SUMS").read_text()
    assert [line.split("  ")[1] for line in before.splitlines()] == sorted(
        {file.name for file in path.iterdir()} - {"SHA256SUMS"}
    )
    resum(path)
    assert (path / "SHA256SUMS").read_text() == before
    if command := shutil.which("sha256sum"):
        subprocess.run([command, "--check", "--strict", "SHA256SUMS"], cwd=path, check=True, stdout=subprocess.DEVNULL)


def flips(path):
    for file in sorted(path.iterdir()):
        size = file.stat().st_size
        places = {*range(0, size, max(1, size // 40)), size - 1}
        # Each letter of the sums counts, also whether it is a small one.
        places, bits = (range(size), (5,)) if file.name == "SHA256SUMS" else (places, (None,))
        yield from ((file, place, place % 8 if bit is None else bit) for place in sorted(places) for bit in bits)


def flip(file, place, bit):
    with file.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << bit]))


def loaded_with_flips(mesh, path):
    """The flips that were not refused, or changed something, and how many there were."""
    model = split(small(), mesh)
    optimizer = OTHERS["stateful"](model)
    before = [whole(value).clone() for value in model.state_dict().values()]
    first, missed = mesh.get_local_rank() == 0, []
    found = list(flips(pathlib.Path(path)))
    for change in found:
        torch.distributed.barrier(mesh.get_group())
        if first:
            flip(*change)
        torch.distributed.barrier(mesh.get_group())
        text = told(load, path, model, optimizer, group=mesh.get_group())
        same = all(map(torch.equal, map(whole, model.state_dict().values()), before)) and not optimizer.state
        if not same or f"checkpoint {path} is damaged: " not in text or "; resume from an older one" not in text:
            missed.append((*change, text))
        torch.distributed.barrier(mesh.get_group())
        if first:
            flip(*change)
    torch.distributed.barrier(mesh.get_group())
    return missed, len(found), told(load, path, model, optimizer, group=mesh.get_group())


def test_each_flipped_bit_is_noticed_before_anything_is_changed(path):
    for missed, count, at_last in ranks.run(2, loaded_with_flips, str(path)):
        assert not missed
        assert count > 400
        assert at_last == "done"


def test_a_flipped_bit_is_named_on_any_number_of_ranks(path):
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp", "groupwise.json"):
        flip(path / name, 100, 0)
        for count in (1, 3):
            say(path, f"checkpoint {path} is damaged: the SHA-256 of {name} is not the one in SHA256SUMS", count=count)
        assert (path in list_checkpoints(path.parent)) == (name != "groupwise.json")
        flip(path / name, 100, 0)
    say(path, "loaded")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-30], "line 4 of SHA256SUMS is not a SHA-256, two blanks and a file name"),
        (lambda text: text + text.splitlines(keepends=True)[0], "SHA256SUMS lists a file twice"),
        (lambda text: text + f"{'0' * 64}  other\n", "only one of SHA256SUMS and groupwise.json lists other"),
        (lambda text: "".join(text.splitlines(keepends=True)[1:]), "lists .metadata"),
        (lambda text: "", "SHA256SUMS does not list groupwise.json"),
        (lambda text: text.replace("\n", "\r\n"), "line 1 of SHA256SUMS is not"),
        (lambda text: "é" + text, "'ascii' codec can't decode byte"),
    ],
)
def test_sums_that_are_none(path, change, words):
    sums = path / "SHA256SUMS"
    sums.write_bytes(change(sums.read_text()).encode())
    say(path, f"checkpoint {path} is damaged: ", words)
    assert not list_checkpoints(path.parent)


def test_a_checkpoint_of_an_earlier_groupwise(path):
    (path / "SHA256SUMS").unlink()
    say(path, f"checkpoint {path} has no SHA256SUMS: an earlier groupwise wrote it", "save it anew")
    assert not list_checkpoints(path.parent)


@pytest.mark.parametrize("name", [".metadata", "__1_0.distcp", "groupwise.json", "SHA256SUMS"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_is_never_opened(path, name, what):
    """A pipe would wait for its other end for ever, and the device has no end."""
    (path / name).unlink()
    make = {
        "pipe": os.mkfifo,
        "device": lambda place: place.symlink_to("/dev/zero"),
        "folder": pathlib.Path.mkdir,
    }
    make[what](path / name)
    words = "a folder" if what == "folder" else "a device, a pipe or a socket"
    say(path, f"{name} is {words} and not a file")
    assert (path in list_checkpoints(path.parent)) == (name in (".metadata", "__1_0.distcp"))


def edited(**changes):
    def edit(text):
        facts = json.loads(text)
        for key, value in changes.items():
            facts[key] = value(facts[key]) if callable(value) else value
        return json.dumps(facts)

    return edit


def files(**more):
    return edited(files=lambda known: known | {name.replace("_slash_", "/"): size for name, size in more.items()})


KEYS = ("step", "order", "facts", "model", "optimizer", "files")


def without(key):
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "[]", "the whole is [] and not an object"),
        (lambda text: "null", "the whole is None and not an object"),
        (lambda text: "", "Expecting value"),
        (lambda text: text[:-9], "Expecting "),
        (lambda text: "[" * 100_000, "its values are nested too deeply"),
        (lambda text: f'{{"step": {"9" * 5000}}}', "xceeds the limit"),
        (lambda text: b"\xff" + text.encode(), "'utf-8' codec can't decode byte 0xff"),
        (lambda text: text.encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        *(
            (without(key), f"it has no key '{key}'")
            for key in ("optimizer", "order", "files", "facts", "model", "step")
        ),
        (edited(step="3"), "step is '3' and not a whole number from 0 to 2147483647"),
        (edited(step=True), "step is True and not a whole number"),
        (edited(step=1.0), "step is 1.0 and not a whole number"),
        (edited(step=2**31), "step is 2147483648 and not a whole number"),
        (edited(order=-1), "order is -1 and not a whole number"),
        (edited(order=None), "order is None and not a whole number"),
        (edited(order=10**400), "and not a whole number from 0 to 9223372036854775807"),
        (edited(facts=None), "facts is None and not an object"),
        (edited(model=[["a", "b"]]), "model is [['a', 'b']] and not an object"),
        (edited(model={"a": 1}), "model['a'] is 1 and not a text"),
        (edited(optimizer={"a": {}}), "optimizer['a'] is {} and not a text"),
        (edited(files=["a"]), "files is ['a'] and not an object"),
        (files(a="1"), "files['a'] is '1' and not a whole number"),
        (files(a=-1), "files['a'] is -1 and not a whole number"),
        (files(a=True), "files['a'] is True and not a whole number"),
        (files(a=None), "files['a'] is None and not a whole number"),
        (edited(files={}), "files does not name .metadata"),
        (files(_slash_etc=1), "files names '/etc', which is not the plain name of a file"),
        (files(**{"..": 1}), "files names '..', which is not"),
        (files(**{"a\nb": 1}), "files names 'a\\nb', which is not"),
        (files(**{"groupwise.json": 1}), "files names 'groupwise.json', which is not"),
    ],
)
def test_facts_of_other_hands(path, change, words):
    facts = path / "groupwise.json"
    content = change(facts.read_text())
    facts.write_bytes(content if isinstance(content, bytes) else content.encode())
    resum(path, sizes=False)
    text = say(path, f"{path} is not a checkpoint of groupwise: groupwise.json in it cannot be read (", words)
    assert len(text) < 600
    assert not list_checkpoints(path.parent)


def test_no_fact_replaces_the_step(path):
    facts = path / "groupwise.json"
    facts.write_text(edited(facts={"step": "rm", "epoch": 2})(facts.read_text()))
    resum(path)
    assert ranks.run(1, facts_of, str(path)) == [{"step": 1, "epoch": 2}]


def facts_of(mesh, path):
    model = split(small(), mesh)
    return load(path, model, OTHERS["stateful"](model), group=mesh.get_group())


def deep_fact(mesh, folder):
    fact = []
    for _ in range(100_000):
        fact = [fact]
    model = small()
    with pytest.raises(GroupwiseError, match="deep of type list is no JSON value"):
        save(folder, 1, model, OTHERS["plain"](model), group=mesh.get_group(), deep=fact)


def test_a_fact_that_is_nested_too_deeply(tmp_path):
    ranks.run(1, deep_fact, str(tmp_path))
