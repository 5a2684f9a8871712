import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from support.fakes import House, until
from support.web import client, open_host, require_error, require_unreached, settings

from retouch import errors, wiring
from retouch.editing.ports import AdapterInfo
from retouch.errors import StoreUnavailable
from retouch.lifecycle import ModelHost, State
from retouch.schema import ServiceInfo
from retouch.storage.local import LocalStore
from retouch.web.openapi import openapi_document

METRICS_KEY = "m3trics-of-prometheus"
S3: dict[str, Any] = {
    "s3_endpoint": "s3.example",
    "s3_access_key": "a",
    "s3_secret_key": "b",
    "s3_bucket": "c",
}


async def test_while_the_model_loads_health_says_so() -> None:
    host = open_host(settings(), None)
    async with client(host=host) as http:
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200
        response = await http.get("/readyz")
        require_error(response, errors.NotReady)
        assert response.headers["retry-after"] == "5"
        response = await http.get("/ping")
        assert (response.status_code, response.content) == (204, b"")


async def test_a_burst_of_requests_does_not_delay_a_probe() -> None:
    answered: list[str] = []

    async def ask(method: str, path: str) -> None:
        await http.request(method, path, content=b"no JSON")
        answered.append(path)

    async with client() as http, asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(ask("POST", "/edit"))
        group.create_task(ask("GET", "/livez"))
    assert answered.index("/livez") < 50


async def test_once_the_model_is_warm_health_names_it() -> None:
    async with client() as http:
        assert (await http.get("/readyz")).text == "ready: fake\n"
        assert (await http.get("/ping")).status_code == 200
        assert (await http.get("/livez")).text == "alive\n"


async def test_after_a_failed_load_health_asks_for_a_restart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wiring, "build_engine", lambda _: 1 / 0)
    host = ModelHost(settings(local_store_dir=tmp_path))
    host.open()
    await until(lambda: host.state is State.FAILED)
    async with client(host=host) as http:
        for path in ("/livez", "/healthz", "/readyz", "/ping"):
            require_error(await http.get(path), errors.ModelError)


@pytest.mark.parametrize(("path", "kind"), [("/sample.jpg", "jpeg"), ("/demo.webp", "webp")])
async def test_the_pictures_of_the_page_are_what_they_say(path: str, kind: str) -> None:
    async with client() as http:
        response = await http.get(path)
    assert response.headers["content-type"] == f"image/{kind}"
    assert Image.open(BytesIO(response.content)).format == kind.upper()


async def test_files_of_the_page_are_asked_for_anew_and_nothing_else_is_there() -> None:
    async with client() as http:
        response = await http.get("/page/main.js")
        assert response.headers["content-type"].startswith("text/javascript")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-content-type-options"] == "nosniff"
        headers = {"If-None-Match": response.headers["etag"]}
        assert (await http.get("/page/main.js", headers=headers)).status_code == 304
        for path in ("/page/", "/page/none.js", "/page/%2e%2e", "/page/..%2fapp.py", "/page/%2e"):
            require_error(await http.get(path), errors.RouteNotFound)


async def test_what_is_loaded_is_told_with_its_limits() -> None:
    house = House()
    house.engine.info = replace(
        house.engine.info,
        max_areas_px=(640 * 640, 512 * 512),
        examples=("warmer",),
        adapters=(AdapterInfo("ink", sha256="0" * 64, layers=2, rank=4, scale=0.5),),
    )
    async with client(host=open_host(settings(), house)) as http:
        info = ServiceInfo.model_validate((await http.get("/info")).json())
        document = (await http.get("/openapi.json")).json()
    assert (info.model, info.max_images, info.examples) == ("fake", 2, ["warmer"])
    assert [(lora.name, lora.scale, lora.always) for lora in info.loras] == [("ink", 0.5, False)]
    assert info.max_areas_px == [640 * 640, 512 * 512]
    assert info.defaults.num_inference_steps == house.engine.info.preset.steps
    assert info.max_image_bytes == settings().max_image_bytes
    width = document["components"]["schemas"]["EditRequest"]["properties"]["width"]
    assert "at most 409600 pixels" in width["description"]


async def test_while_the_model_loads_the_document_is_of_any_model() -> None:
    async with client(host=open_host(settings(), None)) as http:
        require_error(await http.get("/info"), errors.NotReady)
        assert (await http.get("/openapi.json")).json() == openapi_document()


async def test_the_schema_and_the_metrics_are_served() -> None:
    async with client() as http:
        assert (await http.get("/openapi.json")).json() == openapi_document(2048 * 2048)
        assert "retouch_edits_inside" in (await http.get("/metrics")).text
        assert (await http.get("/schema.json")).json()["path"] == "/schema.json"


