"""Imports the model libraries as a start does: by half the CPU time of whole imports.

Import it before anything that imports them. Nothing changes where they are imported already.
"""

import sys
from collections.abc import Callable
from typing import Any

from retouch.engine.lean_imports import lean_imports

with lean_imports(attention="auto"):
    from accelerate.utils import other  # type: ignore[import-untyped]
    from diffusers.pipelines import pipeline_loading_utils, pipeline_utils
    from torch.testing import _comparison

    from retouch.engine import engine  # noqa: F401
    from retouch.engine.checkpoint import build  # noqa: F401
    from support.models import tiny  # noqa: F401


def _sparing_the_compiler(is_compiled: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the question of whether a module is compiled, without an import of the compiler for it."""
    return lambda module: "torch._dynamo" in sys.modules and is_compiled(module)


# A stock pipeline asks it of its parts when it is built and when it is saved.
for place, question in (
    (other, "is_compiled_module"),
    (other, "has_compiled_regions"),
    (pipeline_loading_utils, "is_compiled_module"),
    (pipeline_utils, "is_compiled_module"),
):
    setattr(place, question, _sparing_the_compiler(getattr(place, question)))

# Tests compare no distributed tensors, whose import, to see that none is one, brings sympy and 500 modules more.
vars(_comparison)["_HAS_DTENSOR"] = False
