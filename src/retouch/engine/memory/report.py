"""Describe a memory plan in words."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from retouch.engine.memory.estimate import CARDS, Card, estimate_edit_s
from retouch.engine.memory.plan import (
    BUS_GIB_PER_S,
    GIB,
    HOST_RESERVE_BYTES,
    MAX_IMAGES,
    RESERVE_BYTES,
    EditShape,
    FreeMemory,
    Plan,
    Sizes,
    make_plan,
)
from retouch.engine.memory.probe import find_device, measure_free, require_driver
from retouch.engine.memory.quantization import (
    PLAIN,
    Quantization,
    choose_quantization,
    full_sizes,
)
from retouch.errors import ModelError


def describe_plan(
    *,
    gpu_gib: float | None,
    host_gib: float | None,
    card: str = "",
    quantization: str = "auto",
    gpu_memory_gib: float = 0.0,
    host_memory_gib: float = 0.0,
    modulation_mapped: bool = False,
    max_result_px: int = 0,
) -> list[str]:
    """Describe the full model's plan, and what every QUANTIZATION would need.

    For this machine, a `card` of `CARDS`, or so much GPU or host memory. `gpu_memory_gib` and
    `host_memory_gib` limit what is measured of this machine, unless they are 0. With
    `modulation_mapped` the checkpoint is on a local disk. Results may have `max_result_px`, if that is
    more than the checkpoint's own area.

    Raises:
        ModelError: it would not fit, or this machine has no GPU and none is named.
    """
    if gpu_gib is None and card:
        gpu_gib = CARDS[card].free_gib
    if gpu_gib is None:
        require_driver()
        if find_device().type == "cpu":
            raise ModelError("torch finds no GPU here: plan for another by --card or --gpu-gib")
    measure = partial(measure_free, gpu_memory_gib, host_memory_gib)
    gpu_bytes = measure().gpu_bytes if gpu_gib is None else int(gpu_gib * GIB)
    host_bytes = measure().host_bytes if host_gib is None else int(host_gib * GIB)
    shape, memory = EditShape(), FreeMemory(gpu_bytes, host_bytes)
    shape = replace(shape, area_px=max(shape.area_px, max_result_px))
    sizes = partial(full_sizes, modulation_mapped=modulation_mapped)
    choice, plan = choose_quantization(quantization, sizes, shape, memory)
    return [
        *explain(plan, sizes(choice), shape),
        explain_images(sizes(choice), shape, memory),
        f"QUANTIZATION={quantization} stores blocks and layers as: {choice.name}",
        *list_alternatives(sizes, shape, memory, CARDS.get(card)),
    ]


def list_alternatives(
    sizes_of: Callable[[Quantization], Sizes],
    shape: EditShape,
    memory: FreeMemory,
    card: Card | None,
) -> list[str]:
    """Return a line for each QUANTIZATION: what it needs, and on a `card` how long an edit may take."""
    lines = []
    for name in (PLAIN, "int8", "fp8", "nf4"):
        sizes = sizes_of(Quantization(name, name))
        try:
            plan = make_plan(sizes, shape, memory)
        except ModelError as error:
            lines.append(f"{name}: {error.message}")
            continue
        line = f"{name}: {_list_memory(plan)}, {plan.name}"
        if card:
            estimate_s = partial(estimate_edit_s, plan, sizes, shape, card)
            line += (
                f"; estimated, not measured: {estimate_s(steps=30, guided=True):.0f} s for 30 steps "
                f"with guidance, without it {estimate_s(steps=8, guided=False):.0f} s for 8 "
                f"and {estimate_s(steps=4, guided=False):.0f} s for 4"
            )
        lines.append(line)
    return lines


def explain(plan: Plan, sizes: Sizes, shape: EditShape) -> list[str]:
    """Return a few lines on what a plan does and costs."""
    lines = [
        f"plan: {plan.name}",
        (
            f"GPU: {plan.peak_bytes / GIB:.1f} GiB at most: {plan.resident_bytes / GIB:.1f} of weights, "
            f"{plan.slots} slots of {plan.slot_bytes / GIB:.2f}, "
            f"{shape.activation_bytes() / GIB:.1f} for the edit, {RESERVE_BYTES / GIB:.1f} in reserve"
        ),
        (
            f"host: {(plan.host_bytes + HOST_RESERVE_BYTES) / GIB:.1f} GiB at most: "
            f"{plan.host_bytes / GIB:.1f} of weights, of which {plan.pinned_bytes / GIB:.1f} pinned, "
            f"{HOST_RESERVE_BYTES / GIB:.1f} in reserve"
        ),
    ]
    return [*lines, *_list_copies(plan, sizes, shape)]


def explain_images(sizes: Sizes, shape: EditShape, memory: FreeMemory) -> str:
    """Return a line on the plan for the models that take several images."""
    plan = make_plan(sizes, replace(shape, images=MAX_IMAGES), memory)
    images = sum(area_px >= shape.area_px for area_px in plan.max_areas_px)
    text = f"2509 and 2511, for up to {images} image{'s' if images > 1 else ''}"
    return f"{text}: {plan.name}, {_list_memory(plan)}"


def _list_memory(plan: Plan) -> str:
    host_gib = (plan.host_bytes + HOST_RESERVE_BYTES) / GIB
    return f"{plan.peak_bytes / GIB:.1f} GiB of the GPU, {host_gib:.1f} of the host"


def _list_copies(plan: Plan, sizes: Sizes, shape: EditShape) -> list[str]:
    """Return a line for each kind of weights that are copied to the GPU."""
    blocks = sum(sizes.blocks[i] for i in plan.streamed_blocks)
    layers = sum(sizes.layers[i] for i in plan.streamed_layers)
    modulation_gib = sum(sizes.modulation) / GIB
    lines = []
    if plan.slots:
        lines.append(
            f"before an edit with a new size or number of steps: {modulation_gib:.1f} GiB are copied "
            f"once, {modulation_gib / BUS_GIB_PER_S:.1f} s at {BUS_GIB_PER_S:.0f} GiB/s"
        )
        lines.append(
            "they are read from their files on a local disk"
            if sizes.modulation_mapped
            else "from host memory; on a local disk they stay in their files, and the host needs "
            f"{modulation_gib:.1f} GiB less"
        )
    if layers:
        lines.append(
            f"in every edit: {layers / GIB:.1f} GiB of the text encoder are copied once, "
            f"{layers / GIB / BUS_GIB_PER_S:.1f} s"
        )
    if blocks:
        copy_s = blocks / GIB / BUS_GIB_PER_S
        lines.append(
            f"in every step: {blocks / GIB:.1f} GiB of blocks are copied, {copy_s:.2f} s, hidden where "
            f"a step computes longer (a GPU under {2 * shape.forward_tflop() / copy_s:.0f} TFLOP/s "
            "with guidance)"
        )
    return lines