@asynccontextmanager
async def with_file(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    store = LocalStore(folder, secret=b"s", public_url="", result_ttl_s=60)
    store.put("p/results/a/b.png", b"png", content_type="image/png", metadata={}, timeout_s=5)
    link = store.link("p/results/a/b.png", expires_in_s=60)
    host = open_host(settings(api_keys=("k3y-of-one-caller",)), House(), store=store)
    async with client(require_unreached, host=host) as http:
        yield http, link


async def test_a_service_whose_disk_is_full_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_file(tmp_path) as (http, _):
        assert (await http.get("/readyz")).status_code == 200
        usage = shutil.disk_usage(tmp_path)._replace(free=0)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        require_error(await http.get("/readyz"), StoreUnavailable)
        assert (await http.get("/livez")).status_code == 200


async def test_a_signed_link_opens_its_file_without_a_key(tmp_path: Path) -> None:
    async with with_file(tmp_path) as (http, link):
        response = await http.get(link)
        head = await http.head(link)
    assert (response.status_code, response.content) == (200, b"png")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"] == 'inline; filename="b.png"'
    assert "sandbox" in response.headers["content-security-policy"]
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "3")


async def test_a_link_that_was_changed_is_refused(tmp_path: Path) -> None:
    async with with_file(tmp_path) as (http, link):
        require_error(await http.get(link.replace("b.png", "c.png")), errors.LinkInvalid)
        response = await http.get("/files/p/results/a/b.png")
        require_error(response, errors.LinkInvalid)
        assert "www-authenticate" not in response.headers


async def test_a_file_asked_for_before_the_store_is_open_is_not_ready() -> None:
    async with client(require_unreached, host=ModelHost(settings())) as http:
        require_error(await http.get("/files/a.png"), errors.NotReady)


async def test_with_s3_there_are_no_files_here() -> None:
    async with client(require_unreached, **S3) as http:
        require_error(await http.get("/files/a.png"), errors.RouteNotFound)


async def test_a_request_is_logged_once_with_its_status_and_without_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with client() as http:
        await http.get("/nothing/s3cr3t?token=s3cr3t")
    (record,) = [record for record in caplog.records if record.name.startswith("retouch")]
    fields = vars(record)["fields"]
    assert record.message == "http.answered"
    assert (fields["method"], fields["route"], fields["status"]) == ("GET", "none", 404)
    assert fields["key"] is None
    assert fields["ms"] >= 0
    assert "s3cr3t" not in str(fields)


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz", "/ping", "/metrics"])
async def test_probes_do_not_fill_the_log(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with client() as http:
        await http.get(path)
    assert "http.answered" not in caplog.messages


async def test_what_the_app_sends_in_pieces_goes_on_in_pieces() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("one")(scope, receive, send)

    async with client(app) as http:
        response = await http.get("/schema.json")
    assert response.text == "one"
    assert response.headers.get_list("x-request-id") == [response.headers["x-request-id"]]


async def test_an_answered_request_names_its_route_and_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    key = "k3y-of-16-letters"
    async with client(api_keys=(key,)) as http:
        await http.get("/schema.json", headers={"X-API-Key": key})
        await http.get("/files/a/b?signature=s3cr3t")
    answered = [vars(r)["fields"] for r in caplog.records if r.message == "http.answered"]
    assert [fields["route"] for fields in answered] == ["/schema.json", "/files/{key}"]
    assert [fields["key"] for fields in answered] == [sha256(key.encode()).hexdigest()[:8], None]
    assert "s3cr3t" not in str(answered)


async def test_metrics_have_a_key_of_their_own_where_one_is_set() -> None:
    async with client(api_keys=("k3y-of-one-caller",), metrics_key=METRICS_KEY) as http:
        require_error(await http.get("/metrics"), errors.Unauthorized)
        wrong = await http.get("/metrics", headers={"X-API-Key": "k3y-of-one-caller"})
        require_error(wrong, errors.Unauthorized)
        assert (await http.get("/metrics", headers={"X-API-Key": METRICS_KEY})).status_code == 200
        other = await http.get("/schema.json", headers={"X-API-Key": METRICS_KEY})
        require_error(other, errors.Unauthorized)


@pytest.mark.parametrize("path", ["/", "/livez", "/metrics", "/schema.json", "/nothing"])
async def test_a_page_that_rebinds_its_name_to_this_machine_gets_nothing(path: str) -> None:
    async with client(url="http://127.0.0.1:3000") as http:
        response = await http.get(path, headers={"Host": "evil.example"})
        require_error(response, errors.HostNotAllowed)


async def test_the_host_of_public_url_and_allowed_hosts_may_call() -> None:
    hosts = {"public_url": "https://shop.example/edit", "allowed_hosts": ("other.example",)}
    async with client(url="http://127.0.0.1:3000", **hosts) as http:
        for host in ("shop.example", "other.example:8080"):
            assert (await http.get("/livez", headers={"Host": host})).status_code == 200
