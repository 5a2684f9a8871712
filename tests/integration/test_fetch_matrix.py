from collections.abc import Callable
from functools import partial
from ipaddress import ip_address

import pytest
from support.attacks.ssrf_matrix import (
    FieldRunner,
    LoraRunner,
    Runner,
    Watch,
    WebhookRunner,
    run_matrix,
)

pytestmark = pytest.mark.integration

WATCH = Watch()


async def test_no_refused_address_is_dialled_whichever_way_leads_to_it() -> None:
    refused, public = await run_matrix(WATCH, seed=1, extra=0, every=7)
    assert refused.violations == public.violations == []
    assert refused.counts.keys() == public.counts.keys()
    assert refused.counts.total() > 1900


@pytest.mark.parametrize(
    "kind",
    [LoraRunner, partial(FieldRunner, field="image_urls"), partial(FieldRunner, field="mask_url")],
    ids=["lora", "image_urls", "mask_url"],
)
async def test_no_refused_address_is_dialled_for_a_lora_file_a_further_image_or_a_mask(
    kind: Callable[[Watch, int], Runner],
) -> None:
    refused, public = await run_matrix(WATCH, seed=1, extra=0, every=29, kind=kind)
    assert refused.violations == public.violations == []
    assert refused.counts.total() > 450


async def test_no_refused_address_is_dialled_for_a_webhook() -> None:
    refused, public = await run_matrix(WATCH, seed=1, extra=0, every=29, kind=WebhookRunner)
    assert refused.violations == []
    # A public host that redirects is not followed, which the other cases count as not reached.
    assert {way.split(":")[0] for way in public.violations} <= {
        way for way in public.counts if way.startswith(("redirect", "rebound"))
    }
    assert refused.counts.total() > 450


async def test_a_rule_that_is_too_weak_shows_in_the_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "retouch.net.connect.is_public", lambda address: ip_address(address).is_global
    )
    refused, _ = await run_matrix(WATCH, seed=1, extra=0, every=499)
    assert len(refused.violations) > 3
    assert all("connects instead of" in violation for violation in refused.violations)
