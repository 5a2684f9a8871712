"""Ask a service for duotones of the held-out photographs, with the LoRA that ships.

    PYTHONPATH=src:tests python tests/bench/demo_adapter.py [--photos FOLDER] [--sheet FILE]

Each photograph is edited by the adapter's name, by a URL, at scale 0 and without it. The exact edit and
the untouched photograph are what the result is compared with. --sheet writes the pictures: the photo,
the result, the exact edit. The exit status is 1 if a bar is missed.
"""

import argparse
import base64
import hashlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from demo_quality import EDGE_PX, SEED, fetch_photos
from PIL import Image
from support.demo import measures
from support.servers.bentoml_service import LiveOrigin, Service, opened, serving
from support.servers.origin import answer

from retouch.demo import ADAPTERS_DIR, edits
from retouch.demo.edits import Change

NAME, PROMPT = "duotone", "make it a duotone"
LORA = ADAPTERS_DIR / f"{NAME}.safetensors"
GAIN_DB, LEAST_PHOTOS = 6.0, 4


def ask(service: Service, photo: Image.Image, loras: Sequence[dict[str, Any]]) -> bytes:
    """Return the file that `POST /edit` makes."""
    file = io.BytesIO()
    photo.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    result = service.edit(
        image_url=url,
        prompt=PROMPT,
        seed=SEED,
        output_format="png",
        loras=list(loras),
        width=EDGE_PX,
        height=EDGE_PX,
        cache="no-store",
    )
    return opened(result["presigned_url"]).content


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each photograph, and what was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, default=Path(".demo/held-out"), help="their folder")
    parser.add_argument("--sheet", type=Path, help="PNG of the pictures")
    options = parser.parse_args(argv)
    photos = measures.held_out_photos(fetch_photos(options.photos), EDGE_PX)
    sha256 = hashlib.sha256(LORA.read_bytes()).hexdigest()
    made, same, rows = 0, 0, []
    sys.stdout.write(
        "| photo | result | untouched | scale 0 | by URL |\n| --- | --- | --- | --- | --- |\n"
    )
    with tempfile.TemporaryDirectory() as folder, LiveOrigin() as origin:
        settings = {
            "MODEL_ID": "",
            "OMP_NUM_THREADS": "2",
            "LORAS": f"{NAME}={LORA}",
            "ALLOW_LORA_URLS": "true",
            "REUSE_RESULTS": "false",  # equal bytes are to come from equal edits
            "ALLOWED_SOURCE_HOSTS": origin.address,
        }
        url = origin.offer("/lora", answer(LORA.read_bytes()))
        with serving(Path(folder), settings) as service:
            for name, photo in photos.items():
                result = ask(service, photo, [{"name": NAME}])
                bare = ask(service, photo, [])
                is_bare = ask(service, photo, [{"name": NAME, "scale": 0}]) == bare
                is_same = ask(service, photo, [{"url": url, "sha256": sha256}]) == result
                before = measures.to_pixels(photo)
                after = measures.to_pixels(Image.open(io.BytesIO(result)))
                exact = measures.from_tensor(
                    edits.apply(measures.to_tensor(before), [Change(NAME)])
                )
                far, near = measures.psnr_db(before, exact), measures.psnr_db(after, exact)
                made += near - far >= GAIN_DB
                same += is_bare and is_same
                rows.append((before, after, exact))
                sys.stdout.write(
                    f"| {name} | {near:.1f} dB | {far:.1f} dB | {is_bare} | {is_same} |\n"
                )
        fetched = origin.count("/lora")
    if options.sheet:
        pictures = [torch.cat([measures.to_tensor(one) for one in row], 3) for row in rows]
        sheet = measures.from_tensor(torch.cat(pictures, 2))
        Image.fromarray((sheet.clip(0, 1) * 255).round().astype("uint8")).save(options.sheet)
    sys.stdout.write(
        f"\nmade on {made} of {len(photos)}, at least {GAIN_DB:g} dB closer: {LEAST_PHOTOS} needed\n"
    )
    sys.stdout.write(
        f"scale 0 and the URL give the same bytes on {same} of {len(photos)}; {fetched} download\n"
    )
    return 0 if made >= LEAST_PHOTOS and same == len(photos) and fetched == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
