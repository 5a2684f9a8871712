"""The options of a training run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often the trainer does what it does not do at every step."""

    log_every: int = 50
    average_every: int = 8
    refill_every: int = 30
    save_every_s: float = 60.0
    validate_every_s: float = 100.0


_QUICK = Cadence(log_every=2, average_every=2, refill_every=2, save_every_s=1, validate_every_s=1)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What to train, where, and for how long.

    `pictures` holds the training JPEGs and is filled if it has none. `work` holds the state to resume
    from. The checkpoint is written to `out`. `device` is cuda or cpu. `quick` trains tiny networks,
    to check that everything runs. `init` is a checkpoint to fine-tune: its autoencoder and tokenizer
    are kept, and only the second stage runs. `adapter` trains a LoRA to it instead, for `editor_s`.
    """

    pictures: Path
    work: Path
    out: Path
    device: str
    seed: int
    autoencoder_s: float
    editor_s: float
    quick: bool
    init: Path | None = None
    adapter: bool = False

    @property
    def cadence(self) -> Cadence:
        """A quick run does everything every few steps."""
        return _QUICK if self.quick else Cadence()
