"""A first edit, for what happens once: kernels are chosen and compiled, and memory is taken."""

import time
from itertools import product

from PIL import Image

from retouch.editing.adapters import resolve_adapters
from retouch.editing.ports import (
    AdapterChoice,
    AppliedAdapter,
    EditParams,
    Engine,
    EngineInfo,
    run_edit,
)
from retouch.schema import Lora

WARM_UP_STEPS = 2
_SEED = 0


def warm_up(engine: Engine, *, compiled: bool) -> float:
    """Run a real edit, so that the first caller does not wait for what happens once; return its seconds.

    A compiled engine edits in two sizes: it makes code for the first, and at the second for any. It does
    so for each kind of block that adapters make it run.

    Raises:
        ModelError: the model cannot edit.
    """
    side_px = round(engine.info.preset.area_px**0.5) // 32 * 32
    choices = engine.info.adapter_choices if compiled else engine.info.adapter_choices[:1]
    for choice, wider_px in product(choices, (0, 32) if compiled else (0,)):
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
            loras=_choose(engine.info, choice),
        )
        run_edit(engine, [Image.new("RGB", (params.width_px, side_px), "gray")], params)
    return time.perf_counter() - began_s


def _choose(info: EngineInfo, choice: AdapterChoice) -> tuple[AppliedAdapter, ...]:
    own = next((one.adapter for one in info.profiles if one.name == choice.profile), None)
    loras = [Lora(name=name, scale=scale) for name, scale in choice.scales]
    return resolve_adapters(loras, info.adapters, own, max_rank=info.max_adapter_rank)
