"""The service with a real S3 server: cache, bucket, and an outage of the server."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.servers.backblaze import Backblaze
from support.servers.bentoml_service import ALL_DAY, LiveOrigin, Service, serving
from support.servers.ceph_rgw import Rgw
from support.servers.fault_proxy import FaultProxy
from support.servers.origin import answer

pytestmark = pytest.mark.e2e

OUTAGE_S = 10.0


def test_a_second_edit_of_one_url_fetches_nothing(s3: Service, origin: LiveOrigin) -> None:
    url = origin.offer("/twice.jpg")
    first = s3.edit(image_url=url)["meta"]["source"]
    second = s3.edit(image_url=url)["meta"]["source"]
    assert (first["cached"], second["cached"]) == (False, True)
    assert origin.count("/twice.jpg") == 1


def test_twenty_edits_of_one_url_at_once_fetch_it_once(s3: Service, origin: LiveOrigin) -> None:
    url = origin.offer("/at-once.jpg")
    with ThreadPoolExecutor(20) as pool:
        edits = list(pool.map(lambda seed: s3.edit(image_url=url, seed=seed), range(20)))
    assert len({edit["object_key"] for edit in edits}) == 20
    assert origin.count("/at-once.jpg") == 1


def test_edits_send_nothing_that_backblaze_refuses(
    tmp_path: Path, rgw: Rgw, origin: LiveOrigin
) -> None:
    url = origin.offer("/strict.jpg")
    backblaze = Backblaze()
    with FaultProxy(("127.0.0.1", rgw.port), otherwise=backblaze) as proxy:
        settings = {
            "ALLOWED_SOURCE_HOSTS": origin.address,
            **rgw.settings(proxy.endpoint),
        }
        with serving(tmp_path, settings) as service:
            first = service.edit(image_url=url)
            second = service.edit(image_url=url)
        assert second["meta"]["source"]["cached"]
        assert httpx.get(first["presigned_url"], trust_env=False).status_code == httpx.codes.OK
    assert backblaze.refused == []
    methods = [exchange.method for exchange in proxy.seen]
    assert methods[:4] == ["PUT", "GET", "DELETE", "GET"]  # the check at the start
    assert (
        sorted(methods[4:]) == ["GET"] * 3 + ["PUT"] * 3
    )  # two look-ups and the link; what is kept


def result_names(rgw: Rgw, settings_prefix: str = "qwen-image-edit/") -> set[str]:
    """Return the names of all results in the bucket, without their extension: the job ids."""
    found = rgw.client(region="us-west-000").list_objects(
        bucket_name=rgw.bucket, prefix=f"{settings_prefix}results/", recursive=True
    )
    return {str(each.object_name).rpartition("/")[2].partition(".")[0] for each in found}


def test_a_result_is_in_the_bucket_and_nothing_of_a_failed_job(
    s3: Service, rgw: Rgw, origin: LiveOrigin
) -> None:
    done = s3.edit()["meta"]["job_id"]
    before = result_names(rgw)
    assert done in before
    outcomes = [
        s3.ask(image_url=origin.offer("/absent.jpg", answer(status=404))),
        s3.ask(image_url=origin.offer("/broken.jpg", answer(b"\xff\xd8\xff nothing"))),
        s3.ask(prompt=""),
    ]
    assert [each.status_code for each in outcomes] == [502, 400, 400]
    with s3.busy() as left:
        pass
    s3.wait_for_event("edit.failed", requestId=left.request_id)
    assert result_names(rgw) == before


def kill(rgw: Rgw) -> Callable[[], None]:
    rgw.kill_gateway()
    return rgw.start_gateway


def pause(rgw: Rgw) -> Callable[[], None]:
    rgw.pause_gateway()
    return rgw.resume_gateway


@pytest.mark.parametrize("stop", [kill, pause])
def test_during_an_outage_every_edit_ends_in_time_and_afterwards_edits_succeed(
    s3: Service, rgw: Rgw, origin: LiveOrigin, stop: Callable[[Rgw], Callable[[], None]]
) -> None:
    url = origin.offer(f"/{stop.__name__}.jpg")
    over = threading.Event()
    answers: list[tuple[float, httpx.Response]] = []

    seeds = itertools.count()  # a repeated request is answered without the store

    def keep_asking() -> None:
        while not over.is_set():
            began = time.monotonic()
            response = s3.ask(image_url=url, seed=next(seeds))
            answers.append((time.monotonic() - began, response))

    with ThreadPoolExecutor(4) as pool:
        load = [pool.submit(keep_asking) for _ in range(4)]
        time.sleep(1)
        resume = stop(rgw)
        time.sleep(OUTAGE_S)
        resume()
        healed = time.monotonic()
        recovered = s3.ask(image_url=url)
        while recovered.status_code != 200 and time.monotonic() - healed < 10:
            recovered = s3.ask(image_url=url)
        recovery_s = time.monotonic() - healed
        over.set()
    for each in load:
        each.result()
    assert recovered.status_code == 200, recovered.text
    failed = [response for _, response in answers if response.status_code != 200]
    kinds = {(r.status_code, r.json()["error"]["type"]) for r in failed}
    slowest_s = max(took_s for took_s, _ in answers)
    print(  # noqa: T201
        f"{stop.__name__}: {len(answers)} edits, {len(failed)} failed as {kinds}, "
        f"slowest {slowest_s:.1f} s, well again {recovery_s:.1f} s after the server"
    )
    assert kinds <= {(503, "StorageError")}
    assert failed
    assert slowest_s < 30
    lost = {r.json()["error"]["details"]["request_id"] for r in failed}
    assert stop is pause or not lost & result_names(rgw)


def test_an_unreadable_cache_makes_an_edit_slow_and_does_not_fail_it(
    s3: Service, rgw: Rgw, origin: LiveOrigin
) -> None:
    """The source comes from its origin then; the result still needs the server."""
    url = origin.offer("/slow-day.jpg")
    with s3.stream(**{**ALL_DAY, "image_url": url}) as events:
        resume = kill(rgw)
        try:
            events.skip_to("progress", stage="denoise")
        finally:
            resume()
    # An edit before may have met the outage first: the cache is then left alone for some seconds.
    assert s3.events("cache.failed")
    assert origin.count("/slow-day.jpg") == 1
