"""`python -m retouch.worker` with a model that makes noise quickly, so that storing takes most of its time."""

import random
import time
from collections.abc import Callable

from PIL import Image

from retouch import wiring
from retouch.editing.ports import EngineOutput, PreparedEdit
from retouch.worker import __main__
from support.fakes import FakeEngine

STEP_S = 0.01


class NoisyEngine(FakeEngine):
    """Blends the image with noise from the seed: large as PNG, and equal at each attempt."""

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        def step(number: int, steps: int) -> None:
            on_step(number, steps)
            time.sleep(STEP_S)

        edited = super().edit(prepared, on_step=step)
        image: Image.Image = edited.pixels
        size_px = image.size
        pixels = random.Random(prepared.params.seed).randbytes(3 * size_px[0] * size_px[1])  # noqa: S311
        noise = Image.frombytes("RGB", size_px, pixels)
        image.paste(Image.blend(image, noise, 0.5))
        return edited


if __name__ == "__main__":
    wiring.build_engine = lambda _: NoisyEngine()
    __main__.main()
