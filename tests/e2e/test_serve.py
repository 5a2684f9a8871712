"""An edit over HTTP: its answer and its link, with S3 and with the local store."""

import re
import time
from collections.abc import Iterator
from io import BytesIO

import httpx
import pytest
from PIL import Image
from support.servers.bentoml_service import SAMPLE, LiveOrigin, Service, opened

from retouch.schema import EXAMPLE

pytestmark = pytest.mark.e2e

RESULT = {
    "presigned_url",
    "bucket",
    "object_key",
    "content_type",
    "expires_in",
    "expires_at",
    "meta",
}
META = {
    "request_id",
    "job_id",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "width",
    "height",
    "model",
    "revision",
    "dtype",
    "memory_plan",
    "attention",
    "quantization",
    "compiled",
    "profile",
    "loras",
    "geometry",
    "strength",
    "source",
    "sources",
    "timings_ms",
    "reused",
    "notes",
}
PHASES = {
    "queue",
    "fetch",
    "source_decode",
    "prepare",
    "condition",
    "denoise",
    "vae_decode",
    "encode",
    "store",
    "total",
}


@pytest.mark.parametrize(
    ("output_format", "content_type"),
    [
        ("png", "image/png"),
        ("jpeg", "image/jpeg"),
        ("jpg", "image/jpeg"),
        ("webp", "image/webp"),
        ("avif", "image/avif"),
    ],
)
def test_the_link_of_an_edit_opens_as_the_requested_format(
    either: Service, output_format: str, content_type: str
) -> None:
    response = either.ask(output_format=output_format, output_quality=80, width=176, height=112)
    assert response.status_code == 200, response.text
    assert set(response.json()) == {"status", "result"}
    assert response.json()["status"] == "success"
    result = response.json()["result"]
    assert set(result) == RESULT
    assert set(result["meta"]) == META
    assert set(result["meta"]["timings_ms"]) == PHASES
    assert result["content_type"] == content_type
    assert result["expires_in"] == 4
    assert result["meta"]["source"]["bytes"] == len(SAMPLE)
    assert response.headers["x-request-id"] == result["meta"]["request_id"]
    link = opened(result["presigned_url"])
    assert (link.status_code, link.headers["content-type"]) == (200, content_type)
    assert result["object_key"].rpartition("/")[2] in link.headers["content-disposition"]
    image = Image.open(BytesIO(link.content))
    assert image.format == content_type.removeprefix("image/").upper()
    assert image.size == (176, 112) == (result["meta"]["width"], result["meta"]["height"])


def test_the_documented_example_runs_unchanged(either: Service, origin: LiveOrigin) -> None:
    result = either.edit(**{**EXAMPLE, "image_url": origin.offer("/image.jpg")})
    meta = result["meta"]
    for name in ("seed", "num_inference_steps", "guidance_scale", "scheduler"):
        assert meta[name] == EXAMPLE[name]
    assert (result["content_type"], meta["source"]["format"]) == ("image/png", "jpeg")
    assert "png is lossless: output_quality is ignored" in meta["notes"]


def test_the_same_seed_gives_the_same_bytes(local: Service, s3: Service) -> None:
    links = [service.edit(seed=7)["presigned_url"] for service in (local, s3)]
    assert links[0] != links[1]
    assert opened(links[0]).content == opened(links[1]).content


def test_the_callers_request_id_is_echoed_and_is_in_no_object_key(local: Service) -> None:
    response = local.ask(headers={"X-Request-ID": "caller-1"})
    result = response.json()["result"]
    assert response.headers["x-request-id"] == result["meta"]["request_id"] == "caller-1"
    assert "caller-1" not in result["object_key"]


# --- links -------------------------------------------------------------------------------------


def spoilt(url: str, other_key: str) -> Iterator[str]:
    """Forge a link in every way that its text allows."""
    key = httpx.URL(url).path.rpartition("/")[2]
    other = other_key.rpartition("/")[2]
    yield url.replace(key, other)
    yield re.sub("(?i)(signature=)(.)", lambda part: part[1] + "10"[part[2] == "1"], url)
    yield re.sub(r"(?i)(expires=)(\d+)", r"\g<1>1\2", url)
    yield url.partition("?")[0]


def test_a_forged_link_does_not_open(either: Service) -> None:
    url, other_key = either.edit()["presigned_url"], either.edit()["object_key"]
    forged = list(spoilt(url, other_key))
    assert len({url, *forged}) == 5
    assert [opened(link).status_code for link in forged] == [403] * 4


@pytest.mark.parametrize("either", ["local", "s3"], indirect=True)
def test_a_link_opens_until_it_expires(either: Service) -> None:
    url = either.edit()["presigned_url"]
    assert opened(url).status_code == 200
    time.sleep(5)
    assert opened(url).status_code == 403
