"""Pages of other origins: refused by browsers, unless BentoML's CORS setting allows them."""

import httpx
import pytest
from support.servers.bentoml_service import Service, require_error

pytestmark = pytest.mark.e2e
PAGE_ORIGIN = "https://app.example"


def preflight(service: Service, path: str, origin: str = PAGE_ORIGIN) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return httpx.options(f"{service.url}{path}", headers=headers, trust_env=False)


def test_without_the_setting_a_preflight_is_no_method_of_the_route(local: Service) -> None:
    response = preflight(local, "/edit", origin=local.url)
    require_error(response, 405, "BadInput", "method_not_allowed")
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_preflight_needs_no_key_and_lets_an_allowed_page_send_one(strict: Service) -> None:
    response = preflight(strict, "/edit")
    assert response.status_code == 200, response.text
    assert response.headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert response.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in response.headers["access-control-allow-methods"]


def test_a_page_of_another_origin_is_not_allowed(strict: Service) -> None:
    response = preflight(strict, "/edit", origin="https://other.example")
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


def test_an_allowed_page_may_call_on_loopback_and_another_may_not(strict: Service) -> None:
    for origin, status in ((PAGE_ORIGIN, 401), ("https://other.example", 403)):
        response = httpx.post(f"{strict.url}/edit", headers={"Origin": origin}, trust_env=False)
        assert response.status_code == status


def test_an_allowed_page_may_read_answers_and_errors_with_their_ids(strict: Service) -> None:
    headers = {"Origin": PAGE_ORIGIN}
    for response in (
        strict.ask(headers=headers),
        strict.ask(headers=headers, prompt=""),
        httpx.post(f"{strict.url}/edit", headers=headers, trust_env=False),
    ):
        assert response.headers["access-control-allow-origin"] == PAGE_ORIGIN
        assert "X-Request-ID" in response.headers["access-control-expose-headers"]
