"""Load the model, run edits, notice a hung model, stop."""

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import Any, Unpack

from retouch import wiring
from retouch.editing.editor import Editor
from retouch.editing.job import EditOptions
from retouch.editing.ports import Engine
from retouch.engine import compilation
from retouch.engine.phase_clock import measure_process_age
from retouch.errors import EditError, ModelError, ModelLost, NotReady
from retouch.lifecycle.warm_up import WARM_UP_STEPS, warm_up
from retouch.logs import event
from retouch.schema import EditRequest, EditResult
from retouch.settings import Settings
from retouch.storage.port import Store

_log = logging.getLogger(__name__)
EXIT_STATUS = 70
"""What a process ends with whose model hangs: EX_SOFTWARE of sysexits.h."""
_LINGER_S = 2.0
CANCEL_S = 4.0
"""For cancelled edits to end at their next step: with the grace below the 30 s of Kubernetes."""
_STOPPING = "the service is stopping"


class State(StrEnum):
    """States of the model. The last three are final: only another process edits again."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    FAILED = "failed"
    DEFUNCT = "defunct"


def prepare_process() -> None:
    """Set environment variables that torch and OpenMP read; call it before torch is imported."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # Without it edits of changing sizes leave holes of up to 0.8 GiB in GPU memory.
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    # Threads that spin while they wait slow each other down on a CPU that has other work too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if cache := compilation.find_code_cache():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


