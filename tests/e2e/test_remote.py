"""A service whose engine is another one: the same answers, pictures and errors as from its own."""

from typing import Any

import httpx
import pytest
from support.servers.bentoml_service import (
    ALL_DAY,
    SAMPLE_URL,
    LiveOrigin,
    Service,
    opened,
    require_error,
)
from support.servers.origin import answer

pytestmark = pytest.mark.e2e
_OF_THE_ENGINE = {"memory_plan", "quantization"}
_OF_THE_ATTEMPT = {"request_id", "job_id", "timings_ms"}


def shared(meta: dict[str, Any]) -> dict[str, Any]:
    return {name: meta[name] for name in meta.keys() - _OF_THE_ENGINE - _OF_THE_ATTEMPT}


@pytest.mark.parametrize(
    "fields",
    [
        {"num_inference_steps": 3, "guidance_scale": 4.0, "width": 176, "height": 112},
        {"scheduler": "UniPC", "strength": 0.6, "negative_prompt": "blur"},
    ],
    ids=["size", "strength"],
)
def test_picture_and_meta_are_those_of_the_engine_s_own_service(
    local: Service, remote: Service, fields: dict[str, Any]
) -> None:
    ours, theirs = (service.edit(seed=5, **fields) for service in (remote, local))
    assert shared(ours["meta"]) == shared(theirs["meta"])
    assert ours["meta"]["memory_plan"] == "remote"
    assert opened(ours["presigned_url"]).content == opened(theirs["presigned_url"]).content
    assert ours["presigned_url"].startswith(remote.url)


def test_sources_and_results_are_reused_without_asking_the_engine(
    local: Service, remote: Service, origin: LiveOrigin
) -> None:
    url = origin.offer("/remote-cached.jpg")
    first = remote.edit(image_url=url, seed=6)
    asked = len(local.events("http.answered", route="/v1/images/edits"))
    again = remote.edit(image_url=url, seed=6)
    assert (first["meta"]["reused"], again["meta"]["reused"]) == (False, True)
    assert again["meta"]["source"]["cached"]
    assert origin.count("/remote-cached.jpg") == 1
    assert len(local.events("http.answered", route="/v1/images/edits")) == asked


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"prompt": " "}, 400),
        ({"loras": [{"name": "none"}]}, 400),
        ({"profile": "none"}, 400),
        ({"image_urls": [SAMPLE_URL] * 4, "image_url": None}, 400),
        ({"mask_url": SAMPLE_URL}, 200),
    ],
)
def test_an_edit_is_refused_in_the_same_words(
    local: Service, remote: Service, fields: dict[str, Any], status: int
) -> None:
    ours, theirs = (service.ask(**fields) for service in (remote, local))
    assert (ours.status_code, theirs.status_code) == (status, status), ours.text
    if status != httpx.codes.OK:
        for body in (ours.json(), theirs.json()):
            del body["error"]["details"]["request_id"]
        assert ours.json()["error"]["message"] == theirs.json()["error"]["message"]


def test_an_origin_that_refuses_is_told_as_ever(remote: Service, origin: LiveOrigin) -> None:
    response = remote.ask(image_url=origin.offer("/remote-403", answer(status=403)))
    require_error(response, 502, "DownloadFailed", "source_refused")


def test_what_is_loaded_is_told_from_the_engine(local: Service, remote: Service) -> None:
    ours, theirs = (service.client.get("/info").json() for service in (remote, local))
    assert ours | {"memory_plan": "", "max_image_bytes": 0} == theirs | {
        "memory_plan": "",
        "max_image_bytes": 0,
    }
    assert remote.client.get("/v1/models").json() == local.client.get("/v1/models").json()


def test_a_caller_who_leaves_frees_the_engine(local: Service, remote: Service) -> None:
    with remote.stream(**ALL_DAY) as events:
        events.skip_to("progress", stage="denoise", step=0)
        local.wait_for(lambda: "retouch_edits_running 1" in metrics(local))
    local.wait_for(lambda: "retouch_edits_running 0" in metrics(local))
    remote.edit()


def metrics(service: Service) -> str:
    return service.client.get("/metrics").text
