"""Make the picture of the README and the page: a photograph and what the demo checkpoint makes of it.

    PYTHONPATH=src python tests/bench/demo_strips.py [--out FILE]

The photograph is the page's sample, scikit-image's coffee, which training never sees. Nothing is
picked: one seed, one try an instruction.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import retouch.demo
import retouch.web
from retouch.editing.params import fit_size
from retouch.editing.ports import EditParams, run_edit
from retouch.engine.checkpoint import find, load

SHIPPED = Path(retouch.demo.__file__).parent / "checkpoint"
STATIC = Path(retouch.web.__file__).parent / "static"
PROMPTS = (
    "make it warmer and add a subtle vignette",
    "make colors warmer and add gentle film grain",
    "make it cooler",
    "convert to black and white",
    "make it sepia and add a vignette",
    "invert the colors",
    "strongly increase the contrast",
)
SEED = 3
COLUMNS = 4
TILE_PX = (296, 197)
GAP_PX = 5
LABEL_PX = 24
PAPER, INK = "white", "#222222"
MAX_BYTES = 150_000


def edit_all(photo: Image.Image, folder: Path, steps: int) -> list[tuple[str, Image.Image]]:
    """Return the photograph and its edits, each with a label."""
    settings = find.CheckpointSettings(model_id=str(folder))
    engine = load.load(settings)
    preset = engine.info.preset
    width_px, height_px = fit_size(*photo.size, area_px=preset.area_px)
    labelled = [("the photo", photo)]
    for prompt in PROMPTS:
        work = EditParams(
            prompt=prompt,
            negative_prompt=" ",
            seed=SEED,
            steps=steps or preset.steps,
            guidance_scale=preset.guidance_scale,
            scheduler="Euler",
            width_px=width_px,
            height_px=height_px,
        )
        made = run_edit(engine, [photo], work)[0]
        labelled.append((prompt, made))
        sys.stderr.write(f"{len(labelled) - 1} of {len(PROMPTS)}: {prompt}\n")
    return labelled


def lay_out(labelled: list[tuple[str, Image.Image]]) -> Image.Image:
    """Put the pictures side by side, each over its label."""
    rows = -(-len(labelled) // COLUMNS)
    across, down = TILE_PX[0] + GAP_PX, TILE_PX[1] + LABEL_PX
    sheet = Image.new("RGB", (COLUMNS * across - GAP_PX, rows * down), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for place, (label, picture) in enumerate(labelled):
        left, top = place % COLUMNS * across, place // COLUMNS * down
        sheet.paste(picture.resize(TILE_PX, Image.Resampling.LANCZOS), (left, top))
        middle = (left + TILE_PX[0] / 2, top + TILE_PX[1] + LABEL_PX / 2)
        draw.text(middle, label, fill=INK, font=font, anchor="mm")
    return sheet


def main() -> int:
    """Make the picture; the exit status is 1 if it is too large for a README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--photo", type=Path, default=STATIC / "sample.jpg")
    parser.add_argument("--out", type=Path, default=STATIC / "demo.webp")
    parser.add_argument("--steps", type=int, default=0, help="default: the checkpoint's")
    plan = parser.parse_args()
    with Image.open(plan.photo) as opened:
        photo = opened.convert("RGB")
    lay_out(edit_all(photo, plan.checkpoint, plan.steps)).save(plan.out, quality=82, method=6)
    size = plan.out.stat().st_size
    sys.stdout.write(f"{plan.out}: {size} bytes\n")
    return 0 if size <= MAX_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
