"""What a training run is told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train, where and for how long.

    `pictures` is filled where it is empty, `work` holds the state to resume from, `out` becomes the
    checkpoint. `device` is cuda or cpu. `quick` trains tiny sizes, to see that everything runs.
    """

    pictures: Path
    work: Path
    out: Path
    device: str
    seed: int
    autoencoder_s: float
    editor_s: float
    quick: bool
