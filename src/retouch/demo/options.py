"""The options of a training run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What to train, where, and for how long.

    `pictures` holds the training JPEGs and is filled if it has none. `work` holds the state to resume
    from. The checkpoint is written to `out`. `device` is cuda or cpu. `quick` trains tiny networks,
    to check that everything runs.
    """

    pictures: Path
    work: Path
    out: Path
    device: str
    seed: int
    autoencoder_s: float
    editor_s: float
    quick: bool
