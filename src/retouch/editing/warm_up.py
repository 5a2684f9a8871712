"""A first edit, for what happens once: kernels are chosen and compiled, and memory is taken."""

import time

from PIL import Image

from retouch.editing.ports import EditParams, Engine, run_edit

WARM_UP_STEPS = 2
_SEED = 0


def warm_up(engine: Engine, *, compiled: bool) -> float:
    """Run a real edit, so that the first caller does not wait for what happens once; return its seconds.

    A compiled engine edits in two sizes: it makes code for the first, and at the second for any.

    Raises:
        ModelError: the model cannot edit.
    """
    side_px = round(engine.info.preset.area_px**0.5) // 32 * 32
    for wider_px in (0, 32) if compiled else (0,):
        began_s = time.perf_counter()
        params = EditParams(
            prompt="keep the image unchanged",
            negative_prompt=" ",
            seed=_SEED,
            steps=WARM_UP_STEPS,
            guidance_scale=engine.info.preset.guidance_scale,
            scheduler="Euler",
            width_px=side_px + wider_px,
            height_px=side_px,
        )
        run_edit(engine, [Image.new("RGB", (params.width_px, side_px), "gray")], params)
    return time.perf_counter() - began_s
