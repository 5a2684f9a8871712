"""BentoML's own tracing, with the steps of an edit in it, as a collector gets it."""

import secrets

import pytest
from support.servers.bentoml_service import LiveOrigin, Service, request
from support.servers.trace_receiver import TraceReceiver

pytestmark = pytest.mark.e2e

_STEPS = {
    "edit",
    "source.load",
    "source.fetch",
    "source.decode",
    "prepare",
    "queue",
    "model",
    "condition",
    "denoise",
    "vae_decode",
    "encode",
    "store",
    "sign",
}


def test_a_callers_trace_has_the_steps_of_its_edit_and_reaches_no_origin(
    local: Service, origin: LiveOrigin, traces: TraceReceiver
) -> None:
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    url = origin.offer(f"/traced.jpg?key={trace_id[:8]}")
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01", "tracestate": "vendor=1"}
    response = local.ask(image_url=url, headers=headers)
    assert response.status_code == 200
    wanted = {*_STEPS, "POST /edit"}
    local.wait_for(lambda: wanted <= traces.spans(trace_id).keys())
    spans = traces.spans(trace_id)
    assert spans["POST /edit"].parent_span_id.hex() == parent_id
    assert spans["edit"].parent_span_id == spans["POST /edit"].span_id
    assert spans["denoise"].parent_span_id == spans["model"].span_id
    text = "".join(map(str, spans.values()))
    assert response.headers["x-request-id"] in text
    assert url not in text
    assert request()["prompt"] not in text
    [head] = origin.heads(f"/traced.jpg?key={trace_id[:8]}")
    assert b"trace" not in head.lower().split(b"\r\n", 1)[1]
    finished = local.wait_for_event("edit.finished", trace_id=trace_id)
    assert finished["requestId"] == response.headers["x-request-id"]


def test_a_link_shows_no_signature_in_a_trace(local: Service, traces: TraceReceiver) -> None:
    trace_id = secrets.token_hex(16)
    link = local.edit()["presigned_url"]
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    assert local.client.get(link, headers=headers).status_code == 200
    local.wait_for(lambda: "GET /files/{key}" in traces.spans(trace_id))
    signature = link.partition("?")[2]
    assert signature not in "".join(map(str, traces.spans(trace_id).values()))
