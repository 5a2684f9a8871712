"""Kills writers to the local store, and checks its folder afterwards.

The tests kill a few, `tests/bench/killed_workers.py` many.
"""

import hashlib
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from retouch.storage.local import DRAFT_LIFE_S, LocalStore, load_secret
from retouch.storage.port import StoredObject
from support.processes.killed import Tally
from support.processes.worker_process import ROOT
from support.servers.bentoml_service import SAMPLE, LiveOrigin, Service, started
from support.servers.origin import answer

BODY_BYTES = 200_000
_SECRET_BYTES = 32
_MAX_BYTES = 1 << 26
# A new folder each time, so that kills also hit the creation of the secret.
_WRITE_FOR_EVER = f"""
import hashlib, itertools, os, sys
from pathlib import Path
from retouch.storage.local import LocalStore, load_secret

print(flush=True)
for number in itertools.count():
    folder = Path(sys.argv[1], str(number))
    store = LocalStore(folder, secret=load_secret(folder, ""), public_url="", result_ttl_s=3600)
    for part in range(3):
        body = os.urandom({BODY_BYTES})
        metadata = {{"sha256": hashlib.sha256(body).hexdigest()}}
        key = f"results/a/{{part}}"
        store.put(key, body, content_type="image/png", metadata=metadata, timeout_s=1)
"""


def open_store(folder: Path) -> LocalStore:
    return LocalStore(
        folder, secret=load_secret(folder, ""), public_url="", result_ttl_s=365 * 86400
    )


def judge(folder: Path, tally: Tally) -> None:
    """Require that every file is whole or a draft, and that a later start removes the drafts."""
    drafts = [path for path in (folder / "drafts").rglob("*") if path.is_file()]
    tally.counts["drafts left"] += len(drafts)
    secret = folder / "link_secret"
    if secret.exists() and len(secret.read_bytes()) != _SECRET_BYTES:
        tally.faults.append(f"{secret} is not whole")
    long_ago_s = time.time() - DRAFT_LIFE_S - 1
    for draft in drafts:
        os.utime(draft, (long_ago_s, long_ago_s))
    store = open_store(folder)
    objects = folder / "objects"
    for path in folder.rglob("*"):
        if path.is_dir() or path == secret:
            continue
        if not path.is_relative_to(objects):
            tally.faults.append(f"{path} is left for ever")
            continue
        tally.counts["objects judged"] += 1
        found = store.get(str(path.relative_to(objects)), max_bytes=_MAX_BYTES, timeout_s=1)
        if found is None or not _is_whole(found):
            tally.faults.append(f"{path} is not whole")


def _is_whole(found: StoredObject) -> bool:
    return found.metadata["sha256"] == hashlib.sha256(found.body).hexdigest()


def kill_writers(
    folder: Path, *, kills: int, seed: int, progress: Callable[[str], None] = lambda _: None
) -> Tally:
    """Kill processes that only open stores and write to them."""
    tally, chance = Tally(), random.Random(seed)  # noqa: S311 - which moment is hit
    for number in range(kills):
        place = folder / f"writer-{number}"
        place.mkdir()
        command = [sys.executable, "-c", _WRITE_FOR_EVER, str(place)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        with subprocess.Popen(  # noqa: S603 - our own interpreter and program
            command, env=environment, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(chance.uniform(0, 0.2))
            writer.kill()
        tally.counts["kills"] += 1
        for store in sorted(place.iterdir()):
            judge(store, tally)
        if number % 50 == 49:
            progress(f"{number + 1} of {kills} writers: {dict(tally.counts)}")
    return tally


def kill_services(
    folder: Path, *, kills: int, seed: int, progress: Callable[[str], None] = lambda _: None
) -> Tally:
    """Kill `bentoml serve` during edits; every edit it answered must be stored."""
    tally, chance = Tally(), random.Random(seed)  # noqa: S311 - which moment is hit
    answered: set[str] = set()
    numbers = itertools.count()
    with LiveOrigin() as origin, started(folder, _settings(origin)) as service:
        for number in range(kills):
            service.wait_until_ready()
            with ThreadPoolExecutor(4) as pool:
                asking = [
                    pool.submit(_ask_on, service, origin, numbers, answered) for _ in range(4)
                ]
                time.sleep(chance.uniform(0.2, 2.0))
                service.kill()
            for each in asking:
                each.result()
            tally.counts["kills"] += 1
            tally.counts["edits answered"] = len(answered)
            judge(service.store, tally)
            missing = [key for key in answered if not (service.store / "objects" / key).exists()]
            tally.faults += [f"{key} was answered and is not stored" for key in missing]
            if number % 10 == 9:
                progress(f"{number + 1} of {kills} services: {dict(tally.counts)}")
            service.start()
        service.wait_until_ready()
        service.edit(width=64, height=64, num_inference_steps=1)
    return tally


def _settings(origin: LiveOrigin) -> dict[str, str]:
    return {"ALLOWED_SOURCE_HOSTS": origin.address, "MAX_QUEUE": "8"}


def _offer(origin: LiveOrigin, at: int) -> str:
    """Return a URL, the same for two numbers."""
    return origin.offer(f"/{at // 2}.jpg", answer(SAMPLE, headers=["Content-Type: image/jpeg"]))


def _ask_on(
    service: Service, origin: LiveOrigin, numbers: Iterator[int], answered: set[str]
) -> None:
    """Send one edit after the other until the service is gone."""
    with suppress(httpx.TransportError):
        while True:
            response = service.ask(
                image_url=_offer(origin, next(numbers)), width=64, height=64, num_inference_steps=1
            )
            if response.status_code == httpx.codes.OK:
                answered.add(response.json()["result"]["object_key"])