class ModelHost:
    """Loads the model, gives out its editor, and ends the process when the model hangs.

    `linger_s` after the model was lost, `end_process` is called with `EXIT_STATUS`: until then
    callers get their answers and probes see the state. A given `store` and `editor` are used in
    place of loading any.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        editor: Editor | None = None,
        linger_s: float = _LINGER_S,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.settings = settings
        self._store = store
        self._engine: Engine | None = None
        self._expected_edit_s = 0.0
        self.start_phases_s: Mapping[str, float] = {}
        self._editor = editor
        self._linger_s = linger_s
        self._end_process = end_process
        self._final: State | None = None
        self._is_stopping = False
        self._is_grace_over = False
        self.edits: set[asyncio.Task[Any]] = set()  # the tasks that are in `run`
        self._exits = AsyncExitStack()

    @property
    def state(self) -> State:
        """The state of the model now."""
        if self._final is not None:
            return self._final
        if self._is_stopping:
            return State.STOPPING
        if self.edits:
            return State.BUSY
        return State.READY if self._editor or self._engine else State.STARTING

    @property
    def store(self) -> Store:
        """The store.

        Raises:
            NotReady: it is not open yet.
        """
        if self._store is None:
            raise NotReady("the service is starting")
        return self._store

    @property
    def editor(self) -> Editor:
        """The editor, built on first use in the event loop.

        Not earlier: the Runpod SDK forks its heartbeat after the model is loaded. A decoder process
        that starts during a fork never gets ready, because the heartbeat holds its pipes open too.

        Raises:
            NotReady: the model is still loading, or the service is stopping.
            ModelLost: the model hangs.
            ModelError: the model could not be loaded.
        """
        if self._final is State.DEFUNCT:
            raise ModelLost
        self.require_alive()
        if self._is_stopping:
            raise NotReady(_STOPPING)
        if self._editor is None:
            if self._engine is None:
                raise NotReady("the model is still loading")
            self._editor = wiring.build_editor(
                self.settings,
                self._engine,
                self.store,
                exits=self._exits,
                expected_edit_s=self._expected_edit_s,
                on_model_lost=self._lose_model,
            )
        return self._editor

    def require_alive(self) -> None:
        """Raise if only another process can edit.

        Raises:
            ModelError: the model could not be loaded, or hangs.
        """
        if self._final is State.DEFUNCT:
            raise ModelError(ModelLost.default_message)
        if self._final is State.FAILED:
            raise ModelError("the model could not be loaded; the service's log says why")

    def open_store(self) -> None:
        """Build the store, without a request to it yet."""
        self._store = wiring.build_store(self.settings)
        if not self.settings.uses_s3:
            event(_log, "store.local", folder=self.settings.local_store_dir)
        for reason in self.settings.warnings:
            event(_log, "setting.ignored", level=logging.WARNING, reason=reason)

    def load(self) -> None:
        """Load the model and warm it up, in the calling thread.

        Raises:
            ModelError: the model cannot be found, read or placed in memory, or cannot edit.
        """
        process_s = measure_process_age()
        began = time.perf_counter()
        engine = wiring.build_engine(self.settings)
        loaded = time.perf_counter()
        is_remote = bool(self.settings.engine_url)  # and is warm, or warms up by itself
        edit_s = 0.0 if is_remote else warm_up(engine, compiled=engine.info.compiled)
        # Else each full collection of garbage stops all threads to look at 360,000 objects that stay: for
        # 0.3 s, and for over a second on a busy machine.
        gc.collect()
        gc.freeze()
        warm_up_s = time.perf_counter() - loaded
        self._expected_edit_s = edit_s * engine.info.preset.steps / WARM_UP_STEPS
        self._engine = engine
        load_s, model = loaded - began, engine.info.model
        event(_log, "engine.ready", model=model, load_s=load_s, warm_up_s=warm_up_s)
        phases_s = {"process_s": process_s, **engine.info.load_phases_s, "warm_up_s": warm_up_s}
        self.start_phases_s = phases_s
        event(_log, "start.phases", **dict[str, Any](phases_s))
        if engine.info.code:
            compilation.keep_code(engine.info.code, compiled=engine.info.compiled)

    def open(self) -> None:
        """Open the store, and check it and load the model in threads: health routes answer at once.

        A store that cannot be used is logged. A model that cannot be loaded is logged and leads to
        `State.FAILED`.
        """
        self.open_store()
        if not self.settings.api_keys:
            event(_log, "access.open", level=logging.WARNING, setting="API_KEYS")
        threading.Thread(target=self._check_store, name="check-store", daemon=True).start()
        threading.Thread(target=self._load_or_fail, name="load", daemon=True).start()

    async def run(
        self,
        request: EditRequest,
        *,
        job_id: str,
        request_id: str,
        **options: Unpack[EditOptions],
    ) -> EditResult:
        """Edit as `Editor.run` does. When the process stops, the edit has until the grace is over.

        Raises:
            NotReady: the model is still loading, or the process stops.
            EditError: as `editor` and `Editor.run`.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: a coroutine runs in a task
        edit = self.editor.run(request, job_id=job_id, request_id=request_id, **options)
        del request  # the edit releases the image in it once it is decoded
        self.edits.add(task)
        try:
            return await edit
        except asyncio.CancelledError:
            if not self._is_grace_over or task.uncancel():
                raise  # the caller cancelled it
            raise NotReady(_STOPPING) from None
        finally:
            self.edits.discard(task)

    def close_at_end(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have `close` called when the process stops, once the edits have ended."""
        self._exits.push_async_callback(close)

    async def close(self) -> None:
        """Take no more edits, let those in progress end, and end threads and child processes.

        Edits that are not done after STOP_GRACE_SECONDS are cancelled: their callers get `NotReady`,
        which they may retry.
        """
        if not self._is_stopping:
            self._is_stopping = True
            await self._end_edits()
        closing = asyncio.ensure_future(self._exits.aclose())
        await asyncio.wait([closing], timeout=CANCEL_S)
        while not closing.done():
            closing.cancel()  # it goes on with the next part, which may wait too
            await asyncio.sleep(0)

    async def _end_edits(self) -> None:
        edits = set(self.edits)
        event(_log, "stop.began", edits=len(edits))
        if edits:
            await asyncio.wait(edits, timeout=self.settings.stop_grace_seconds)
        self._is_grace_over = True
        late = edits & self.edits  # a task outside `run` may still deliver its result
        for edit in late:
            edit.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_S)
        event(_log, "stop.finished", finished=len(edits) - len(late), cancelled=len(late))

    def _check_store(self) -> None:
        try:
            self.store.check(timeout_s=self.settings.timeout_seconds)
        except EditError as error:  # it may work later, so the service starts
            event(_log, "store.unusable", level=logging.ERROR, reason=error.message)

    def _load_or_fail(self) -> None:
        try:
            self.load()
        except BaseException as error:  # noqa: BLE001 - the thread ends here, whatever it was
            self._final = State.FAILED
            if isinstance(error, ModelError):
                event(_log, "engine.failed", level=logging.CRITICAL, reason=error.message)
            else:
                event(_log, "engine.failed", level=logging.CRITICAL, cause=error)

    def _lose_model(self) -> None:
        self._final = State.DEFUNCT
        event(_log, "engine.lost", level=logging.CRITICAL, exit_status=EXIT_STATUS)
        # A thread, because the event loop may end before; `_exit`, because the hung thread never ends.
        timer = threading.Timer(self._linger_s, self._end_process, (EXIT_STATUS,))
        timer.daemon = True
        timer.start()
