"""Edits with a built image in both its modes, locked down, and prints what it found.

`.ci/image` builds the image and runs this; PYTHONPATH=src:tests.
"""

import argparse
import io
import json
import re
import secrets
import subprocess
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from PIL import Image
from support.processes.containers import (
    BENTO,
    START_S,
    UID,
    Container,
    describe,
    list_layers,
    mounted,
    run,
)
from support.servers.bentoml_service import LiveOrigin, request
from support.servers.ceph_rgw import Rgw, free_ports
from support.servers.model_hub import COMMIT, Hub
from support.servers.runpod_api import FINAL, WORKER_KEY, Platform

from retouch.demo.processor import save_checkpoint

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "src/requirements.lock"
_WORKER = ["python", "-u", "-m", "retouch.worker"]
_MODEL_ID = "example/tiny"
_NEVER_SHIPPED = {"tests", ".env", ".git", ".ci"}
_LAYERS = {
    "ADD file": "the base: Debian and Python",
    "build-essential": "build-essential and git, which BentoML installs",
    "pip install uv": "uv, which BentoML installs packages with",
    "uv venv": "the virtual environment",
    "uv --directory": "requirements.txt, and what that needs",
    "COPY dir": "the bento",
    "COPY file": "the list of packages",
    "BAKE_MODEL": "the weights, if baked",
}
_SMALL_BYTES = 50_000


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201 - what this file is for


def print_description(image: str) -> None:
    """Print what operators rely on, and require it."""
    told = describe(image)
    config = told["Config"]
    assert config["User"] == f"{UID}:{UID}", config
    assert config["Cmd"] == _WORKER, config
    assert told["Healthcheck"]["Test"][0] == "CMD", told
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert variables["BENTOML_DO_NOT_TRACK"] == "True", variables
    assert variables["BENTOML_DISABLE_GPU_ALLOCATION"] == "1", variables
    say(f"user {config['User']}, entry {config['Entrypoint']}, command {config['Cmd']}")
    for name, text in sorted(config["Labels"].items()):
        say(f"label {name}={text}")
    for name, text in sorted(variables.items()):
        say(f"env {name}={text}")


def print_contents(image: str) -> None:
    """Print the size of layers and packages; require that nothing else is in the image."""
    layers = list_layers(image)
    say(f"{sum(layer['size'] for layer in layers) / 1e6:8.1f} MB in all")
    for layer in layers:
        if layer["size"] > _SMALL_BYTES:
            made_by = layer["CreatedBy"]
            text = next((text for mark, text in _LAYERS.items() if mark in made_by), made_by)
            say(f"{layer['size'] / 1e6:8.1f} MB {text}")
    with mounted(image) as root:
        listed = json.loads((root / "sbom.cdx.json").read_text())["components"]
        packages = next(root.glob("app/.venv/lib/python3*/site-packages"))
        sizes = {path.name: _measure(path) for path in packages.iterdir()}
        bento = root / BENTO.lstrip("/")
        shipped = [path.relative_to(bento) for path in bento.rglob("*") if path.is_file()]
    for name, size in sorted(sizes.items(), key=lambda pair: -pair[1])[:8]:
        say(f"{size / 1e6:12.1f} MB of it {name}")
    infos = {name for name in sizes if name.endswith(".dist-info")}
    assert len(listed) == len(infos), (len(listed), infos)
    locked = set(re.findall(r"^(\S+==\S+) ", LOCK.read_text(), re.MULTILINE))
    found = {_pin(one["name"], one["version"]) for one in listed}
    assert found <= locked, found - locked
    say(f"{len(listed)} packages, all of them in /sbom.cdx.json and in {LOCK.name}")
    wrong = [path for path in shipped if _NEVER_SHIPPED & set(path.parts)]
    assert not wrong, wrong
    say(f"{len(shipped)} files of the bento, none of {', '.join(sorted(_NEVER_SHIPPED))}")


def _pin(name: str, version: str) -> str:
    """Return a pin as the lock writes it: canonical name, no local version label."""
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version.partition('+')[0]}"


def _measure(path: Path) -> int:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)


def require_result(result: dict[str, Any]) -> dict[str, Any]:
    """Require that a result's link leads to the image it describes; return its `meta`."""
    meta: dict[str, Any] = result["meta"]
    answer = httpx.get(result["presigned_url"], trust_env=False)
    assert answer.status_code == httpx.codes.OK, answer
    with Image.open(io.BytesIO(answer.content)) as picture:
        picture.load()
        assert (picture.format, *picture.size) == ("PNG", meta["width"], meta["height"])
    say(f"edited by {meta['model']}, {meta['width']}x{meta['height']}, {len(answer.content)} bytes")
    say(f"{meta['timings_ms']['total']:.0f} ms, source cached: {meta['source']['cached']}")
    return meta


