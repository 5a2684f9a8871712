"""Choose how weights are stored: in 16 bits, or packed where memory is short.

Pure arithmetic on bytes, like the plan.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

from retouch.engine.memory.plan import FULL, EditShape, FreeMemory, Plan, Sizes, make_plan
from retouch.errors import ModelError

PLAIN = "none"
NO_FILES: Mapping[str, str] = MappingProxyType({})
_PACKED_BYTES = {
    "int8": (226_825_216, 19_771_392, 233_268_224),
    "fp8": (226_825_216, 19_771_392, 233_268_224),
    "nf4": (120_438_784, 10_491_136, 123_831_040),
}
"""The full model: a block, a layer of the vision tower, a layer of the language model."""
_EXPANDED_BLOCK, _EXPANDED_LAYER = 452_984_832, 466_092_032
_VISION_LAYERS = 32


@dataclass(frozen=True, slots=True)
class Quantization:
    """Names of the encodings of the transformer's blocks and of the text encoder's layers, or none.

    Another name than that of a packer means as the part's file has them.
    """

    transformer: str = PLAIN
    text_encoder: str = PLAIN

    @property
    def name(self) -> str:
        """Its name in answers and in the log.

        >>> Quantization("int8", "int8").name, Quantization("int8", "nf4").name
        ('int8', 'int8, text encoder nf4')
        """
        if self.transformer == self.text_encoder:
            return self.transformer
        return f"{self.transformer}, text encoder {self.text_encoder}"


UNQUANTIZED = Quantization()
BY_QUALITY = (
    UNQUANTIZED,
    Quantization("none", "int8"),
    Quantization("int8", "int8"),
    Quantization("int8", "nf4"),
    Quantization("nf4", "nf4"),
)
"""What `auto` tries, in order. The text encoder goes first: it runs once an edit, the blocks in every step."""


def full_sizes(quantization: Quantization, *, modulation_mapped: bool = False) -> Sizes:
    """Return the bytes of the full model's weights, stored so; mapped where their disk is local."""
    blocks, layers, expansion = FULL.blocks, FULL.layers, 0
    if quantization.transformer != PLAIN:
        block, *_ = _PACKED_BYTES[quantization.transformer]
        blocks, expansion = (block,) * len(blocks), _EXPANDED_BLOCK
    if quantization.text_encoder != PLAIN:
        _, vision, language = _PACKED_BYTES[quantization.text_encoder]
        rest = len(layers) - _VISION_LAYERS
        layers = (vision,) * _VISION_LAYERS + (language,) * rest
        expansion = max(expansion, _EXPANDED_LAYER)
    return replace(
        FULL,
        blocks=blocks,
        layers=layers,
        expansion=expansion,
        modulation_mapped=modulation_mapped,
    )


def list_choices(setting: str, files: Mapping[str, str] = NO_FILES) -> tuple[Quantization, ...]:
    """Return what QUANTIZATION allows: auto, none, or the name of an encoding for both parts.

    With auto the parts of `files` stay packed as their file has them, under that name.

    >>> list_choices("auto", {"transformer": "Q4_K"})[0].name
    'Q4_K, text encoder none'
    """
    if setting != "auto":
        return (Quantization(setting, setting),)
    return tuple(dict.fromkeys(replace(choice, **files) for choice in BY_QUALITY))


def choose_quantization(
    setting: str,
    sizes: Callable[[Quantization], Sizes],
    shape: EditShape,
    memory: FreeMemory,
    files: Mapping[str, str] = NO_FILES,
) -> tuple[Quantization, Plan]:
    """Return the first choice of `setting` that fits, and its plan. `sizes` are those of a choice.

    Raises:
        ModelError: none fits; the message is that of the smallest.
    """
    *others, last = list_choices(setting, files)

    def plan(choice: Quantization) -> tuple[Quantization, Plan]:
        made = make_plan(sizes(choice), shape, memory)
        return choice, replace(made, quantization=choice.name)

    for choice in others:
        with suppress(ModelError):
            return plan(choice)
    return plan(last)
