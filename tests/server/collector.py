"""A collector of traces on loopback: takes what OTLP/HTTP sends, and keeps it."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """What came.

    Attributes:
        endpoint: Address to send to.
        paths: Of the requests.
        bodies: Of the requests.
        status: To be answered.
    """

    def __init__(self, port):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.paths = []
        self.bodies = []
        self.status = 200

    def spans(self):
        """Return all spans that came."""
        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, count, seconds=20):
        """Return the spans as soon as there are so many."""
        end = time.monotonic() + seconds
        while len(found := self.spans()) < count:
            assert time.monotonic() < end, f"{len(found)} spans came"
            time.sleep(0.05)
        return found


@contextmanager
def run_collector():
    """Run a collector until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            collector.paths.append(self.path)
            collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(collector.status)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def attributes(span):
    """Return a span's attributes, which are strings here."""
    return {each.key: each.value.string_value for each in span.attributes}
