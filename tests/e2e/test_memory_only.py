"""No part of an edit is written to disk, except by the store."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.servers.bentoml_service import ALL_DAY, LiveOrigin, Service
from support.servers.origin import answer

pytestmark = pytest.mark.e2e


def written(service: Service, *, since: int = 0) -> list[str]:
    """Return what the service's processes have opened for writing, a line each."""
    return (service.folder / "audit").read_text().splitlines()[since:]


def work(service: Service, origin: LiveOrigin) -> None:
    """Have edits of every kind and outcome."""
    url = origin.offer("/memory.jpg")
    for output_format in ("png", "jpeg", "webp", "avif"):
        service.edit(output_format=output_format)
        service.edit(image_url=url, output_format=output_format)
    assert service.ask(image_url=origin.offer("/no", answer(status=404))).status_code == 502
    assert service.ask(image_url=origin.offer("/text", answer(b"text"))).status_code == 400
    with service.stream(**ALL_DAY) as left:
        left.skip_to("progress", stage="denoise")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: service.edit(image_url=url, seed=seed), range(4)))
    service.client.get("/metrics").raise_for_status()


def test_edits_open_no_file_for_writing(s3: Service, origin: LiveOrigin) -> None:
    s3.edit(image_url=origin.offer("/first.jpg"))
    assert written(s3)  # the hook hears
    before = len(written(s3))
    work(s3, origin)
    assert written(s3, since=before) == []


def test_edits_write_to_the_local_store_only(local: Service, origin: LiveOrigin) -> None:
    local.edit(image_url=origin.offer("/first.jpg"))
    before = len(written(local))
    work(local, origin)
    places = {line.partition(" ")[2] for line in written(local, since=before)}
    assert places
    assert all(Path(place).is_relative_to(local.store) for place in places)
