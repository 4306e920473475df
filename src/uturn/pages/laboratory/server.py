"""A server of the page and of U-turns of images, for the browser of the user who started it and for nobody else.

It listens on 127.0.0.1. Addresses begin with a random token, which only the terminal shows. Requests with another host in their
header, as after DNS rebinding, or from the page of another origin are refused; no answer lets other origins read it.
"""

from __future__ import annotations

import errno
import hmac
import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl

from uturn.pages.laboratory.image_u_turns import MOST_CLONES, MOST_IMAGES, STEPS, image_u_turns, pictures
from uturn.pages.laboratory.page import laboratory

_MOST_ADDRESS = 500  # characters
_ADDRESS = "open the address that uturn explore --images has printed"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# For each answer in JSON the parameters that it takes: the most numbers in each, and the least and the largest of them.
_ANSWERS: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "pictures": {"first": (1, 0, 999)},
    "turns": {
        "items": (MOST_IMAGES, 0, 999),
        "steps": (1, min(STEPS), max(STEPS)),
        "back": (1, 0, max(STEPS)),
        "clones": (1, 0, MOST_CLONES),
        "seed": (1, 0, 2**32 - 1),
    },
}


class LaboratoryServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1, at a free port or the given one; `address` is that of the page. ValueError if it cannot listen."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            reason = "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ValueError(f"port = {port}: {reason}; give another --port, or none, for a free one") from None
        self.token = secrets.token_urlsafe(24)
        self.computing = Lock()  # a U-turn uses all cores

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away, as on reloading, is no error; others are printed, as usual."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


def serve(port: int, announce: Callable[[str], None]) -> None:
    """Serve the laboratory until the program is interrupted. `announce`: called with the address when the model is loaded."""
    with LaboratoryServer(port) as server:
        image_u_turns([0], 1, STEPS[0], 1, 0)  # loads the networks
        try:
            announce(server.address)
            server.serve_forever()
        except KeyboardInterrupt:
            server.computing.acquire(timeout=10)  # threads of torch do not end well in the middle of a computation


class _Refused(Exception):
    """A request that is not answered: the status and one line that says why."""


class _Handler(BaseHTTPRequestHandler):
    server: LaboratoryServer
    server_version, sys_version = "uturn", ""
    timeout = 60

    def do_GET(self) -> None:
        try:
            self._check_sender()
            name, query = self._checked_address()
            if name:
                self._send(HTTPStatus.OK, "application/json", json.dumps(self._answer(name, query)))
            else:
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", laboratory(served=True))
        except _Refused as refused:
            status, words = refused.args
            self._send(status, "text/plain; charset=utf-8", f"{words}\n")

    def _check_sender(self) -> None:
        """Only pages of this server, and the address bar of the browser, may ask."""
        hosts = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, f"another host in the request; {_ADDRESS}")
        if origin not in (None, f"http://{host}") or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN, f"a request from another page; {_ADDRESS}")

    def _checked_address(self) -> tuple[str, str]:
        """What is asked for ("" is the page) and its parameters, if the token is right."""
        if len(self.path) > _MOST_ADDRESS:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"an address of {len(self.path)} characters; expected at most {_MOST_ADDRESS}")
        path, _, query = self.path.partition("?")
        token, _, name = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, f"a wrong token; {_ADDRESS}")
        if name not in ("", *_ANSWERS):
            raise _Refused(HTTPStatus.NOT_FOUND, f"nothing is at this address; expected one of /TOKEN/, {', '.join(_ANSWERS)}")
        return name, query

    def _answer(self, name: str, query: str) -> dict[str, Any]:
        values = _parameters(_ANSWERS[name], query)
        if name == "pictures":
            return {"pictures": pictures(values["first"][0], 20)}
        items, numbers = values.pop("items"), {name: value[0] for name, value in values.items()}
        if len(set(items)) < len(items):
            raise _Refused(HTTPStatus.BAD_REQUEST, "items: expected different numbers")
        if numbers["steps"] not in STEPS or numbers["back"] > numbers["steps"]:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"steps, back: expected steps from {STEPS}, and at most so many back")
        with self.server.computing if numbers["clones"] else nullcontext():
            return image_u_turns(items, **numbers)

    def _send(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Other methods, and requests that are no HTTP: one line, too."""
        self._send(code, "text/plain; charset=utf-8", f"{message or HTTPStatus(code).phrase}\n")

    def log_message(self, *_: Any) -> None:
        """Nothing: the address holds the token."""


def _parameters(expected: Mapping[str, tuple[int, int, int]], query: str) -> dict[str, list[int]]:
    """The parameters of a request: each of the expected ones once, lists of integers in their ranges."""
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=len(expected))
    except ValueError:
        given = []
    if sorted(name for name, _ in given) != sorted(expected):
        raise _Refused(HTTPStatus.BAD_REQUEST, f"parameters: expected each of {', '.join(expected)} once")
    found = {}
    for name, text in given:
        count, least, most = expected[name]
        numbers = [int(part) for part in text.split(",")] if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})*", text, re.ASCII) else []
        if not (1 <= len(numbers) <= count and all(least <= number <= most for number in numbers)):
            many = "an integer" if count == 1 else f"1 to {count} integers"
            raise _Refused(HTTPStatus.BAD_REQUEST, f"{name}: expected {many} from {least} to {most}")
        found[name] = numbers
    return found
