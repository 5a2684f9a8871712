"""Every kind of failure over HTTP, each in the same envelope."""

import json
import time
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image
from support.servers.bentoml_service import (
    ALL_DAY,
    JSON,
    SAMPLE,
    SAMPLE_URL,
    LiveOrigin,
    Service,
    request,
    require_error,
)
from support.servers.origin import answer

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b'"text"', b"\xff\xfe", b'{"prompt": "a"} {}', b"[" * 60_000]
)
def test_a_body_that_is_not_a_json_object_is_malformed(local: Service, body: bytes) -> None:
    response = local.client.post("/edit", content=body, headers=JSON)
    require_error(response, 400, "BadInput", "malformed_body")


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", ""])
def test_another_content_type_is_refused(local: Service, kind: str) -> None:
    body = json.dumps(request()).encode()
    response = local.client.post("/edit", content=body, headers={"Content-Type": kind})
    require_error(response, 415, "BadInput", "unsupported_content_type")


@pytest.mark.parametrize("excess_bytes", [1, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(local: Service, excess_bytes: int, chunked: bool) -> None:
    limit_bytes = 2 * 1048576 * 4 // 3 + 65536
    body = b"x" * (limit_bytes + excess_bytes)
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
    response = local.client.post("/edit", content=pieces if chunked else body, headers=JSON)
    error = require_error(response, 413, "BadInput", "body_too_large")
    assert str(limit_bytes) in error["message"]
    assert "MAX_IMAGE_BYTES" in error["message"]


@pytest.mark.parametrize("size_bytes", [1_000_000, 20_000_000])
def test_a_caller_that_closes_the_connection_gets_the_refusal_of_its_body(
    local: Service, size_bytes: int
) -> None:
    for _ in range(5):
        response = local.client.post(
            "/edit",
            content=bytes(size_bytes),
            headers={"Content-Type": "text/plain", "Connection": "close"},
        )
        require_error(response, 415, "BadInput", "unsupported_content_type")


def test_a_complete_body_is_refused_without_delay(local: Service) -> None:
    began_s = time.monotonic()
    response = local.client.post("/edit", content=b"{", headers={**JSON, "Connection": "close"})
    require_error(response, 400, "BadInput", "malformed_body")
    assert time.monotonic() - began_s < 10


def test_an_unknown_route_and_a_wrong_method_get_different_errors(local: Service) -> None:
    require_error(local.client.get("/nothing"), 404, "BadInput", "route_not_found")
    require_error(local.client.get("/docs.json"), 404, "BadInput", "route_not_found")
    wrong = local.client.get("/edit")
    require_error(wrong, 405, "BadInput", "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    require_error(local.client.post("/readyz"), 405, "BadInput", "method_not_allowed")


def test_every_wrong_field_is_named_at_once_and_nothing_is_fetched(
    local: Service, origin: LiveOrigin
) -> None:
    url = origin.offer("/never")
    wrong: dict[str, Any] = {
        "prompt": " ",
        "seed": "4",
        "num_inference_steps": 0,
        "guidance_scale": 21,
        "scheduler": "DDIM",
        "output_format": "gif",
        "output_quality": 101,
        "width": 100,
        "height": 48,
        "tiles": 2,
    }
    response = local.ask(image_url=url, **wrong)
    error = require_error(response, 400, "BadInput", "invalid_request")
    assert set(error["details"]["fields"]) == set(wrong)
    assert "Euler" in error["details"]["fields"]["scheduler"]
    assert origin.count("/never") == 0


def test_a_refused_address_and_an_unknown_name_get_the_same_answer(local: Service) -> None:
    hosts = ("no-such-name.invalid", "127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1")
    answers = [
        local.ask(image_url=f"http://{host}/a.jpg", headers={"X-Request-ID": "same"})
        for host in hosts
    ]
    require_error(answers[0], 502, "DownloadFailed", "source_unreachable")
    assert {each.content for each in answers} == {answers[0].content}
    names = [[name for name, _ in each.headers.raw] for each in answers]
    assert names == [names[0]] * len(hosts)


def test_a_refused_address_is_refused_as_a_mask_and_among_several_images(strict: Service) -> None:
    refused = "http://169.254.169.254/a.png"
    several: dict[str, Any] = {"image_url": None, "image_urls": [SAMPLE_URL, refused]}
    for fields, source in (({"mask_url": refused}, "mask_url"), (several, "image_urls[1]")):
        error = require_error(strict.ask(**fields), 502, "DownloadFailed", "source_unreachable")
        assert error["details"]["source"] == source


def test_an_image_over_a_limit_names_the_limit_and_its_setting(
    local: Service, origin: LiveOrigin
) -> None:
    large = origin.offer("/large", answer(SAMPLE + bytes(1048576)))
    error = require_error(local.ask(image_url=large), 413, "BadInput", "source_too_large")
    assert "1048576" in error["message"]
    assert "MAX_IMAGE_BYTES" in error["message"]
    buffer = BytesIO()
    Image.new("L", (1001, 1000)).save(buffer, "PNG")
    wide = origin.offer("/wide", answer(buffer.getvalue()))
    error = require_error(local.ask(image_url=wide), 413, "BadInput", "image_too_large")
    assert "1000000" in error["message"]
    assert "MAX_IMAGE_PIXELS" in error["message"]


def test_the_status_of_a_refusing_origin_is_reported(local: Service, origin: LiveOrigin) -> None:
    gone = local.ask(image_url=origin.offer("/gone", answer(status=410)))
    error = require_error(gone, 502, "DownloadFailed", "source_refused")
    assert error["details"]["origin_status"] == 410
    text = local.ask(image_url=origin.offer("/text", answer(b"<html>")))
    require_error(text, 400, "BadInput", "unsupported_image")


def test_errors_before_a_stream_begins_use_the_http_status(local: Service) -> None:
    response = local.ask(prompt="", headers={"Accept": "text/event-stream"})
    require_error(response, 400, "BadInput", "invalid_request")


def test_without_a_key_only_health_pages_and_files_are_served(strict: Service) -> None:
    url = strict.edit()["presigned_url"]
    with httpx.Client(base_url=strict.url, trust_env=False) as stranger:
        for path in ("/info", "/openapi.json", "/metrics", "/schema.json"):
            require_error(stranger.get(path), 401, "Unauthorized", "unauthorized")
            assert strict.client.get(path).status_code == 200
        refused = stranger.post("/edit", json=request())
        require_error(refused, 401, "Unauthorized", "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        wrong = stranger.post("/edit", json=request(), headers={"X-API-Key": "another,"})
        require_error(wrong, 401, "Unauthorized", "unauthorized")
        for path in (
            "/",
            "/docs",
            "/page/main.js",
            "/sample.jpg",
            "/demo.webp",
            "/livez",
            "/healthz",
            "/readyz",
            "/ping",
            url,
        ):
            assert stranger.get(path).status_code == 200
        bearer = {"Authorization": f"Bearer {strict.client.headers['X-API-Key']}"}
        assert stranger.post("/edit", json=request(), headers=bearer).status_code == 200


def test_a_full_queue_answers_at_once_with_retry_after(strict: Service) -> None:
    with strict.busy(), strict.stream() as waiting:
        waiting.skip_to("progress", stage="queue")
        began = time.monotonic()
        response = strict.ask()
        took_s = time.monotonic() - began
    error = require_error(response, 429, "Overloaded", "queue_full")
    assert int(response.headers["retry-after"]) == error["details"]["retry_after"] >= 1
    assert "MAX_QUEUE" in error["message"]
    assert took_s < 10
    while (response := strict.ask()).status_code == 429:  # the two leave within a step
        time.sleep(0.05)
    assert response.status_code == 200


def test_an_edit_ends_at_its_deadline(strict: Service) -> None:
    began = time.monotonic()
    response = strict.ask(**ALL_DAY)
    took_s = time.monotonic() - began
    error = require_error(response, 504, "DeadlineExceeded", "deadline_exceeded")
    assert error["details"]["retryable"] is True
    assert 6 <= took_s < 12
    assert strict.edit()["meta"]["timings_ms"]["queue"] < 1000
