"""Describe a memory plan in words."""

from retouch.engine.memory.plan import (
    BUS_GIB_PER_S,
    FULL,
    GIB,
    RESERVE_BYTES,
    EditShape,
    FreeMemory,
    Plan,
    Sizes,
    make_plan,
)
from retouch.engine.memory.probe import measure_free, measure_host


def describe_plan(
    *, gpu_gib: float | None, host_gib: float | None, gpu_memory_gib: float = 0.0
) -> list[str]:
    """Describe the full model's plan on this machine, or with so much GPU or host memory.

    `gpu_memory_gib` limits what is measured of this machine's GPU, unless it is 0.

    Raises:
        ModelError: it would not fit.
    """
    gpu_bytes = measure_free(gpu_memory_gib).gpu_bytes if gpu_gib is None else int(gpu_gib * GIB)
    host_bytes = measure_host() if host_gib is None else int(host_gib * GIB)
    shape = EditShape()
    return explain(make_plan(FULL, shape, FreeMemory(gpu_bytes, host_bytes)), FULL, shape)


def explain(plan: Plan, sizes: Sizes, shape: EditShape) -> list[str]:
    """Return a few lines on what a plan does and costs."""
    blocks = sum(sizes.blocks[i] for i in plan.streamed_blocks)
    layers = sum(sizes.layers[i] for i in plan.streamed_layers)
    modulation_gib = sum(sizes.modulation) / GIB
    lines = [
        f"plan: {plan.name}",
        (
            f"GPU: {plan.peak_bytes / GIB:.1f} GiB at most: {plan.resident_bytes / GIB:.1f} of weights, "
            f"{plan.slots} slots of {plan.slot_bytes / GIB:.2f}, "
            f"{shape.activation_bytes() / GIB:.1f} for the edit, {RESERVE_BYTES / GIB:.1f} in reserve"
        ),
        f"host: {plan.host_bytes / GIB:.1f} GiB, of which {plan.pinned_bytes / GIB:.1f} pinned",
    ]
    if (most := sum(area_px >= shape.area_px for area_px in plan.max_areas_px)) > 1:
        megapixels = shape.area_px / (1 << 20)
        lines.append(
            f"2509 and 2511: up to {most} images of 1 MP, for a result of {megapixels:.3g} MP"
        )
    if plan.slots:
        lines.append(
            f"before an edit with a new size or number of steps: {modulation_gib:.1f} GiB are copied "
            f"once, {modulation_gib / BUS_GIB_PER_S:.1f} s at {BUS_GIB_PER_S:.0f} GiB/s"
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
