"""What is measured of one stream of requests."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from loadtest.measure import Span, Target, measure
from loadtest.remote import Remote
from loadtest.service import Service
from loadtest.workload import Workload


class Nothing(BaseHTTPRequestHandler):
    """A service that has nothing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_requests_are_sent_to_the_end_of_the_measured_span(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            service = Service(Remote(f"http://127.0.0.1:{server.server_address[1]}"), pid=None)
            target = Target("nothing", service, [("a", "lora")], 1, "none", "float32", "cpu", {}, True)
            measured = measure(target, Workload(rate_per_s=50.0), Span(0.5, 1.5), tmp_path)
        finally:
            server.shutdown()
            thread.join()
    assert measured.samples.records["due_s"][-1] >= measured.end_s - 0.2  # at 50 a second such a gap comes once in e^10
