"""Kills workers in the middle of their work, and holds the bucket to what was promised of it.

The tests kill a few, `tests/bench/killed_workers.py` many.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minio import Minio

from retouch.storage.keys import result_key
from support.images.samples import photo, saved
from support.processes.worker_process import ROOT, WorkerProcess
from support.servers.bentoml_service import LiveOrigin
from support.servers.ceph_rgw import Rgw
from support.servers.origin import answer
from support.servers.runpod_api import Job, Platform
from support.servers.upload_relay import Relay

SEEDS = 6
SIDE_PX = 256
PICTURE = saved(photo(320, 240), "PNG")
LOAD = 12
SPAN_S = 2.0
"""How long after its first job a worker is killed at the latest."""
BYTES_PER_S = 400_000
"""Of one connection to the bucket: a result of 0.2 MB is long under way."""
_AT_A_TIME = 4
_GONE_WITHIN_S = 5.0


@dataclass
class Tally:
    """What was done, what was found, and what should not have been."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass
class Victims:
    """Workers that are killed one after the other, and the jobs that they pass on to the next."""

    platform: Platform
    origin: LiveOrigin
    relay: Relay
    bucket: str
    client: Minio
    environment: dict[str, str]
    prefix: str
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    wanted: dict[int, bytes] = field(default_factory=dict)
    """What an undisturbed worker makes of each seed."""
    start_s: float = 0.0
    _seen: set[tuple[str, str, str]] = field(default_factory=set)
    _told: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        with TemporaryDirectory() as name:
            command = [str(ROOT / "tests/support/processes/noisy_worker.py")]
            with WorkerProcess(Path(name), command, self.environment) as process:
                yield process

    def learn(self) -> None:
        """Have one worker do its work in peace."""
        jobs = [self._submit(number) for number in range(SEEDS)]
        began_s = time.monotonic()
        with self.worker() as process:
            self._wait_for(lambda: self.platform.batches, process)
            self.start_s = time.monotonic() - began_s
            for job in jobs:
                self.platform.wait(job)
                assert job.state == "COMPLETED", job.public()
                key = job.output["result"]["object_key"]
                self.wanted[job.input["seed"]] = self._body(key)
        assert len(set(self.wanted.values())) == SEEDS

    def kill(self, *, in_start: bool) -> None:
        """Kill a worker that has plenty to do; then judge what it has left."""
        self._requeue()
        waiting = sum(job.state == "IN_QUEUE" for job in self.platform.jobs.values())
        for _ in range(LOAD - waiting):
            self._submit(len(self.platform.jobs))
        batches = len(self.platform.batches)
        with self.worker() as process:
            if in_start:
                time.sleep(self.chance.uniform(0, self.start_s))
            else:
                self._wait_for(lambda: len(self.platform.batches) > batches, process)
                time.sleep(self.chance.uniform(0, SPAN_S))
            under_way = len(self.relay.under_way)
            started = process.kill()
            if with_its_machine := self.chance.random() < 0.5:
                self.relay.drop()
            at_work = [j for j in self.platform.jobs.values() if j.state == "IN_PROGRESS"]
            self.tally.counts["kills"] += 1
            self.tally.counts["kills in the start"] += in_start
            self.tally.counts["jobs in hand"] += len(at_work)
            self.tally.counts["uploads under way"] += under_way
            self.tally.counts["kills with all connections"] += with_its_machine
            self._require_gone(started)
        self.relay.wait_until_idle()
        self.tally.counts["uploads cut short"] = len(self.relay.cut_short)
        self.judge()

    def finish(self) -> None:
        """Run every job again in peace, and compare."""
        before = {each[0]: each for each in self._list()}
        told = {job.id: job for job in self.platform.jobs.values() if job.state == "COMPLETED"}
        self.tally.counts["jobs"] = len(self.platform.jobs)
        self.tally.counts["jobs answered before"] = len(told)
        for job in told.values():
            self._told[job.id] = job.output["result"]["object_key"]
            if self._told[job.id] not in before:
                self.tally.faults.append(f"{job.id} was answered and is not stored")
        with self.worker() as process:
            for job in list(self.platform.jobs.values()):
                again = self._again(job, process)
                self._compare(again, before)
        self._seen.clear()
        self.judge()

    def judge(self) -> None:
        """Require that every object is one that was wanted, and whole."""
        for found in self._list():
            if found in self._seen:
                continue
            self._seen.add(found)
            self.tally.counts["objects judged"] += 1
            key = found[0]
            response = self.client.get_object(bucket_name=self.bucket, object_name=key)
            with response:
                body = response.read()
                said = response.headers.get("x-amz-meta-sha256")
            if fault := self._fault_of(key, body, said):
                self.tally.faults.append(f"{key}: {fault}")

    def _fault_of(self, key: str, body: bytes, said: str | None) -> str:
        kind, _, rest = key.removeprefix(self.prefix).partition("/")
        if kind == "check":
            self.tally.counts["probes left"] += 1
            return "" if body == key.encode() else "another body"
        if hashlib.sha256(body).hexdigest() != said:
            return f"{len(body)} bytes of another hash"
        job = self.platform.jobs.get(rest.rpartition("/")[2].removesuffix(".png"))
        if kind == "results" and job is not None:
            return "" if body == self.wanted[job.input["seed"]] else "another picture"
        return "" if kind == "sources" and body == PICTURE else "nobody wanted it"

    def _compare(self, job: Job, before: dict[str, tuple[str, str, str]]) -> None:
        if job.state != "COMPLETED":
            self.tally.faults.append(f"{job.id} ended as {job.public()}")
            return
        result = job.output["result"]
        key, url = result["object_key"], job.input["image_url"]
        source_id = hashlib.sha256(url.encode()).hexdigest()
        if key != result_key(self.prefix, source_id, job.id, "png"):
            self.tally.faults.append(f"{job.id} went to {key}")
        if self._told.get(job.id, key) != key:
            self.tally.faults.append(f"{job.id} was at {self._told[job.id]}, and now at {key}")
        if self._body(key) != self.wanted[job.input["seed"]]:
            self.tally.faults.append(f"{job.id} made other bytes")
        was_found = result["meta"]["timings_ms"]["denoise"] == 0
        if key in before and not was_found:
            self.tally.faults.append(f"{job.id} was stored, and yet made again")
        self.tally.counts["retried, found" if was_found else "retried, made again"] += 1

    def _again(self, job: Job, process: WorkerProcess) -> Job:
        while True:
            again = self.platform.retry(job)
            give_up_at_s = time.monotonic() + 10
            while again.state not in ("COMPLETED", "FAILED"):
                assert process.status is None, process.output[-2000:]
                if time.monotonic() > give_up_at_s:
                    break  # a worker that died while it waited for a job may have been given it
                time.sleep(0.002)
            else:
                return again

    def _submit(self, number: int) -> Job:
        target = f"/{number // 2}.png"
        fields: dict[str, Any] = {"prompt": "make colors warmer", "seed": number % SEEDS}
        fields |= {"width": SIDE_PX, "height": SIDE_PX, "num_inference_steps": 3}
        url = self.origin.offer(target, answer(PICTURE, headers=["Content-Type: image/png"]))
        return self.platform.submit({"image_url": url, "output_format": "png", **fields})

    def _requeue(self) -> None:
        for job in list(self.platform.jobs.values()):
            if job.state == "FAILED":
                self.tally.faults.append(f"{job.id} ended as {job.public()}")
            if job.state == "IN_PROGRESS":
                self.tally.counts["jobs passed on"] += 1
                self.platform.retry(job)

    def _require_gone(self, started: list[int]) -> None:
        """Require that the decoder's children end; the SDK's heartbeat does not, and is ended."""
        decoders = [pid for pid in started if "decoder" in _command(pid)]
        give_up_at_s = time.monotonic() + _GONE_WITHIN_S
        while left := [pid for pid in decoders if _command(pid)]:
            if time.monotonic() > give_up_at_s:
                self.tally.faults.append(f"{len(left)} decoders outlived their worker")
                return
            time.sleep(0.02)
        self.tally.counts["decoders that ended with their worker"] += len(decoders)

    def _wait_for(self, is_so: Callable[[], object], process: WorkerProcess) -> None:
        def is_so_or_ended() -> object:
            assert process.status is None, process.output[-2000:]
            return is_so()

        self.platform.wait_for(is_so_or_ended)

    def _list(self) -> list[tuple[str, str, str]]:
        found = self.client.list_objects(
            bucket_name=self.bucket, prefix=self.prefix, recursive=True
        )
        return [(str(o.object_name), str(o.etag), str(o.last_modified)) for o in found]

    def _body(self, key: str) -> bytes:
        with self.client.get_object(bucket_name=self.bucket, object_name=key) as response:
            return response.read()


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@contextmanager
def victims(rgw: Rgw, *, seed: int) -> Iterator[Victims]:
    """Make ready all that a worker needs, and let one work in peace."""
    with (
        LiveOrigin() as origin,
        Platform(hold_s=0.2) as platform,
        Relay(("127.0.0.1", rgw.port), bytes_per_s=BYTES_PER_S) as relay,
    ):
        settings = {
            "ALLOWED_SOURCE_HOSTS": origin.address,
            **rgw.settings(relay.endpoint),
            "REUSE_RESULTS": "false",  # each job makes an object of its own
            "S3_OBJECT_PREFIX": f"killed-{seed}/",
            "PREFETCH_JOBS": str(_AT_A_TIME - 1),
        }
        made = Victims(
            platform,
            origin,
            relay,
            rgw.bucket,
            rgw.client(region="us-west-000"),
            platform.environment | settings,
            settings["S3_OBJECT_PREFIX"],
            random.Random(seed),  # noqa: S311 - which moment is hit
        )
        made.learn()
        yield made


def kill_workers(
    rgw: Rgw, *, kills: int, seed: int, progress: Callable[[str], None] = lambda _: None
) -> Tally:
    """Kill so many workers, one in ten while it starts, and return what came of it."""
    with victims(rgw, seed=seed) as at_work:
        for number in range(kills):
            at_work.kill(in_start=number % 10 == 9)
            if number % 10 == 9:
                progress(f"{number + 1} of {kills}: {dict(at_work.tally.counts)}")
        at_work.finish()
        return at_work.tally
