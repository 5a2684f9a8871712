"""Shared libraries that a package links to and does not bring."""

import ctypes
from importlib import metadata

CUDA_12 = "nvidia-cuda-runtime-cu12"


def open_cuda_12() -> None:
    """Open CUDA 12's runtime, so that xformers' wheel, which links to it, finds it beside torch's CUDA 13.

    To be called before anything imports xformers, as diffusers' models do. Without the package
    nothing happens: xformers' own failure says more.
    """
    try:
        files = metadata.files(CUDA_12) or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libcudart.so"):
            ctypes.CDLL(str(file.locate()))
