"""OpenAI's images API as programs that are not openai-python speak it, over an editor of fakes."""

import base64
import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from support.fakes import PNG, URL, House, picture
from support.web import client, open_host, settings

from retouch.schema import ImageOptions

DATA_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/nothing"])
async def test_every_error_below_v1_has_openais_shape(path: str) -> None:
    async with client() as http:
        response = await http.get(path)
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b'{"prompt": "x", "image": 1}', b'{"prompt": "x", "images": [{"file_id": "f"}]}'],
)
async def test_json_that_is_no_request_is_refused(body: bytes) -> None:
    async with client() as http:
        headers = {"Content-Type": "application/json"}
        response = await http.post("/v1/images/edits", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] in {"malformed_body", "invalid_request"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partial_images", False),
        ("partial_images", "2"),
        ("stream", 1),
        ("output_compression", "9"),
    ],
)
async def test_a_field_of_another_json_type_is_refused(name: str, value: object) -> None:
    async with client() as http:
        given = {"prompt": "x", "images": [{"image_url": URL}], name: value}
        response = await http.post("/v1/images/edits", json=given)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name


async def test_fields_that_are_null_are_as_unset() -> None:
    async with client(host=open_host(settings(max_image_bytes=4096), House())) as http:
        unset = dict.fromkeys(ImageOptions.model_fields)
        given = {"prompt": "x", "image": DATA_URL, **unset, "n": None}
        response = await http.post("/v1/images/edits", json=given)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "fields",
    [
        [("other[]", "a"), ("other[]", "b"), ("model", "a"), ("model", "b")],
        [("output_compression", "null"), ("partial_images", "2.0"), ("stream", "False")],
        [("image_url", ""), ("mask", " "), ("webhook", "")],
    ],
)
async def test_a_form_has_numbers_as_texts_and_other_fields_as_often_as_it_likes(
    fields: list[tuple[str, str]],
) -> None:
    parts = [("image", ("a.png", PNG)), ("prompt", (None, "x"))]
    async with client(host=open_host(settings(max_image_bytes=4096), House())) as http:
        parts += [(name, (None, text)) for name, text in fields]
        response = await http.post("/v1/images/edits", files=parts)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": []}, "image: Field required"),
        ({"image": {"file_id": "file-1"}}, 'image: send {"image_url": "https://… or data:…"}'),
    ],
)
async def test_advice_on_images_can_be_followed(given: dict[str, Any], message: str) -> None:
    async with client() as http:
        response = await http.post("/v1/images/edits", json={"prompt": "x", **given})
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize("is_form", [True, False])
async def test_the_fields_of_our_own_request_are_taken_too(is_form: bool) -> None:
    house = House()
    mask = f"data:image/png;base64,{base64.b64encode(clear_left_half()).decode()}"
    asked = {"prompt": "warmer", "image_url": URL, "mask_url": mask, "num_images": 2}
    sent = {name: (None, str(value)) for name, value in asked.items()}
    async with client(host=open_host(settings(max_image_bytes=4096), house)) as http:
        body: dict[str, Any] = {"files": sent} if is_form else {"json": asked}
        response = await http.post("/v1/images/edits", **body)
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 2
    assert house.engine.masks[0] is not None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (("webhook", (None, "https://a.example/")), "webhook: is not taken: begin a job by"),
        (("image_url", (None, URL)), "image: fake takes 1 image, not 2"),
        (("image_urls[]", (None, URL)), "image: fake takes 1 image, not 2"),
        (("image2", ("b.png", PNG)), "image2: takes no file: send it as image"),
        (("n", ("n", b"2", "text/plain")), "n: takes no file: send it as image"),
        (("size", ("blob", b'"99x9"', "application/json")), "size: "),
        (("loras[0][name]", (None, "x")), "loras: x is not loaded"),
        (("loras[]", (None, '{"name": "x"}')), "loras: x is not loaded"),
    ],
)
async def test_what_changes_an_edit_is_never_ignored(part: tuple[str, Any], message: str) -> None:
    parts = [("image", ("a.png", PNG)), ("prompt", (None, "x")), part]
    async with client(host=open_host(settings(max_image_bytes=4096), House())) as http:
        response = await http.post("/v1/images/edits", files=parts)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(message)


async def test_usage_counts_every_image() -> None:
    house = House()
    house.engine.info = replace(house.engine.info, max_areas_px=(1 << 22,) * 3)
    async with client(host=open_host(settings(max_image_bytes=4096), house)) as http:
        given = {"prompt": "x", "images": [{"image_url": DATA_URL}] * 3}
        answer = (await http.post("/v1/images/edits", json=given)).json()
    of_one = house.engine.info.preset.area_px // 256
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == 3 * of_one


async def test_a_form_may_name_a_url_as_vllm_omni_and_sglang_do() -> None:
    house = House()
    async with client(host=open_host(settings(max_image_bytes=4096), house)) as http:
        fields = {"prompt": (None, "warmer"), "url": (None, URL)}
        response = await http.post("/v1/images/edits", files=fields)
    assert response.status_code == 200, response.text
    assert len(house.engine.edits) == 1


async def test_a_form_may_name_its_image_as_any_client_does() -> None:
    for name in ("image", "image[]", "image[0]", "images[]"):
        house = House()
        async with client(host=open_host(settings(max_image_bytes=4096), house)) as http:
            response = await http.post(
                "/v1/images/edits",
                files={name: ("upload", picture("red"), "application/octet-stream")},
                data={"prompt": "warmer", "n": "1", "model": "any", "stream": "false", "size": ""},
            )
        assert response.status_code == 200, response.text
        assert json.loads(response.text)["data"][0]["b64_json"]


def clear_left_half() -> bytes:
    mask = Image.new("LA", (64, 48), (0, 255))
    mask.paste((0, 0), (0, 0, 32, 48))
    buffer = BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "fields", "answered"),
    [
        (
            ["image[]"],
            {
                "n": "1",
                "size": "1024x1024",
                "background": "auto",
                "input_fidelity": "low",
                "output_compression": "100",  # with no format: a PNG has no use for it
                "quality": "auto",
            },
            "b64_json",
        ),
        (["image"], {"n": "1", "size": "256x256", "response_format": "url"}, "url"),
        (
            ["image", "mask"],
            {"quality": "xhigh", "background": "opaque", "moderation": "low", "seed": "0"},
            "b64_json",
        ),
        ([], {"n": 1, "size": "1024x1024", "images": [{"image_url": DATA_URL}]}, "b64_json"),
        (
            [],
            {
                "n": 1,
                "response_format": "url",
                "aspect_ratio": "16:9",
                "resolution": "1k",
                "image": {"url": DATA_URL, "type": "image_url"},
            },
            "url",
        ),
    ],
    ids=["n8n", "n8n with dall-e-2", "ComfyUI", "OpenClaw", "the AI SDK's xAI provider"],
)
async def test_programs_send_fields_of_their_own(
    files: list[str], fields: dict[str, Any], answered: str
) -> None:
    house = House()
    asked = {"model": "gpt-image-1", "prompt": "warmer", **fields}
    pictures = {name: ("a.png", clear_left_half() if name == "mask" else PNG) for name in files}
    async with client(host=open_host(settings(max_image_bytes=4096), house)) as http:
        response = await http.post(
            "/v1/images/edits",
            **({"files": pictures, "data": asked} if files else {"json": asked}),
        )
    assert response.status_code == 200, response.text
    assert response.json()["data"][0][answered]
    assert (house.engine.masks[0] is not None) == ("mask" in files)