def print_locked_down(container: Container) -> None:
    """Require that the container works locked down, and print its limits."""
    container.require_locked_down()
    container.require_healthy()
    written = container.run("cd /tmp && find . -type f -not -path './store/objects/*'").split()
    assert container.end() == 0, container.output
    say(f"all as uid {UID}, no capability, root file system read-only; healthy; SIGTERM: status 0")
    say(f"files written under /tmp, objects aside: {' '.join(sorted(written)) or 'none'}")


def run_service(image: str, origin: LiveOrigin) -> dict[str, Any]:
    """Edit over HTTP, with the local store; return the result's `meta`."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    settings = {
        "BENTOML_HOST": "127.0.0.1",
        "PORT": str(port),
        "ALLOWED_SOURCE_HOSTS": origin.address,
    }
    with Container(image, "serve", settings=settings) as container:
        say(f"ready after {container.wait_until_ready(url):.1f} s")
        body = request(image_url=origin.offer("/photo.jpg"))
        answer = httpx.post(f"{url}/edit", json=body, timeout=START_S, trust_env=False)
        assert answer.status_code == httpx.codes.OK, answer.text
        meta = require_result(answer.json()["result"])
        print_locked_down(container)
    return meta


def run_worker(image: str, origin: LiveOrigin, rgw: Rgw) -> None:
    """Run a job of the platform, on the SDK's real loop and S3."""
    with Platform() as platform:
        settings = {**_build_settings(origin, rgw), **platform.environment}
        with Container(image, settings=settings) as container:
            job = platform.submit(request(image_url=origin.offer("/photo.jpg")))
            platform.wait_for(lambda: job.state in FINAL or not container.running)
            assert job.state == "COMPLETED", (job, container.output)
            require_result(job.output["result"])
            print_locked_down(container)
            told = [key for key in (rgw.secret_key, WORKER_KEY) if key in container.output]
            assert not told, container.output


def run_local_job(image: str, origin: LiveOrigin, rgw: Rgw) -> None:
    """Run one job without the platform."""
    body = json.dumps({"input": request(image_url=origin.offer("/photo.jpg"))})
    settings = _build_settings(origin, rgw)
    with Container(image, *_WORKER, "--test_input", body, settings=settings) as container:
        assert container.wait() == 0, container.output
        lines = [line for line in container.output.splitlines() if '"edit.finished"' in line]
        assert lines, container.output
        assert rgw.secret_key not in container.output
    say(f"status 0; {lines[-1]}")


def _build_settings(origin: LiveOrigin, rgw: Rgw) -> dict[str, str]:
    return {**rgw.settings(), "ALLOWED_SOURCE_HOSTS": origin.address}


def bake(base: str, image: str, folder: Path) -> None:
    """Build the image with weights from a hub that requires a token; the token must not stay in it."""
    from support.models.tiny import PRESET, build_tiny_pipeline

    token = f"hf_{secrets.token_hex(16)}"
    (folder / "token").write_text(token)
    (folder / "empty").mkdir()
    weights = folder / "weights"
    save_checkpoint(build_tiny_pipeline(), weights, preset=PRESET)
    with Hub(weights, model_id=_MODEL_ID, token=token) as hub:
        arguments = {
            "BENTO_IMAGE": base,
            "BAKE_MODEL": _MODEL_ID,
            "BAKE_REVISION": COMMIT,
            "HF_ENDPOINT": hub.url,
        }
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += ["--isolation=chroot", "--network=host", "--layers", "--format=docker"]
        options += [f"--secret=id=HF_TOKEN,src={folder / 'token'}", f"--tag={image}"]
        run("buildah", "bud", *options, f"--file={ROOT / 'Dockerfile'}", str(folder / "empty"))
        say(f"{hub.downloads} files from the hub")
    for text in (
        json.dumps(describe(image)),
        json.dumps(list_layers(image)),
        run("buildah", "inspect", "--type=image", image),
    ):
        assert token not in text
    with mounted(image) as root:
        found = subprocess.run(["grep", "-rlF", token, root], capture_output=True, check=False)  # noqa: S603, S607
        assert found.stdout == b"", found.stdout
    say("the token is in no file, variable or line of history")


def main() -> None:
    """Inspect the image, run it, and bake one with weights where the image of the bento is given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image")
    parser.add_argument("--bento", help="the image below it that BentoML built")
    options = parser.parse_args()
    say("\n-- what the image says of itself")
    print_description(options.image)
    say("\n-- what is in it")
    print_contents(options.image)
    with ExitStack() as exits:
        origin = exits.enter_context(LiveOrigin())
        folder = Path(exits.enter_context(TemporaryDirectory()))
        (folder / "rgw").mkdir()
        rgw = exits.enter_context(Rgw(folder / "rgw"))
        say("\n-- the service")
        run_service(options.image, origin)
        say("\n-- the worker, on the SDK's loop")
        run_worker(options.image, origin, rgw)
        say("\n-- the worker, one local job")
        run_local_job(options.image, origin, rgw)
        if options.bento:
            say("\n-- with baked weights, the service")
            bake(options.bento, f"{options.image}-baked", folder)
            meta = run_service(f"{options.image}-baked", origin)
            assert meta["revision"], meta


if __name__ == "__main__":
    main()
