"""An HTTP proxy in front of an S3 server that fails on purpose: 503, connection resets, truncated
bodies, latency.

    python tests/faulty_proxy.py --upstream http://127.0.0.1:5000 --port 5001 --rate 0.05 --seed 0

A failure is drawn for every request: a 503 before the request is passed on, a reset before it, a
reset after it (the work is done and the answer is lost), or an answer whose body is cut. Which
requests fail is a function of the seed and of their order.
"""

from __future__ import annotations

import argparse
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("503", "reset before", "reset after", "truncated")


class FaultyProxy(ThreadingHTTPServer):
    """The proxy, which runs in a thread: `with FaultyProxy(upstream, rate=0.05) as proxy:
    proxy.url`.

    Attributes that may be changed at any time: `rate` (share of requests that fail), `kinds`,
    `latency` (seconds for every request), `down` (nothing is passed on, every request gets this
    status). `requests` lists (method, path, failure or None).
    """

    daemon_threads = True

    def __init__(self, upstream, port=0, *, rate=0.0, kinds=KINDS, latency=0.0, seed=0):
        super().__init__(("127.0.0.1", port), _Handler)
        where = urlsplit(upstream)
        self.upstream = where.hostname, where.port
        self.rate, self.kinds, self.latency, self.down = rate, kinds, latency, None
        self.requests = []
        self._random, self._lock = random.Random(seed), threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def counts(self):
        """{failure, or None for requests that were answered: number of requests}."""
        return Counter(failure for _, _, failure in self.requests)

    def drawn(self, method, path):
        """The failure of a request, or None."""
        with self._lock:
            failure = self._random.choice(self.kinds) if self._random.random() < self.rate else None
            self.requests.append((method, path, failure))
        return failure

    def handle_error(self, request, client_address):
        """A client that closes its connection is no error of the proxy."""

    def __enter__(self):
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _pass_on(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        failure = server.drawn(self.command, self.path)
        if server.latency:
            time.sleep(server.latency)
        if server.down or failure == "503":
            self._answer(server.down or 503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        if failure == "reset before":
            self._reset()
            return
        upstream = http.client.HTTPConnection(*server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # with the host that the client signed
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            found = upstream.getresponse()
            data = found.read()
        finally:
            upstream.close()
        if failure == "reset after" or (failure == "truncated" and not data):
            self._reset()
            return
        hop = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}
        headers = [(name, value) for name, value in found.getheaders() if name.lower() not in hop]
        size = found.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(found.status, headers, data, size, cut=failure == "truncated")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _answer(self, status, headers, data, size=None, cut=False):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", size or str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    def _reset(self):
        """Close the connection with RST, as a server that dies does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def finish(self):
        with suppress(OSError, ValueError):  # reset
            super().finish()

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--upstream", required=True, help="the S3 server, such as http://127.0.0.1:5000"
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free port, which is printed")
    parser.add_argument("--rate", type=float, default=0.05, help="share of requests that fail")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument(
        "--latency", type=float, default=0.0, help="seconds that every request waits"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with FaultyProxy(
        given.upstream,
        given.port,
        rate=given.rate,
        kinds=given.kinds,
        latency=given.latency,
        seed=given.seed,
    ) as proxy:
        print(proxy.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(dict(proxy.counts()))


if __name__ == "__main__":
    main()
