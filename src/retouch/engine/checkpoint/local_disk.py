"""Tell local file systems from those of a network."""

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
LOCAL = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "overlay", "tmpfs", "ramfs")
)
"""File systems without a network behind them."""
_MOUNT_POINT, _SEPARATOR = 4, "-"


def is_local(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a file, there or not, is on a local file system, as far as the system says (proc(5))."""
    resolved, best, kind = path.resolve(), Path("/"), ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        words = line.split()
        place = Path(words[_MOUNT_POINT])
        if resolved.is_relative_to(place) and len(place.parts) >= len(best.parts):
            best, kind = place, words[words.index(_SEPARATOR) + 1]
    return kind in LOCAL
