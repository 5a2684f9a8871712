"""Files sent by the clients that people have: curl's lines of the README, openai-python, LiteLLM."""

import asyncio
import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest
from PIL import Image
from support.servers.bentoml_service import ROOT, SAMPLE, Service, serving
from support.servers.origin import until

pytestmark = pytest.mark.e2e
README = (ROOT / "README.md").read_text()
DOCS = (ROOT / "DOCS.md").read_text()
MIB = 1 << 20


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo beside what else README's and DOCS' lines name."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("photo.jpg", "person.jpg", "dress.jpg"):
        (folder / name).write_bytes(SAMPLE)
    mask = Image.new("L", Image.open(BytesIO(SAMPLE)).size)
    mask.paste(255, (0, 0, 200, 200))
    mask.save(folder / "mask.png")
    return folder / "photo.jpg"


@pytest.fixture(scope="module")
def client(local: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key="any", max_retries=0) as speaking:
        yield speaking


def run_line(line: str, service: Service, folder: Path) -> str:
    """Run a line of the README against this service, and return what it printed."""
    done = subprocess.run(  # noqa: S602 - as a reader of the README does
        line.replace("http://127.0.0.1:3000", service.url),
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


LINES = dict.fromkeys(
    re.findall(r"curl [^`\n]*127\.0\.0\.1:3000/[^`\n]* -F [^`\n]*", README + DOCS)
)


@pytest.mark.parametrize("line", LINES)
def test_every_line_that_sends_a_file_by_curl_edits_or_is_refused(
    strict: Service, photo: Path, line: str
) -> None:
    line += f" -H 'X-API-Key: {strict.client.headers['X-API-Key']}'"
    told = run_line(line, strict, photo.parent)
    assert any(sign in told for sign in ('"status":"success"', '"b64_json"', '"state":')), told
    blank = re.sub("prompt=[^']*", "prompt=", line)
    assert '"invalid_request"' in run_line(blank, strict, photo.parent)


def test_curl_sends_the_first_request_of_the_readme(local: Service) -> None:
    found = re.search(r"^echo '.*\n  curl .*$", README, re.MULTILINE)
    assert found
    assert '"status":"success"' in run_line(found[0], local, ROOT)
    assert '"image_url"' in run_line(found[0].replace("image_url", "url"), local, ROOT)


def run_program(text: str, *arguments: str, folder: Path) -> None:
    """Run Python in a process of its own: what a client's import warns of or contacts stays there."""
    done = subprocess.run(  # noqa: S603 - our own interpreter and text
        [sys.executable, "-W", "ignore", "-c", text, *arguments],
        cwd=folder,
        env={"HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_program_of_the_docs_for_openai_python_edits(local: Service, photo: Path) -> None:
    programs = r"^```python\n(import base64\n\nfrom openai.*?)^```"
    [program] = re.findall(programs, DOCS, re.MULTILINE | re.DOTALL)
    run_program(program.replace("http://127.0.0.1:3000", local.url), folder=photo.parent)
    assert photo.with_name("out.png").read_bytes()[1:4] == b"PNG"


_WITH_LITELLM = """
import sys, base64, litellm
url, key = sys.argv[1:]
def edit(prompt, key=key):
    return litellm.image_edit(
        image=[open("photo.jpg", "rb"), open("photo.jpg", "rb")],
        prompt=prompt, model="openai/gpt-image-1", api_base=url, api_key=key, max_retries=0, seed=7,
    )
answer = edit("as in the second")
assert base64.b64decode(answer.data[0].b64_json)[:4] == b"\\x89PNG"
for refused, error in (
    (lambda: edit(""), litellm.exceptions.BadRequestError),
    (lambda: edit("no", key="wrong"), litellm.exceptions.AuthenticationError),
):
    try:
        refused()
    except error:
        continue
    raise AssertionError(error)
"""


def test_litellm_sends_several_images_and_is_refused(strict: Service, photo: Path) -> None:
    key = strict.client.headers["X-API-Key"]
    run_program(_WITH_LITELLM, f"{strict.url}/v1", key, folder=photo.parent)


def test_openai_python_sends_a_file_and_streams(client: openai.OpenAI, photo: Path) -> None:
    ask: dict[str, Any] = {"image": photo, "prompt": "make it warmer", "size": "128x128"}
    answer = client.images.edit(**ask, extra_body={"num_inference_steps": 3})
    assert answer.data is not None
    image = Image.open(BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    assert (image.format, image.size) == ("PNG", (128, 128))
    stream = client.images.edit(
        **ask, stream=True, partial_images=2, extra_body={"num_inference_steps": 3}
    )
    kinds = [event.type for event in stream]
    assert kinds == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


def test_openai_python_sends_several_images_with_a_mask(strict: Service) -> None:
    clear = Image.new("RGBA", (128, 128), "black")
    clear.paste((0, 0, 0, 0), (32, 32, 96, 96))  # transparent: edit here
    files = []
    for picture in (Image.new("RGB", (128, 128), "teal"), Image.new("RGB", (96, 96), "red"), clear):
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        files.append(buffer.getvalue())
    key = strict.client.headers["X-API-Key"]
    with openai.OpenAI(base_url=f"{strict.url}/v1", api_key=key, max_retries=0) as client:
        answer = client.images.edit(image=files[:2], mask=files[2], prompt="as in the second")
        assert answer.data is not None
        image = Image.open(BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
        pixels = np.asarray(image.convert("RGB"))
        assert (pixels[:16, :16] == (0, 128, 128)).all()  # the first image's own
        assert (pixels[48:80, 48:80] != (0, 128, 128)).any()
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(image=files[:2] * 2, prompt="too many")
        assert caught.value.param == "image"
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(image=[files[0], b"no picture"], prompt="the second is broken")
        assert caught.value.param == "image[1]"


def test_openai_python_is_refused_as_openai_would(client: openai.OpenAI, photo: Path) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=photo, prompt="make it warmer", size="17x17")
    assert (caught.value.param, caught.value.code) == ("size", "invalid_request")


async def test_openai_python_tries_again_while_the_queue_is_full(tmp_path: Path) -> None:
    with serving(tmp_path, {"MAX_QUEUE": "0"}) as service:
        client = openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=9)
        async with client:
            with service.busy():
                edit = client.images.edit(image=SAMPLE, prompt="make it warmer")
                asked = asyncio.create_task(edit)
                refused = {"route": "/v1/images/edits", "status": 429}
                await until(lambda: service.events("http.answered", **refused), within_s=60)
            answer = await asked
    assert answer.data
    assert answer.data[0].b64_json


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("image", {"n": "1", "response_format": "b64_json"}),
        ("image[]", {"quality": "auto", "size": "auto"}),
    ],
    ids=["Open WebUI", "LibreChat"],
)
def test_chat_servers_send_files_and_get_base64(
    local: Service, name: str, fields: dict[str, str]
) -> None:
    answer, refusal = [
        local.client.post(
            "/v1/images/edits?api-version=2025-04-01",
            files=[(name, ("photo.png", SAMPLE, "image/png"))],  # they name the type themselves
            data={"model": "gpt-image-1", "prompt": prompt, **fields},
            headers={"Authorization": "Bearer any"},
        )
        for prompt in ("make it warmer", "<|im_end|>")
    ]
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert Image.open(BytesIO(file)).format == "PNG"
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "prompt")


def test_a_large_upload_is_held_once(strict: Service) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2880, 2880, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    body = buffer.getvalue()
    del noise, buffer
    assert 23 * MIB < len(body) < 25 * MIB
    [worker] = psutil.Process(strict.pid).children()
    strict.edit()  # what is loaded once
    before = worker.memory_info().rss
    Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # resets VmHWM
    response = strict.client.post(
        "/edit", files={"image": body}, data={"prompt": "make it warmer", "output_format": "jpeg"}
    )
    assert response.status_code == 200, response.text
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) << 10
    decoded_bytes = 4 * 4_194_304  # as Pillow keeps RGB
    held = (peak - before - decoded_bytes) / len(body)
    assert held <= 1.3, held
