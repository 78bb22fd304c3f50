from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from groupwise import GroupwiseError, explain
from groupwise.web.server import respond, serve

FIELDS = {"in_channels": "8", "out_channels": "4", "kernel_size": "5", "groups": "4", "size": "56", "dims": "2"}


def test_the_answer_is_what_explain_says():
    status, answer = respond(FIELDS | {"stride": "2", "padding": "1", "dilation": "1", "transposed": "on"})
    shown = explain(8, 4, 5, groups=4, size=56, stride=2, padding=1, transposed=True)
    assert status == 200
    assert answer["valid_groups"] == [1, 2, 4]
    assert answer["text"] == str(shown)
    assert answer["pictures"] == {view: shown.to_svg(view) for view in ("wiring", "weight", "cost")}


def test_empty_fields_take_their_defaults():
    shown = explain(8, 4, groups=1)
    assert respond({"in_channels": "8", "out_channels": "4", "size": "", "stride": ""})[1]["text"] == str(shown)


@pytest.mark.parametrize(
    ("change", "message", "valid"),
    [
        ({"groups": "3"}, "valid groups: 1, 2, 4", [1, 2, 4]),
        ({"groups": "two"}, "groups='two' must be a whole number", [1, 2, 4]),
        ({"size": "3"}, "the kernel reaches over 5 positions", [1, 2, 4]),
        ({"in_channels": ""}, "in_channels='' must be a whole number", None),
        ({"out_channels": "-4"}, "out_channels=-4 is too small", None),
        ({"group": "4"}, "field='group' is not known; choose one of: in_channels", None),
        ({"transposed": "maybe"}, "transposed='maybe' is not known; choose one of: on, off", [1, 2, 4]),
        ({"dims": "4"}, "dims=4 is too large", [1, 2, 4]),
    ],
)
def test_bad_requests(change, message, valid):
    status, answer = respond(FIELDS | change)
    assert status == 400
    assert message in answer["error"]
    assert answer.get("valid_groups") == valid


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-m", "groupwise", "serve", "--port", str(port)]) as server:
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield url
        server.terminate()


def test_the_page_asks_for_nothing_from_elsewhere(address):
    with urllib.request.urlopen(address, timeout=10) as reply:
        page = reply.read().decode()
    assert page.startswith("<!doctype html>")
    assert "http://" not in page
    assert "https://" not in page


def test_the_running_server_answers(address):
    with urllib.request.urlopen(f"{address}/explain?in_channels=8&out_channels=4&groups=4", timeout=10) as reply:
        assert json.load(reply)["pictures"]["wiring"] == explain(8, 4, groups=4).to_svg("wiring")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{address}/explain?in_channels=8&out_channels=4&groups=3", timeout=10)
    assert "valid groups: 1, 2, 4" in json.load(caught.value)["error"]
    caught.value.close()


def test_without_the_extra(monkeypatch):
    for name in ("uvicorn", "starlette.applications"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GroupwiseError, match=r'pip install "groupwise\[web\]"'):
        serve()


def test_an_empty_host_is_not_every_network():
    with pytest.raises(GroupwiseError, match="host is empty"):
        serve("")


def test_an_invalid_port():
    with pytest.raises(GroupwiseError, match="port=70000 is too large"):
        serve(port=70000)
