"""Decide which model of the family a file of weights belongs to."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from retouch.errors import ModelError

Family = Literal["edit", "2509", "2511"]
_MODELS: dict[str, str] = {
    "edit": "Qwen/Qwen-Image-Edit",
    "2509": "Qwen/Qwen-Image-Edit-2509",
    "2511": "Qwen/Qwen-Image-Edit-2511",
}


def family_of(pipeline: str, transformer: Mapping[str, Any]) -> Family:
    """Return the family of a checkpoint with this pipeline class and transformer configuration.

    >>> family_of("QwenImageEditPlusPipeline", {"zero_cond_t": True})
    '2511'
    """
    if pipeline == "QwenImageEditPipeline":
        return "edit"
    return "2511" if transformer.get("zero_cond_t") else "2509"


def choose_family(*, base: Family, named: str, is_2511: bool) -> Family:
    """Return the family of a transformer file: the one it is marked as, else the one that is `named`.

    `base` is that of the checkpoint with all other parts: the same, but 2509 and 2511 share them.

    >>> choose_family(base="2509", named="", is_2511=True)
    '2511'

    Raises:
        ModelError: the file is of another family than `named`, of none that can be told, or of one
            that the base does not fit.
    """
    if is_2511 and named not in {"", "2511"}:
        raise ModelError(f"MODEL_FAMILY is {named}, but TRANSFORMER_FILE is marked as 2511")
    chosen: Any = "2511" if is_2511 else named
    if chosen not in get_args(Family):
        raise ModelError(
            "TRANSFORMER_FILE does not say which model it is of: set MODEL_FAMILY to edit, 2509 or 2511"
        )
    if (chosen == "edit") != (base == "edit"):
        raise ModelError(
            f"TRANSFORMER_FILE is of {chosen}, but MODEL_ID of {base}: set MODEL_ID to {_MODELS[chosen]}"
        )
    family: Family = chosen
    return family
