"""Spares tests that compile nothing torch's compiler."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def no_compiler() -> Iterator[None]:
    """Run what asks torch's compiler only to leave it alone, without seconds for an import of it.

    Operations on tensors without data do, optimizers, and the stock transformer.
    """
    name = "torch._dynamo"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(disable=lambda call, *_, **__: call, graph_break=bool)
    yield
    if hidden:
        del sys.modules[name]
