"""Wire bodies as files: what callers get, held to the letter."""

import re
from pathlib import Path

_CHANGING = re.compile(
    r'("(?:queue|fetch|source_decode|prepare|condition|denoise|vae_decode|encode|store|total)": ?'
    r'|"expires_at": ?)("[^"]*"|[0-9.]+)'
)


def require_snapshot(path: Path, text: str) -> None:
    """`text` is what the file holds, times apart. Delete the file to have it written anew."""
    masked = _CHANGING.sub(r'\g<1>"*"', text) + "\n"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(masked)
        raise AssertionError(f"{path} is new: look at it and run again")
    assert masked == path.read_text()
