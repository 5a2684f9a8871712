"""The editor behind the doors: opened in the background, so that the doors answer from the start."""

import logging
import threading
import time
from contextlib import AsyncExitStack

from retouch import wiring
from retouch.editing.editor import Editor
from retouch.errors import ModelError, NotReady
from retouch.logs import event
from retouch.settings import Settings
from retouch.storage.port import Store

_log = logging.getLogger(__name__)


class ModelHost:
    """Holds the editor once its model is loaded and warm; or the given ones, in place of loading any."""

    def __init__(
        self, settings: Settings, *, store: Store | None = None, editor: Editor | None = None
    ) -> None:
        self.settings = settings
        self._store = store
        self._editor = editor
        self._failed = False
        self._exits = AsyncExitStack()

    def open(self) -> None:
        """Open the store and begin to load the model; return at once."""
        self._store = wiring.build_store(self.settings)
        if not self.settings.uses_s3:
            event(_log, "store.local", folder=self.settings.local_store_dir)
        if not self.settings.api_keys:
            event(_log, "access.open", level=logging.WARNING, setting="API_KEYS")
        threading.Thread(target=self._load, name="load", daemon=True).start()

    async def close(self) -> None:
        """Let running edits end, then their threads and child processes."""
        await self._exits.aclose()

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
    def failed(self) -> bool:
        """Whether the model could not be loaded: only a restart helps."""
        return self._failed

    @property
    def editor(self) -> Editor:
        """The editor.

        Raises:
            NotReady: its model is still loading.
            ModelError: its model could not be loaded.
        """
        if self._failed:
            raise ModelError("the model could not be loaded; the service's log says why")
        if self._editor is None:
            raise NotReady("the model is still loading")
        return self._editor

    def _load(self) -> None:
        began = time.perf_counter()
        try:
            engine = wiring.build_engine(self.settings)
            loaded = time.perf_counter()
            wiring.warm_up(engine)
            self._editor = wiring.build_editor(self.settings, engine, self.store, exits=self._exits)
        except ModelError as error:
            self._failed = True
            event(_log, "engine.failed", level=logging.CRITICAL, reason=error.message)
        except BaseException as error:  # noqa: BLE001 - the thread ends here, whatever it was
            self._failed = True
            event(_log, "engine.failed", level=logging.CRITICAL, cause=error)
        else:
            event(
                _log,
                "engine.ready",
                model=engine.info.model,
                load_s=loaded - began,
                warm_up_s=time.perf_counter() - loaded,
            )
