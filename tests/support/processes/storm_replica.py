"""A replica for the storm of jobs: takes job ids on stdin, says `up`, and `ok <id>` once one is accepted.

python storm_replica.py FOLDER PORT SCALE EDIT_S

The store is a local one in FOLDER, or the bucket that `bucket.json` in it describes.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from retouch.errors import EditError
from retouch.jobs.jobs import Jobs
from retouch.jobs.live import Caller
from retouch.jobs.lookup import JobSettings
from retouch.jobs.records import Records
from retouch.jobs.webhooks import Webhooks
from retouch.net.limits import FetchLimits
from retouch.net.post import Poster
from retouch.schema import EditRequest, EditResult, Progress
from retouch.settings import decode_webhook_secret
from retouch.storage.local import LocalStore
from retouch.storage.port import Store
from retouch.storage.s3 import S3Settings, S3Store
from support.fakes import House
from support.replicas import SECRET
from support.worlds import request


def open_store(folder: Path) -> Store:
    """The store that all replicas of a storm share."""
    bucket = folder / "bucket.json"
    if bucket.exists():
        return S3Store(S3Settings(**json.loads(bucket.read_bytes())))
    return LocalStore(folder, secret=b"s", public_url="http://retouch.example", result_ttl_s=3600)


async def main(folder: Path, port: int, scale: float, edit_s: float) -> None:
    store = open_store(folder)
    house = House(store=store, max_queue=1000)  # type: ignore[arg-type]
    house.engine.at_step = lambda _: time.sleep(edit_s / 5)

    async def run(
        asked: EditRequest, job_id: str, caller: Caller, progress: Callable[[Progress], None]
    ) -> EditResult:
        return await house.editor.run(
            asked, job_id=job_id, request_id=caller.request_id, progress=progress
        )

    records = Records(lambda: store, prefix="p/")
    poster = Poster(FetchLimits(allowed_hosts=frozenset([f"127.0.0.1:{port}"])))
    jobs = Jobs(
        records,
        JobSettings(max_unfinished=1000),
        run=run,
        require_ready=lambda: None,
        webhooks=Webhooks(records, poster, decode_webhook_secret(SECRET), scale=scale),
        scale=scale,
    )
    jobs.start()
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    print("up", flush=True)  # noqa: T201
    while job_id := (await lines.readline()).decode().strip():
        asked = request(webhook=f"http://127.0.0.1:{port}/{job_id}")
        try:
            await jobs.accept(asked, job_id, Caller(owner="", request_id=job_id))
        except EditError as error:
            print(f"refused {job_id} {error.code}", flush=True)  # noqa: T201
        else:
            print(f"ok {job_id}", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
