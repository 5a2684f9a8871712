"""A model that hangs: an edit with the prompt `hang` never ends, with `take 3` it takes 3 s.

`python -m support.processes.hanging` is `python -m retouch.worker` with it. The service gets it by
`install`, from the `sitecustomize` of a folder in its `PYTHONPATH`.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from retouch import wiring
from retouch.editing.ports import EngineOutput, PreparedEdit
from support.fakes import FakeEngine

_SITECUSTOMIZE = "from support.processes import hanging\n\nhanging.install()\n"


class HangingEngine(FakeEngine):
    """Never returns from an edit whose prompt says so, like a GPU that does not answer."""

    _STEP_S = 0.05

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        if prepared.params.prompt == "hang":
            threading.Event().wait()
        if prepared.params.prompt.startswith("take "):
            until_s = time.monotonic() + float(prepared.params.prompt.removeprefix("take "))
            while time.monotonic() < until_s:
                on_step(0, prepared.params.steps)
                time.sleep(self._STEP_S)
        return super().edit(prepared, on_step=on_step)


def install() -> None:
    """Have this process load the hanging model."""
    wiring.build_engine = lambda _: HangingEngine()


def write_sitecustomize(folder: Path) -> str:
    """Write a module that installs the model in every Python process started with the result.

    Return the value for `PYTHONPATH`.
    """
    root = Path(__file__).parents[3]
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return f"{folder}:{root / 'src'}:{root / 'tests'}"


if __name__ == "__main__":
    from retouch.worker import __main__

    install()
    __main__.main()
