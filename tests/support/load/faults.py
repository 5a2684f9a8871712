"""Faults of a mixed load: origins that fail, and faults planted inside the service."""

import json
from dataclasses import replace
from pathlib import Path

from support.load.requests import OVERLOAD, Ask, Requests, serve_picture
from support.servers.origin import Exchange, Script, answer, redirect, reset_after, say

FIRST_PLANTED_SEED = 4_000_000_000
PLANTED = ("crash", "memory", "store")
_FAILING: dict[str, tuple[Script, frozenset[str]]] = {
    "status-403": (answer(status=403), frozenset({"source_refused"})),
    "status-429": (answer(status=429), frozenset({"source_failing"})),
    "status-500": (answer(status=500), frozenset({"source_failing"})),
    "reset": (reset_after(b""), frozenset({"source_connect_failed", "source_malformed"})),
    "cut": (answer(b"\xff\xd8", length=1000), frozenset({"source_malformed"})),
    "page": (answer(b"<!doctype html><p>Sign in"), frozenset({"unsupported_image"})),
    "loop": (redirect("/loop/0.png"), frozenset({"source_misdirected"})),
    "inside": (redirect("http://169.254.169.254/"), frozenset({"source_unreachable"})),
    "gzip": (
        answer(b"\x1f\x8b", headers=["Content-Encoding: gzip"]),
        frozenset({"source_encoded"}),
    ),
    "no-http": (say(b"220 ready\r\n"), frozenset({"source_malformed", "source_timed_out"})),
}
FAILING = tuple(_FAILING)
_PLANT = f"""
def _plant():
    import json

    from retouch.engine.engine import QwenEngine
    from retouch.storage.local import LocalStore

    edit, put = QwenEngine.edit, LocalStore.put
    kinds = {len(PLANTED)}

    def fail_edit(self, prepared, **options):
        number = prepared.params.seed - {FIRST_PLANTED_SEED}
        if number >= 0 and number % kinds == 0:
            raise RuntimeError("planted")
        if number >= 0 and number % kinds == 1:
            raise MemoryError("planted")
        return edit(self, prepared, **options)

    def fail_put(self, key, body, *, metadata, **options):
        if json.loads(metadata.get("meta", "{{}}")).get("seed", 0) >= {FIRST_PLANTED_SEED}:
            raise OSError("planted")
        return put(self, key, body, metadata=metadata, **options)

    QwenEngine.edit, LocalStore.put = fail_edit, fail_put


_plant()
"""


async def serve_failing(exchange: Exchange) -> None:
    """Fail as the first folder of the path says, or serve an image."""
    folder = exchange.target.split("/")[1].partition("_")[0]
    script = _FAILING[folder][0] if folder in _FAILING else serve_picture
    await script(exchange)


def plant(folder: Path) -> None:
    """Make the service in `folder` fail inside for seeds from `FIRST_PLANTED_SEED` on."""
    program = folder / "service.py"
    text = program.read_text(encoding="utf-8")
    program.unlink()
    program.write_text(text + _PLANT, encoding="utf-8")


def failing(make: Requests, number: int, turn: int) -> Ask:
    """Return a request whose origin fails; the kinds of failure alternate."""
    name = FAILING[turn % len(FAILING)]
    ask = make.edit(number, "new")
    body = json.loads(ask.content)
    body["image_url"] = body["image_url"].replace(f"/new-{number}/", f"/{name}_{number}/")
    codes = _FAILING[name][1] | OVERLOAD
    return replace(ask, kind=name, content=json.dumps(body).encode(), codes=codes)


def planted(make: Requests, turn: int) -> Ask:
    """Return a request that meets a fault planted inside the service."""
    number = FIRST_PLANTED_SEED + turn
    ask = make.edit(number, "cached")
    codes = frozenset({"model_failed", "internal_error", "storage_failed", "store_unavailable"})
    return replace(ask, kind=f"planted {PLANTED[turn % len(PLANTED)]}", codes=codes)
