"""Classifier-free guidance: one velocity from those of both branches."""

from collections.abc import Sequence

import torch


def classifier_free_guidance(velocities: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """Combine the branches (with the prompt, with the negative prompt), each (1, token, channel).

    The result is rescaled to the norm of the first branch, as in the stock pipelines.
    """
    if len(velocities) == 1:
        return velocities[0]
    positive, negative = velocities
    combined = negative + scale * (positive - negative)
    norm, combined_norm = (
        torch.linalg.vector_norm(velocity, dim=-1, keepdim=True)
        for velocity in (positive, combined)
    )
    guided: torch.Tensor = combined * (norm / combined_norm)
    return guided
