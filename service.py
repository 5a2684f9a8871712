"""The BentoML service: `bentoml serve`, `bentoml build` and the built image start here."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parent / "src")
)  # neither serve nor build installs the package
import bentoml
from starlette.responses import Response

from retouch import logs, wiring
from retouch.errors import EditError
from retouch.lifecycle import ModelHost
from retouch.schema import EditRequest, EditResult
from retouch.settings import load_settings, require_local_store
from retouch.web import server
from retouch.web.app import App, envelope
from retouch.web.edit import EditEndpoint
from retouch.web.metrics import Metrics
from retouch.web.request_context import current

settings = load_settings()
require_local_store(settings)
logs.install(settings.log_level, secrets=wiring.secrets_of(settings))
server.install()
studio = ModelHost(settings)
metrics = Metrics()


@bentoml.service(
    name="retouch",
    workers=1,
    resources={"gpu": 1},
    traffic={"timeout": settings.job_timeout_seconds + 30},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Retouch:
    """Edits images by instruction."""

    def __init__(self) -> None:
        self._edits = EditEndpoint(studio, metrics)
        studio.open()

    @bentoml.api(route="/edit")  # type: ignore[untyped-decorator]  # BentoML has no types for it
    async def edit(self, request: EditRequest, /) -> EditResult:
        """Edit the image at a URL as the prompt says and answer with a link to the result."""
        exchange = current.get()
        try:
            response: Response = await self._edits.answer(request, exchange)
        except EditError as error:  # BentoML would answer it with 500 and a body of its own
            response = envelope(error, exchange)
        return response  # type: ignore[return-value]  # BentoML passes a response through as it is

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def close(self) -> None:
        """Let the edit under way end."""
        await studio.close()


Retouch.add_asgi_middleware(App, studio=studio, metrics=metrics)  # type: ignore[attr-defined]
