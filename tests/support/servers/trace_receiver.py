"""Takes traces as OpenTelemetry's collector does: OTLP over HTTP, in a thread of its own."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class TraceReceiver:
    """Keeps the spans that it was sent."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        spans = self._spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def settings(self) -> str:
        """BENTOML_CONFIG_OPTIONS that send to it what callers have sampled."""
        endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        options = {"exporter_type": "otlp", "otlp.protocol": "http", "otlp.endpoint": endpoint}
        return " ".join(
            f"services.retouch.tracing.{name}={value}" for name, value in options.items()
        )

    def spans(self, trace_id: str) -> dict[str, Span]:
        """Return the spans of a trace that have arrived, by name."""
        return {span.name: span for span in self._spans if span.trace_id.hex() == trace_id}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
