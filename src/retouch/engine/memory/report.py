"""Describe a memory plan in words."""

from retouch.engine.memory.plan import (
    BUS_GIB_PER_S,
    FULL,
    RESERVE_BYTES,
    EditShape,
    Plan,
    Sizes,
    make_plan,
)
from retouch.engine.memory.probe import GIB, FreeMemory, measure_free, measure_host


def describe_plan(
    *, gpu_gib: float | None, host_gib: float | None, gpu_memory_gib: float = 0.0
) -> list[str]:
    """Describe where the full model's weights live, on this machine or one with so much memory.

    `gpu_memory_gib` limits what may be taken of this machine's GPU; 0 is all that is free.

    Raises:
        ModelError: the model does not fit.
    """
    gpu_bytes = measure_free(gpu_memory_gib).gpu_bytes if gpu_gib is None else int(gpu_gib * GIB)
    host_bytes = measure_host() if host_gib is None else int(host_gib * GIB)
    shape = EditShape()
    return explain(make_plan(FULL, shape, FreeMemory(gpu_bytes, host_bytes)), FULL, shape)


def explain(plan: Plan, sizes: Sizes, picture: EditShape) -> list[str]:
    """Say in a few lines what a plan does and costs."""
    moved = sum(sizes.blocks[i] for i in plan.streamed_blocks)
    once = sum(sizes.layers[i] for i in plan.streamed_layers)
    lines = [
        f"plan: {plan.name}",
        (
            f"GPU: {plan.peak_bytes / GIB:.1f} GiB at most: {plan.resident_bytes / GIB:.1f} of weights, "
            f"{plan.slots} slots of {plan.slot_bytes / GIB:.2f}, "
            f"{picture.activation_bytes() / GIB:.1f} for the edit, {RESERVE_BYTES / GIB:.1f} in reserve"
        ),
        f"host: {plan.host_bytes / GIB:.1f} GiB, of which {plan.pinned_bytes / GIB:.1f} pinned",
        (
            f"before an edit with a new size or number of steps, {sum(sizes.modulation) / GIB:.1f} GiB "
            f"pass once: {sum(sizes.modulation) / GIB / BUS_GIB_PER_S:.1f} s at {BUS_GIB_PER_S:.0f} GiB/s"
        ),
    ]
    if once:
        lines.append(
            f"in every edit, {once / GIB:.1f} GiB of the text encoder pass once: "
            f"{once / GIB / BUS_GIB_PER_S:.1f} s"
        )
    if moved:
        copy_s = moved / GIB / BUS_GIB_PER_S
        lines.append(
            f"in every step, {moved / GIB:.1f} GiB of blocks pass: {copy_s:.2f} s, hidden where "
            f"a step computes longer (a GPU under {2 * picture.forward_tflop() / copy_s:.0f} TFLOP/s "
            "with guidance)"
        )
    return lines
