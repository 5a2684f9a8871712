"""Measure the demo checkpoint on photographs outside its training set, in dB to the exact edit.

    PYTHONPATH=src:tests python tests/bench/demo_quality.py [--part PART ...] [--json FILE] [--card FILE]

Each result is listed with the untouched photo and with the autoencoder alone, which is the limit. The
photographs come from the scikit-image and scikit-learn wheels, which pip downloads. --json updates the
measured parts in FILE, so that parts can run alone. --card writes all of FILE's tables between the
marks of a model card. The exit status is 1 if a bar is missed.
"""

import argparse
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from demo_parts import PARTS
from demo_tables import Table, as_markdown, fill_card
from PIL import Image
from support.demo import measures

import retouch.demo
from retouch.demo import autoencoder, edits
from retouch.demo.edits import Change
from retouch.editing.ports import EditParams, run_edit
from retouch.engine.checkpoint import find, load

SHIPPED = Path(retouch.demo.__file__).parent / "checkpoint"
WHEELS = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
EDGE_PX = 512
SEED = 3


def fetch_photos(folder: Path) -> Path:
    """Unpack the photographs from their wheels, which pip downloads if they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS:
        if not list(folder.glob(f"{wheel.split('==')[0].replace('-', '_')}-*.whl")):
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            only = ["--only-binary=:all:", "--python-version=3.11", "-d", str(folder), wheel]
            subprocess.run([*pip, *only], check=True)  # noqa: S603
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as packed:
            for package, name in measures.HELD_OUT.values():
                if f"{package}/{name}" in packed.namelist():
                    packed.extract(f"{package}/{name}", folder)
    return folder


class Bench:
    """The engine, the autoencoder alone, and the photographs."""

    def __init__(self, folder: Path, photos: Path, *, steps: int, only: Sequence[str]) -> None:
        settings = find.CheckpointSettings(model_id=str(folder))
        self._folder, self._root = folder, photos
        self._engine = load.load(settings)
        self.steps = steps or self._engine.info.preset.steps
        self.only = only
        self.photos = {
            name: measures.to_pixels(image)
            for name, image in measures.held_out_photos(photos, EDGE_PX).items()
        }
        self.edited, self._edited_s = 0, 0.0

    @cached_property
    def _vae(self) -> Any:
        loader: Any = diffusers.AutoencoderKLQwenImage
        return loader.from_pretrained(self._folder / "vae", torch_dtype=torch.float32)

    def photo(self, name: str, width_px: int, height_px: int) -> measures.Pixels:
        """Return a photograph at another size."""
        package, path = measures.HELD_OUT[name]
        return measures.to_pixels(
            measures.crop_to(Image.open(self._root / package / path), width_px, height_px)
        )

    def edit(
        self,
        photo: measures.Pixels,
        prompt: str,
        *,
        seed: int = SEED,
        steps: int = 0,
        guidance: float = 1.0,
    ) -> measures.Pixels:
        """Edit a photograph at its own size, as the service does."""
        height_px, width_px = photo.shape[:2]
        work = EditParams(
            prompt=prompt,
            negative_prompt=" ",
            seed=seed,
            steps=steps or self.steps,
            guidance_scale=guidance,
            scheduler="Euler",
            width_px=width_px,
            height_px=height_px,
        )
        image = Image.fromarray((photo * 255).round().astype(np.uint8))
        began_s = time.perf_counter()
        result = run_edit(self._engine, [image], work)[0]
        self._edited_s += time.perf_counter() - began_s
        self.edited += 1
        line = f"{self.edited} edits, {self._edited_s / self.edited:.1f} s each: {prompt}"
        sys.stderr.write(f"\r{line[:100]:<100}")
        sys.stderr.flush()
        return measures.to_pixels(result)

    @torch.no_grad()
    def limit(self, photo: measures.Pixels) -> measures.Pixels:
        """Return the autoencoder's reconstruction of a picture."""
        latents = autoencoder.encode(self._vae, measures.to_tensor(photo) * 2 - 1)
        image = autoencoder.decode(self._vae, latents) / 2 + 0.5
        return measures.from_tensor(image.clamp(0, 1))

    def exact(self, photo: measures.Pixels, changes: Sequence[Change]) -> measures.Pixels:
        """Apply the exact edit."""
        torch.manual_seed(0)
        return measures.from_tensor(edits.apply(measures.to_tensor(photo), changes))


def _ordered(tables: dict[str, Any]) -> dict[str, Any]:
    return {part: tables[part] for part in PARTS if part in tables}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--photos", type=Path, default=Path(".demo/held-out"), help="their folder")
    parser.add_argument(
        "--part", nargs="*", choices=PARTS, default=list(PARTS), help="default: all"
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of edits, for the part edits")
    parser.add_argument("--steps", type=int, default=0, help="default: the checkpoint's")
    parser.add_argument("--json", type=Path, help="file of the tables")
    parser.add_argument("--card", type=Path, help="model card to update")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen parts and print their tables."""
    options = _parse(argv)
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    ran: dict[str, Any] = {}
    if options.part:
        photos = fetch_photos(options.photos)
        bench = Bench(options.checkpoint, photos, steps=options.steps, only=options.only)
    for part in options.part:
        table: Table = PARTS[part](bench)
        ran[part] = table.as_json()
        sys.stderr.write("\n")
        sys.stdout.write(as_markdown({part: ran[part]}) + "\n")
        sys.stdout.flush()
        if options.json:  # read again: another part may run in parallel
            kept = json.loads(options.json.read_text()) if options.json.exists() else {}
            kept |= {part: ran[part]}
            options.json.write_text(json.dumps(kept, indent=1) + "\n")
    if options.card:
        options.card.write_text(
            fill_card(options.card.read_text(), as_markdown(_ordered(kept | ran)))
        )
    return 0 if all(met for table in ran.values() for met, _ in table["verdicts"]) else 1


if __name__ == "__main__":
    sys.exit(main())
