"""`groupwise serve`: one page, and one address that answers it with pictures. The page asks, and Python draws."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.explanation import PLAIN_VIEWS, Explanation, explain
from groupwise.spec.arguments import valid_groups

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MISSING = 'the page needs starlette and uvicorn; install them with: pip install "groupwise[web]"'
# The page may ask for these: whole numbers, each the same in every dimension.
_NUMBERS = ("batch", "kernel_size", "groups", "stride", "padding", "dilation", "size", "dims")
_FIELDS = ("in_channels", "out_channels", *_NUMBERS, "dtype", "bias", "transposed")


def app() -> Starlette:
    """Returns the application: `/` is the page, `/explain?in_channels=8&out_channels=4&groups=4` its pictures as JSON.

    An answer has `pictures` (SVG by view), `text` and `valid_groups`. A bad request gets status 400 and `error`, and
    still `valid_groups` if the channels are right. Raises `GroupwiseError` without the extra `groupwise[web]`.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, JSONResponse
        from starlette.routing import Route
    except ImportError:
        raise GroupwiseError(MISSING) from None
    page = resources.files("groupwise.web").joinpath("page.html").read_text(encoding="utf-8")

    def show_page(request: Request) -> Response:
        return HTMLResponse(page)

    def show_convolution(request: Request) -> Response:
        status, answer = respond(request.query_params)
        return JSONResponse(answer, status)

    return Starlette(routes=[Route("/", show_page), Route("/explain", show_convolution)])


def serve(host: str = "127.0.0.1", port: int = 8000, say: Callable[[str], None] = lambda message: None) -> None:
    """Serve the page until interrupted, and `say` its address.

    Raises `GroupwiseError` for an invalid port, for an empty host and without the extra `groupwise[web]`, and `OSError`
    for an address that is in use or not this machine's.
    """
    port = check_integer("port", port, 1, 65535)
    try:
        import uvicorn
    except ImportError:
        raise GroupwiseError(MISSING) from None
    if not host:
        raise GroupwiseError("host is empty; give 127.0.0.1 for this machine only, or 0.0.0.0 for every network")
    server = uvicorn.Server(uvicorn.Config(app(), log_level="warning"))
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.create_server(address[:2], family=family) as listening:
        shown = f"[{host}]" if family == socket.AF_INET6 else host
        say(f"open http://{shown}:{port} in a browser; stop with Ctrl-C")
        server.run(sockets=[listening])


def respond(query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Returns the HTTP status and the JSON for the fields of the page's form."""
    answer: dict[str, Any] = {}
    try:
        for name in query:
            check_choice("field", name, _FIELDS)
        in_channels, out_channels = (_number(query, name) for name in ("in_channels", "out_channels"))
        answer["valid_groups"] = list(valid_groups(in_channels, out_channels))
        shown = _explanation(in_channels, out_channels, query)
        answer["pictures"] = {view: shown.to_svg(view) for view in PLAIN_VIEWS}
        answer["text"] = str(shown)
    except GroupwiseError as error:
        return 400, {**answer, "error": str(error)}
    return 200, answer


def _explanation(in_channels: int, out_channels: int, query: Mapping[str, str]) -> Explanation:
    options: dict[str, Any] = {name: _number(query, name) for name in _NUMBERS if query.get(name)}
    return explain(
        in_channels,
        out_channels,
        dtype=query.get("dtype") or None,
        transposed=_flag(query, "transposed", "off"),
        bias=_flag(query, "bias", "on"),
        **options,
    )


def _flag(query: Mapping[str, str], name: str, default: str) -> bool:
    return check_choice(name, query.get(name) or default, ("on", "off")) == "on"


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise GroupwiseError(f"{name}={text!r} must be a whole number") from None
