"""Requests that bring adapters by URL."""

from dataclasses import replace
from typing import Any

from support.fakes import House, until
from support.worlds import refused, run

from retouch.editing.adapter_ports import HeldAdapter
from retouch.editing.ports import AdapterInfo
from retouch.errors import InvalidRequest, UnsupportedLora
from retouch.schema import lora_key

URL, SHA = "https://a.example/l?token=x", "ab" * 32
ASKED: dict[str, Any] = {"loras": [{"url": URL, "sha256": SHA, "scale": 0.5}]}


class FakeFetcher:
    def __init__(self, *, rank: int = 4) -> None:
        self.asked: list[tuple[str, str]] = []
        self.fault: UnsupportedLora | None = None
        self.rank = rank

    async def load(self, url: str, sha256: str, *, timeout_s: float) -> HeldAdapter:
        assert timeout_s > 0
        self.asked.append((url, sha256))
        if self.fault:
            raise self.fault
        return HeldAdapter(AdapterInfo(lora_key(sha256), sha256, 60, self.rank), b"weights")


def open_house(fetcher: FakeFetcher) -> House:
    house = House()
    house.editor.steps.adapters = fetcher
    house.engine.info = replace(house.engine.info, lora_urls=True, max_adapter_rank=128)
    return house


async def test_meta_names_the_adapter_by_its_hash() -> None:
    fetcher = FakeFetcher()
    meta = (await run(open_house(fetcher), **ASKED)).result.meta
    assert meta.model_dump()["loras"] == [
        {"name": lora_key(SHA), "scale": 0.5, "sha256": SHA, "layers": 60, "merged": False}
    ]
    assert fetcher.asked == [(URL, SHA)]


async def test_urls_are_refused_before_anything_is_fetched_where_they_are_not_allowed() -> None:
    house = House()
    error = await refused(house, InvalidRequest, **ASKED)
    assert error.details["fields"] == {"loras": "URLs are not allowed here (ALLOW_LORA_URLS)"}
    assert not house.origin.asked


async def test_a_file_that_cannot_be_used_is_refused_under_its_field() -> None:
    fetcher = FakeFetcher()
    fetcher.fault = UnsupportedLora("no layer for the key x")
    error = await refused(open_house(fetcher), UnsupportedLora, **ASKED)
    assert error.message == "loras[0].url: no layer for the key x"
    assert error.details["source"] == "loras[0].url"


async def test_ranks_over_those_that_were_planned_are_refused() -> None:
    error = await refused(open_house(FakeFetcher(rank=129)), InvalidRequest, **ASKED)
    assert error.details["fields"] == {
        "loras": "the ranks together are 129; at most 128 fit one edit"
    }


async def test_a_result_is_reused_for_the_same_hash_whatever_the_url() -> None:
    house = open_house(FakeFetcher())
    first = (await run(house, seed=7, **ASKED)).result
    await until(lambda: any("reuse/v1/" in key for key in house.store.objects))
    elsewhere = {"loras": [{"url": "https://b.example/", "sha256": SHA, "scale": 0.5}]}
    again = (await run(house, job_id="2", seed=7, **elsewhere)).result
    assert again.meta.reused
    assert again.object_key == first.object_key
    other = {"loras": [{"url": URL, "sha256": "cd" * 32, "scale": 0.5}]}
    assert not (await run(house, job_id="3", seed=7, **other)).result.meta.reused
