"""Describe a memory plan in words."""

from retouch.engine.memory.plan import BUS_GIB_PER_S, RESERVE_BYTES, EditShape, Plan, Sizes
from retouch.engine.memory.probe import GIB


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
