"""Run jobs on two replicas of one store, kill them again and again, and count ends and webhooks.

PYTHONPATH=src:tests python tests/bench/job_storm.py --help

Time is scaled. The receiver refuses every odd delivery of a message and verifies each. The exit
status is 1 if a job has no end, an end other than completed or worker_lost, no webhook, or two bodies.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from standardwebhooks import Webhook
from support.processes.storm_replica import open_store
from support.replicas import SECRET
from support.servers.ceph_rgw import Rgw

from retouch.jobs.records import Records
from retouch.storage.s3 import S3Settings

PROGRAM = Path(__file__).parents[1] / "support" / "processes" / "storm_replica.py"


@dataclass
class Receiver:
    """Takes webhooks; `taken` counts those answered with 200, `bodies` what came under each id."""

    deliveries: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    bodies: defaultdict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            Webhook(SECRET).verify(body, headers)
            name = headers["webhook-id"]
            self.bodies[name].add(body)
            self.deliveries[name] += 1
            is_odd = self.deliveries[name] % 2 == 1
            if not is_odd:
                self.taken[json.loads(body)["data"]["id"]] += 1
            status = b"500 No" if is_odd else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()


class Storm:
    """Two replicas that are killed and started again; jobs are sent until one accepts them."""

    def __init__(self, folder: Path, port: int, asked: argparse.Namespace) -> None:
        self._arguments = [folder, port, asked.scale, asked.edit_s]
        self._replicas: list[asyncio.subprocess.Process] = []
        self.kills = 0

    async def start(self) -> asyncio.subprocess.Process:
        replica = await asyncio.create_subprocess_exec(
            *(sys.executable, str(PROGRAM), *map(str, self._arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert replica.stdout
        await replica.stdout.readline()  # it is up
        self._replicas.append(replica)
        return replica

    async def kill_one(self) -> None:
        replica = self._replicas.pop(0)
        os.kill(replica.pid, signal.SIGKILL)
        await replica.wait()
        self.kills += 1
        await self.start()

    async def send(self, job_id: str) -> None:
        while True:
            replica = random.choice(self._replicas)  # noqa: S311
            with contextlib.suppress(OSError, TimeoutError):
                assert replica.stdin
                assert replica.stdout
                replica.stdin.write(f"{job_id}\n".encode())
                async with asyncio.timeout(10):
                    if (await replica.stdout.readline()).startswith(b"ok"):
                        return
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        for replica in self._replicas:
            with contextlib.suppress(ProcessLookupError):
                replica.kill()
            await replica.wait()


@contextlib.asynccontextmanager
async def killing(storm: Storm, every_s: float) -> AsyncIterator[None]:
    async def kill() -> None:
        while True:
            await asyncio.sleep(every_s)
            await storm.kill_one()

    task = asyncio.create_task(kill())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def read_ends(folder: Path, jobs: list[str]) -> Counter[str]:
    """Count how the jobs ended: a state, the code of an error, or none."""
    store = open_store(folder)
    records = Records(lambda: store, prefix="p/")
    ends: Counter[str] = Counter()
    for job_id in jobs:
        ended = await records.ended(job_id)
        error = ended.answer.get("error") if ended else None
        ends[error["details"]["code"] if error else ended.state if ended else "none"] += 1
    return ends


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[None]:
    """Start a real S3 server, and have the replicas use it."""
    (folder / "rgw").mkdir()
    with Rgw(folder / "rgw") as server:
        settings = S3Settings(
            endpoint=server.endpoint,
            access_key=server.access_key,
            secret_key=server.secret_key,
            bucket=server.bucket,
            region="us-west-000",
            secure=False,
        )
        (folder / "bucket.json").write_text(json.dumps(asdict(settings)))
        yield


async def run(asked: argparse.Namespace) -> int:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    jobs = [f"job-{number}" for number in range(asked.jobs)]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as server_of_store:
        if asked.bucket:
            server_of_store.enter_context(bucket(Path(name)))
        storm = Storm(Path(name), port, asked)
        try:
            await storm.start()
            await storm.start()
            async with killing(storm, asked.kill_every_s):
                for job_id in jobs:
                    await storm.send(job_id)
                    await asyncio.sleep(asked.send_every_s)
            give_up_s = time.monotonic() + asked.patience_s
            while len(receiver.taken) < len(jobs) and time.monotonic() < give_up_s:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        finally:
            await storm.end()
            server.close()
        ends = await read_ends(Path(name), jobs)
    twice = [name for name, bodies in receiver.bodies.items() if len(bodies) > 1]
    lost = sorted({*jobs} - {*receiver.taken})
    print(  # noqa: T201
        f"{len(jobs)} jobs, {storm.kills} kills, {time.monotonic() - began_s:.0f} s: "
        f"{dict(ends)}; {len(lost)} webhooks lost {lost[:5]}, "
        f"{receiver.deliveries.total()} deliveries, {len(twice)} ids with two bodies"
    )
    return int(bool(twice or lost or ends.keys() - {"completed", "worker_lost"}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--kill-every-s", type=float, default=4.0)
    parser.add_argument("--send-every-s", type=float, default=0.2)
    parser.add_argument("--edit-s", type=float, default=0.2, help="seconds on the model")
    parser.add_argument("--scale", type=float, default=0.05, help="of heartbeats, sweeps and tries")
    parser.add_argument("--bucket", action="store_true", help="on a real S3 server (Ceph's)")
    parser.add_argument("--patience-s", type=float, default=60.0, help="for the last webhooks")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
