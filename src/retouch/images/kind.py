"""What a file is decoded as. Importing this module imports no decoder."""

from typing import Final, Literal

Kind = Literal["picture", "mask"]
MODES: Final[dict[Kind, str]] = {"picture": "RGB", "mask": "L"}
"""Pillow's mode of each: its colours, or the mask it stands for."""
