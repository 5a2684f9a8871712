"""Runs clients that come from other registries against the service: Node's, and LiteLLM's.

    PYTHONPATH=src:tests python tests/bench/clients.py [--keep FOLDER]

Each succeeds with one edit and meets one refusal. It needs node 20, npm and the package index; nothing
is installed outside a scratch folder. openai-python is tested by pytest, in every run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.servers.bentoml_service import SAMPLE, SAMPLE_URL, Service, serving

LITELLM = "litellm==1.110.2"
NODE = {
    "openai": "7.57.0",
    "ai": "7.0.173",
    "@ai-sdk/openai-compatible": "3.0.92",
    "openapi-typescript": "7.13.0",
    "openapi-fetch": "0.17.0",
    "typescript": "5.9.3",
}

LITELLM_CALLS = """
import sys, base64, litellm
url, photo = sys.argv[1:]
ask = dict(model="openai/gpt-image-1", api_base=url + "/v1", api_key="any", max_retries=0)
answer = litellm.image_edit(image=[open(photo, "rb")], prompt="make it warmer", seed=7, **ask)
assert base64.b64decode(answer.data[0].b64_json)[:4] == b"\\x89PNG"
try:
    litellm.image_edit(image=[open(photo, "rb")], prompt="", **ask)
except litellm.exceptions.BadRequestError as error:
    assert error.status_code == 400, error
else:
    raise AssertionError("a blank prompt is taken")
"""

OPENAI_NODE = """
import fs from "node:fs";
import assert from "node:assert";
import OpenAI from "openai";
const [url, photo] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "any", maxRetries: 0 });
const ask = (more) => client.images.edit({ image: fs.createReadStream(photo), prompt: "make it warmer", ...more });
const answer = await ask({ model: "gpt-image-1", seed: 7 });
assert(Buffer.from(answer.data[0].b64_json, "base64").subarray(1, 4).toString() === "PNG");
const kinds = [];
for await (const event of await ask({ stream: true, partial_images: 1 })) kinds.push(event.type);
assert.deepEqual(kinds, ["image_edit.partial_image", "image_edit.completed"]);
await assert.rejects(ask({ prompt: "" }), (error) => error.status === 400 && error.param === "prompt");
"""

AI_SDK = """
import fs from "node:fs";
import assert from "node:assert";
import { generateImage } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
const [url, photo] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "retouch", baseURL: url + "/v1", apiKey: "any" });
const ask = (text) => generateImage({
  model: provider.imageModel("any"),
  prompt: { text, images: [fs.readFileSync(photo)] },
  providerOptions: { retouch: { seed: 7 } },
  maxRetries: 0,
});
const { image } = await ask("make it warmer");
assert(Buffer.from(image.uint8Array).subarray(1, 4).toString() === "PNG");
await assert.rejects(ask("<|x|>"), (error) => error.statusCode === 400);
"""

TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";
declare const process: { argv: string[] };
const client = createClient<paths>({ baseUrl: process.argv[2] });
const image_url = process.argv[3];
const { data } = await client.POST("/edit", { body: { image_url, prompt: "make it warmer", seed: 7 } });
if (!data?.result.presigned_url.startsWith("http")) throw new Error("no link");
const { error } = await client.POST("/edit", { body: { image_url, prompt: "" } });
if (error?.error.details.code !== "invalid_request") throw new Error("a blank prompt is taken");
"""


def call(folder: Path, *command: str) -> None:
    done = subprocess.run(  # noqa: S603 - commands of this file
        command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]}\n{(done.stdout + done.stderr)[-3000:]}")


def report(name: str) -> None:
    sys.stdout.write(f"{name} edits and is refused\n")


def try_node(folder: Path, service: Service, photo: Path) -> None:
    call(folder, "npm", "init", "-y")
    packages = [f"{name}@{version}" for name, version in NODE.items()]
    call(folder, "npm", "install", "--no-audit", "--no-fund", *packages)
    for name, script in {"openai-node": OPENAI_NODE, "Vercel AI SDK": AI_SDK}.items():
        (folder / "client.mjs").write_text(script)
        call(folder, "node", "client.mjs", service.url, str(photo))
        report(name)
    (folder / "client.mts").write_text(TYPESCRIPT)
    url = f"{service.url}/openapi.json"
    call(folder, "npx", "openapi-typescript", url, "-o", "schema.d.ts")
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    call(folder, "npx", "tsc", *options, "client.mts")
    call(folder, "node", "client.mjs", service.url, SAMPLE_URL)
    report("openapi-typescript, in strict mode,")


def try_litellm(folder: Path, service: Service, photo: Path) -> None:
    call(folder, sys.executable, "-m", "venv", "litellm")
    call(folder, "litellm/bin/pip", "install", "-q", LITELLM)
    (folder / "client.py").write_text(LITELLM_CALLS)
    call(folder, "litellm/bin/python", "client.py", service.url, str(photo))
    report("LiteLLM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="a folder for what is installed")
    kept = parser.parse_args().keep
    folder = kept or Path(tempfile.mkdtemp(prefix="clients-"))
    folder.mkdir(parents=True, exist_ok=True)
    photo = folder / "photo.jpg"
    photo.write_bytes(SAMPLE)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as home, serving(Path(home), {}) as service:
        try_node(folder, service, photo)
        try_litellm(folder, service, photo)
    sys.stdout.write(f"{time.monotonic() - began_s:.0f} s\n")


if __name__ == "__main__":
    main()
