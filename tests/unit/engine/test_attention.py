import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest

from retouch.engine import attention


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the wheel is for these"
)
def test_cuda_12_is_there_by_the_name_that_xformers_links_to() -> None:
    attention.open_cuda_12()
    assert "/libcudart.so.12" in Path("/proc/self/maps").read_text()


def test_without_the_package_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    attention.open_cuda_12()
