"""The BentoML service: `bentoml serve`, `bentoml build` and the built image start here."""

import asyncio
import logging
import sys
import uuid
from pathlib import Path

# Neither serve nor build installs the package.
sys.path.insert(0, str(Path(__file__).parent / "src"))
import bentoml

from retouch import logs
from retouch.lifecycle import ModelHost, prepare_process
from retouch.schema import EditRequest, EditResult
from retouch.settings import load_settings, require_local_store
from retouch.web import server, shutdown
from retouch.web.app import App
from retouch.web.edit import Caller, EditEndpoint
from retouch.web.jobs import JobEndpoint
from retouch.web.listener import Listener
from retouch.web.metrics import Metrics
from retouch.web.standby import open_channel, open_standby
from retouch.web.workers import join_workers

prepare_process()
settings = load_settings()
workers = join_workers(settings.gpus, each=settings.gpus_each, host_gib=settings.host_memory_gib)
settings = load_settings()  # again: the host's memory is shared out now
require_local_store(settings)
logs.install(settings.log_level, secrets=settings.secrets)
server.install(open_channel())
shutdown.watch_processes(workers, open_standby())
host = ModelHost(settings)
metrics = Metrics(host, workers)
metrics.count_events(logging.getLogger("retouch"))
edits = EditEndpoint(host, metrics)
jobs = JobEndpoint(host, edits)


@bentoml.service(
    name="retouch",
    workers=workers.count,
    # All workers see all, and each keeps to its own.
    resources={"gpu": workers.count * workers.gpus},
    # An edit has a deadline of its own; this one only keeps BentoML's 60 s away.
    traffic={"timeout": settings.job_timeout_seconds + 30},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Retouch:
    """Edits images by instruction."""

    def __init__(self) -> None:
        server.share_tracer()
        host.open()
        jobs.start()
        running = shutdown.find_server()
        if running and workers.board and workers.index is not None:
            port = Listener(running, workers.board, workers.index, host, metrics)
            self._listening = asyncio.create_task(port.run())
        shutdown.stop_on_signals(host)
        shutdown.end_without_supervisor()

    # BentoML describes it in /schema.json, from which its clients are made. Requests to the route are
    # answered by the same endpoint one layer above, which parses the body once and within limits:
    # BentoML parses without any, and answers failures in forms of its own.
    @bentoml.api(route="/edit")  # type: ignore[untyped-decorator]  # BentoML has no types for it
    async def edit(self, request: EditRequest, /) -> EditResult:
        """Edit the image at a URL as the prompt says and answer with a link to the result."""
        job_id = uuid.uuid4().hex
        return await edits.run(request, Caller(job_id=job_id, request_id=job_id))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def close(self) -> None:
        """End threads and child processes, and edits where no signal came."""
        await host.close()


Retouch.add_asgi_middleware(server.allow_origins)  # type: ignore[attr-defined]
Retouch.add_asgi_middleware(  # type: ignore[attr-defined]
    App,
    host=host,
    edits=edits,
    jobs=jobs,
    metrics=metrics,
    closes=workers.several,
    origins=server.read_origins,
)
