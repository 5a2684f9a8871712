"""Compare how the decoder and Chromium show every file under some directories.

    PYTHONPATH=src:tests python tests/bench/compare_browser.py DIRECTORY... --keep renderings

Each file is decoded in the sandbox, as the service does, and drawn by Chromium on a white canvas. Where
both show it, the mean absolute difference over all channels is taken, of 255; large images are reduced first.
Prints how many differ by how much, each file over 8, and each file that only one of the two shows.
`--keep` holds Chromium's renderings as PNG, so that a second run is quick. TIFF and HEIC are not shown
by Chromium: they are listed only where the decoder refuses them.
"""

import argparse
import asyncio
import base64
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops, ImageStat
from playwright.async_api import Page, async_playwright

from retouch import errors
from retouch.images import decode, sandbox

PATIENCE_S = 120.0
MAX_BYTES = 25 << 20
# `createImageBitmap` gives the first frame of an animation; an <img> also shows what is cut short.
DRAW = """async data => {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const blob = new Blob([bytes]);
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  try { await image.decode(); } catch { return ""; } finally { URL.revokeObjectURL(image.src); }
  let source = image, surely = true;
  try { source = await createImageBitmap(blob); } catch { surely = false; }
  const [width, height] = [source.width, source.height];
  const scale = Math.min(1, Math.sqrt(262144 / (width * height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(width * scale));
  canvas.height = Math.max(1, Math.floor(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const drawn = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  if (!surely && drawn.every(pixel => pixel === 0)) return "";
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png").split(",")[1];
}"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`difference` is the mean over all samples, or None where not both show the file."""

    path: Path
    difference: float | None = None
    notes: tuple[str, ...] = ()
    refusal: str = ""
    in_browser: bool = False


def list_files(directories: list[Path]) -> Iterator[Path]:
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and 0 < path.stat().st_size <= MAX_BYTES and path.suffix != ".done":
                yield path


async def draw(page: Page, body: bytes, keep: Path | None) -> Image.Image | None:
    """Return Chromium's rendering in RGB, or None if it shows nothing."""
    kept = keep / hashlib.sha256(body).hexdigest() if keep else None
    if kept is not None and kept.exists():
        drawn = kept.read_bytes()
    else:
        data = base64.b64encode(body).decode()
        drawn = base64.b64decode(await asyncio.wait_for(page.evaluate(DRAW, data), PATIENCE_S))
        if kept is not None:
            kept.write_bytes(drawn)
    return Image.open(BytesIO(drawn)).convert("RGB") if drawn else None


def measure(ours: Image.Image, theirs: Image.Image) -> float:
    """Return the mean absolute difference; 255 where the shapes are unlike."""
    off_px = ours.width * theirs.height / ours.height - theirs.width
    if abs(off_px) > 2 + max(theirs.width / theirs.height, 1):
        return 255.0
    if ours.size != theirs.size:  # each was reduced by a filter of its own
        size = max(1, theirs.width // 4), max(1, theirs.height // 4)
        ours, theirs = (image.resize(size, Image.Resampling.BOX) for image in (ours, theirs))
    return sum(ImageStat.Stat(ImageChops.difference(ours, theirs)).mean) / 3


async def compare(
    page: Page, decoder: sandbox.Decoder, path: Path, keep: Path | None
) -> Comparison:
    body = await asyncio.to_thread(path.read_bytes)
    theirs = await draw(page, body, keep)
    try:
        decoded = await decoder.decode(body, timeout_s=PATIENCE_S)
    except errors.EditError as refusal:
        reason = f"{refusal.code}: {refusal.message}"
        return Comparison(path, refusal=reason, in_browser=theirs is not None)
    if theirs is None:
        return Comparison(path, notes=decoded.notes)
    difference = await asyncio.to_thread(measure, decoded.image, theirs)
    return Comparison(path, difference, decoded.notes, in_browser=True)


async def compare_all(files: list[Path], options: argparse.Namespace) -> list[Comparison]:
    """Compare with one page and one child for each of two files at a time."""
    decoder = sandbox.Decoder(decode.Limits(), sandbox.DecoderSettings())
    waiting, compared = iter(files), []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=options.chromium)

        async def work() -> None:
            page = await browser.new_page()
            for path in waiting:
                try:
                    compared.append(await compare(page, decoder, path, options.keep))
                except Exception as error:  # noqa: BLE001  # a page that hangs or crashes: take another
                    sys.stderr.write(f"{path}: {error!r}\n")
                    page = await browser.new_page()

        try:
            await asyncio.gather(*(work() for _ in range(2)))
        finally:
            await browser.close()
            decoder.close()
    return sorted(compared, key=lambda each: each.path)


def report(compared: list[Comparison]) -> str:
    both = [each for each in compared if each.difference is not None]
    levels = (0.5, 2.0, 8.0, 256.0)
    counts = Counter(next(n for n in levels if (each.difference or 0) < n) for each in both)
    spread = ", ".join(f"{counts[level]} under {level:g}" for level in levels)
    lines = [f"{len(compared)} files, {len(both)} shown by both; mean difference: {spread}"]
    far = [each for each in both if (each.difference or 0) > 8]
    lines += [f"  {each.difference:6.1f} {each.path} {list(each.notes)}" for each in far]
    refused = [each for each in compared if each.refusal and each.in_browser]
    lines += [f"{len(refused)} refused and shown by Chromium"]
    lines += [f"  {each.path} {each.refusal}" for each in refused]
    others = [each for each in compared if each.refusal and not each.in_browser]
    lines += [f"{len(others)} refused by both"]
    only_ours = [each for each in compared if not each.refusal and not each.in_browser]
    lines += [f"{len(only_ours)} shown by the decoder alone"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, help="directory of Chromium's renderings")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="default: Debian's")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    files = list(list_files(options.directories))
    sys.stdout.write(report(asyncio.run(compare_all(files, options))))


if __name__ == "__main__":
    main()
