import json
import re
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message, Receive, Scope, Send
from support.fakes import PNG, House
from support.web import (
    BODY,
    build_app,
    client,
    open_host,
    raising,
    require_error,
    require_unreached,
    settings,
)

from retouch import errors
from retouch.errors import EditError, error_classes
from retouch.schema import EditResult


async def test_an_edit_is_answered_without_bentoml() -> None:
    async with client(require_unreached) as http:
        response = await http.post("/edit", json=BODY)
    assert response.status_code == 200
    EditResult.model_validate(response.json())


async def test_an_unknown_route_is_not_found_whatever_the_key() -> None:
    async with client(require_unreached, api_keys=("k3y-of-one-caller",)) as http:
        for path in ("/nothing", "/edit/", "/task", "/static/x", "/docs.json", "/edit/x"):
            error = require_error(await http.get(path), errors.RouteNotFound)
            assert "/docs" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/edit", "POST"),
        ("DELETE", "/edit", "POST"),
        ("POST", "/", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
        ("PUT", "/files/a.png", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_gets_the_allowed_ones(method: str, path: str, allow: str) -> None:
    async with client(require_unreached) as http:
        response = await http.request(method, path)
    assert response.headers["allow"] == allow
    error = require_error(response, errors.MethodNotAllowed)
    assert error["details"]["allow"] == allow.split(", ")


async def test_a_head_of_an_edit_is_no_edit() -> None:
    async with client(require_unreached) as http:
        response = await http.head("/edit")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/info", "/openapi.json", "/metrics", "/schema.json"])
async def test_what_needs_a_key_is_closed_without_one(path: str) -> None:
    async with client(api_keys=("k3y-of-one-caller", "k3y-of-another-one")) as http:
        response = await http.get(path)
        error = require_error(response, errors.Unauthorized)
        assert response.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in error["message"]
        assert "X-API-Key" in error["message"]
        assert (await http.get(path, headers={"X-API-Key": "wrong"})).status_code == 401
        assert (await http.get(path, headers={"X-API-Key": "k3y-of-one-caller"})).status_code == 200
        assert (
            await http.get(path, headers={"Authorization": "Bearer k3y-of-another-one"})
        ).status_code == 200


async def test_an_edit_needs_a_key_before_its_body_is_looked_at() -> None:
    async with client(require_unreached, api_keys=("k3y-of-one-caller",)) as http:
        require_error(await http.post("/edit", content=b"x" * 5000), errors.Unauthorized)
    async with client(api_keys=("k3y-of-one-caller",)) as http:
        headers = {"Authorization": "Bearer k3y-of-one-caller"}
        assert (await http.post("/edit", json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/page/main.js", "/page/page.css", "/sample.jpg", "/demo.webp"),
        *("/livez", "/healthz", "/readyz", "/ping"),
    ],
)
async def test_page_and_health_need_no_key(path: str) -> None:
    async with client(require_unreached, api_keys=("k3y-of-one-caller",)) as http:
        assert (await http.get(path)).status_code == 200
        assert (await http.head(path)).status_code == 200


async def test_a_body_over_the_limit_is_refused_by_what_it_says() -> None:
    async with client(require_unreached) as http:
        limit = settings().max_body_bytes
        headers = {"Content-Type": "application/json", "Content-Length": str(limit + 1)}
        response = await http.post("/edit", content=b"{}", headers=headers)
    error = require_error(response, errors.BodyTooLarge)
    assert str(limit) in error["message"]
    assert "MAX_IMAGE_BYTES" in error["message"]


async def test_a_body_over_the_limit_is_refused_by_what_it_sends() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    async with client(require_unreached) as http:
        headers = {"Content-Type": "application/json"}
        response = await http.post("/edit", content=chunks(), headers=headers)
    assert "content-length" not in response.request.headers
    require_error(response, errors.BodyTooLarge)


async def test_a_body_that_is_said_to_be_neither_json_nor_a_form_is_refused() -> None:
    async with client(require_unreached) as http:
        for response in (
            await http.post("/edit", content=json.dumps(BODY)),
            await http.post("/edit", data={"prompt": "x"}),
            await http.post("/edit?prompt=x", content=PNG, headers={"Content-Type": "image/png"}),
        ):
            error = require_error(response, errors.UnsupportedContentType)
            assert "curl -F image=@photo.jpg" in error["message"]


async def test_malformed_json_is_refused() -> None:
    async with client(require_unreached) as http:
        headers = {"Content-Type": "application/json"}
        for body in (b"{", b"[]", b"\xff", b""):
            response = await http.post("/edit", content=body, headers=headers)
            require_error(response, errors.MalformedBody)


async def test_wrong_fields_are_named_all_at_once() -> None:
    async with client(require_unreached) as http:
        response = await http.post("/edit", json={"prompt": "", "seed": "s3cr3t", "more": 1})
    error = require_error(response, errors.InvalidRequest)
    assert set(error["details"]["fields"]) == {"image_url", "prompt", "seed", "more"}
    assert "s3cr3t" not in response.text


async def test_a_crash_shows_its_request_id_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client(raising(ValueError("the s3cr3t thing"))) as http:
        response = await http.get("/schema.json", headers={"X-Request-ID": "r-7"})
    error = require_error(response, errors.InternalError)
    assert error["details"] == {"code": "internal_error", "retryable": False, "request_id": "r-7"}
    for hidden in ("s3cr3t", "Traceback", "ValueError", ".py"):
        assert hidden not in response.text
    (record,) = [record for record in caplog.records if record.message == "http.failed"]
    assert record.exc_info
    assert record.exc_info[0] is ValueError


@pytest.mark.parametrize("kind", error_classes(), ids=lambda cls: cls.code)
async def test_any_error_of_the_tree_is_answered_with_its_status(kind: type[EditError]) -> None:
    details = {"allow": ["GET"], "retry_after": 17}
    error = kind("it went wrong", details=details, path="/10.0.0.1")
    async with client(raising(error)) as http:
        response = await http.get("/schema.json")
    require_error(response, kind)
    assert "10.0.0.1" not in response.text
    waits = {errors.Overloaded: "17", errors.DownloadsFull: "17", errors.DecoderBusy: "17"}
    waits |= dict.fromkeys(
        (errors.NotReady, errors.ModelLost, errors.WorkerLost, errors.EngineUnavailable), "5"
    )
    assert response.headers.get("retry-after") == waits.get(kind)
    assert ("www-authenticate" in response.headers) is (kind is errors.Unauthorized)
    assert ("allow" in response.headers) is (kind is errors.MethodNotAllowed)


async def test_a_crash_after_the_answer_began_is_left_to_the_server() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("in the middle")

    front = build_app(open_host(settings(), House()), app)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="already started"):
        await front(*call("GET", "/schema.json"), send)
    assert [message["type"] for message in sent] == ["http.response.start"]


def call(method: str, path: str) -> tuple[Scope, Receive]:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    return scope, receive


async def test_what_is_not_http_is_passed_on() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    front = build_app(open_host(settings(), None), app)
    scope, receive = call("GET", "/")

    async def send(_: Message) -> None:
        pytest.fail("nothing is to be sent")

    await front({**scope, "type": "lifespan"}, receive, send)
    assert seen == ["lifespan"]


@pytest.mark.parametrize("path", ["/edit", "/livez", "/", "/nothing"])
async def test_the_caller_s_request_id_is_echoed(path: str) -> None:
    async with client() as http:
        response = await http.get(path, headers={"X-Request-ID": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("given", ["a", "A-1_b.c:d", "x" * 128])
async def test_a_plain_request_id_is_taken_over(given: str) -> None:
    async with client() as http:
        response = await http.post("/edit", json=BODY, headers={"X-Request-ID": given})
    meta = response.json()["result"]["meta"]
    assert response.headers["x-request-id"] == meta["request_id"] == given
    assert re.fullmatch("[0-9a-f]{32}", meta["job_id"])


@pytest.mark.parametrize("hostile", ["", "a b", "x" * 129, "<script>", 'a"b', "a/b", "ä"])
async def test_a_hostile_request_id_is_replaced_by_the_job_id(hostile: str) -> None:
    async with client() as http:
        headers = {b"X-Request-ID": hostile.encode()}
        response = await http.post("/edit", json=BODY, headers=headers)
    meta = response.json()["result"]["meta"]
    assert response.headers["x-request-id"] == meta["request_id"] == meta["job_id"]


async def test_every_request_has_a_job_id_of_its_own() -> None:
    async with client() as http:
        ids = {(await http.get("/nothing")).headers["x-request-id"] for _ in range(100)}
    assert len(ids) == 100
