"""The requests of the load and soak tests, each recognisable in every part of its answer.

A request's number is its seed and part of its id. Its image carries a number of its own in the
colours of its four quarters, which the demo model keeps.
"""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageStat

from retouch.net.url import parse_url
from support.servers.origin import Exchange, answer

PICTURES = 4096
CACHED_URLS = 8
KEYS = {
    "mixed": "the-api-key-of-mixed",
    "calm": "the-api-key-of-calm",
    "flood": "the-api-key-of-flood",
}
_DARK, _LIGHT = 64, 192
_QUARTERS = ((0, 0), (1, 0), (0, 1), (1, 1))

OVERLOAD = frozenset({"queue_full", "downloads_full", "decoder_busy"})
"""Codes of requests that come when the service has too many; all may be sent again."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Names of one origin on 127.0.0.1; downloads are limited per host, so slow sources have their own."""

    port: int

    @property
    def images(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def slow(self) -> str:
        return f"localhost:{self.port}"

    @property
    def closed(self) -> str:
        """Nothing listens there."""
        return f"127.0.0.2:{self.port}"

    @property
    def allowed(self) -> str:
        return f"{self.images},{self.slow},{self.closed}"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; `codes` are the allowed answers, `success` among them."""

    number: int
    kind: str
    content: bytes
    codes: frozenset[str]
    client: str = "mixed"
    method: str = "POST"
    path: str = "/edit"
    headers: dict[str, str] = field(default_factory=dict)
    streamed: bool = False
    side_px: int = 0
    picture: int = 0
    source_id: str = ""
    leave_after_s: float | None = None


def draw(number: int, side_px: int = 64) -> bytes:
    """Return a PNG whose quarters encode `number` (under `PICTURES`), three bits each."""
    image = Image.new("RGB", (2, 2))
    for quarter, place in enumerate(_QUARTERS):
        bits = number >> 3 * quarter
        image.putpixel(place, tuple(_LIGHT if bits >> c & 1 else _DARK for c in range(3)))
    buffer = io.BytesIO()
    image.resize((side_px, side_px), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def read_number(body: bytes) -> int:
    """Return the number that the quarters of an image encode."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    width, height = image.size
    number = 0
    for quarter, (across, down) in enumerate(_QUARTERS):
        left, top = across * width // 2 + width // 8, down * height // 2 + height // 8
        inner = image.crop((left, top, left + width // 4, top + height // 4))
        for channel, mean in enumerate(ImageStat.Stat(inner).mean):
            number |= (mean > (_DARK + _LIGHT) / 2) << 3 * quarter + channel
    return number


async def serve_picture(exchange: Exchange) -> None:
    """Answer `/<any>/<number>.png` with that picture, `/missing/…` with 404, `/slow/…` never."""
    _, folder, name = exchange.target.split("/")
    if folder == "slow":
        await asyncio.Event().wait()
    if folder == "missing":
        await answer(status=404)(exchange)
        return
    body = draw(int(name.removesuffix(".png")) % PICTURES)
    await answer(body, headers=["Content-Type: image/png", "Cache-Control: max-age=3600"])(exchange)


class Requests:
    """Makes requests of every kind, of one result size."""

    def __init__(self, hosts: Hosts, *, side_px: int, steps: int) -> None:
        self._hosts = hosts
        self._side_px = side_px
        self._steps = steps
        self.leave_within_s = 1.0
        self._kinds: dict[str, Callable[[int, int], Ask]] = {
            "cached": lambda number, _: self.edit(number, "cached"),
            "new": lambda number, _: self.edit(number, "new"),
            "data": lambda number, _: self.edit(number, "data"),
            "stream": lambda number, _: self.edit(number, "stream", streamed=True),
            "hang-up": self._hang_up,
            "wrong": self._wrong,
            "unreachable": self._unreachable,
        }

    def make(self, number: int, kind: str, turn: int) -> Ask:
        """Return request `number`, the `turn`-th of its kind; the cases of a kind alternate."""
        return self._kinds[kind](number, turn)

    def edit(
        self,
        number: int,
        kind: str,
        *,
        client: str = "mixed",
        streamed: bool = False,
        leave_after_s: float | None = None,
    ) -> Ask:
        picture = number % (PICTURES if kind in ("new", "data") else CACHED_URLS)
        folder = f"new-{number}" if kind == "new" else "cached"
        url = f"http://{self._hosts.images}/{folder}/{picture}.png"
        source = parse_url(url).canonical.encode()
        if kind == "data":
            source = draw(picture)
            url = "data:image/png;base64," + base64.b64encode(source).decode()
        return Ask(
            number=number,
            kind=kind,
            content=self._body(number, image_url=url),
            codes=OVERLOAD | {"success"},
            client=client,
            headers=_headers(client, streamed=streamed),
            streamed=streamed,
            side_px=self._side_px,
            picture=picture,
            source_id=hashlib.sha256(source).hexdigest(),
            leave_after_s=leave_after_s,
        )

    def _hang_up(self, number: int, turn: int) -> Ask:
        # Spread evenly over the duration of an edit, by the golden ratio.
        leave_after_s = turn * 0.618 % 1 * self.leave_within_s
        return self.edit(number, "hang-up", streamed=turn % 2 == 1, leave_after_s=leave_after_s)

    def _wrong(self, number: int, turn: int) -> Ask:
        good = self._body(number, image_url=f"http://{self._hosts.images}/cached/0.png")
        text = "data:text/plain,no%20image"
        headers = _headers("mixed")
        cases: tuple[tuple[bytes, dict[str, str], str, str, tuple[str, ...]], ...] = (
            (b"{", headers, "POST", "/edit", ("malformed_body",)),
            (self._body(number, width=100), headers, "POST", "/edit", ("invalid_request",)),
            (self._body(number, unknown=1), headers, "POST", "/edit", ("invalid_request",)),
            (
                good,
                headers | {"Content-Type": "text/plain"},
                "POST",
                "/edit",
                ("unsupported_content_type",),
            ),
            (good, headers | {"X-API-Key": "wrong"}, "POST", "/edit", ("unauthorized",)),
            (good, headers, "POST", "/nothing", ("route_not_found",)),
            (good, headers, "PUT", "/edit", ("method_not_allowed",)),
            (
                self._body(number, image_url=text),
                headers,
                "POST",
                "/edit",
                ("unsupported_image", *OVERLOAD),
            ),
        )
        content, headers, method, path, codes = cases[turn % len(cases)]
        return Ask(
            number, "wrong", content, frozenset(codes), method=method, path=path, headers=headers
        )

    def _unreachable(self, number: int, turn: int) -> Ask:
        cases = (
            (f"http://10.0.0.1/{number}.png", "source_unreachable"),
            (f"http://{self._hosts.closed}/{number}.png", "source_connect_failed"),
            (f"http://{self._hosts.images}/missing/{number}.png", "source_refused"),
            (f"http://{self._hosts.slow}/slow/{number}.png", "source_timed_out"),
        )
        url, code = cases[turn % len(cases)]
        return Ask(
            number,
            "unreachable",
            self._body(number, image_url=url),
            OVERLOAD | {code},
            headers=_headers("mixed"),
        )

    def _body(self, number: int, **fields: object) -> bytes:
        body = {
            "prompt": "keep the image unchanged",
            "seed": number,
            "width": self._side_px,
            "height": self._side_px,
            "num_inference_steps": self._steps,
            **fields,
        }
        return json.dumps(body).encode()


def _headers(client: str, *, streamed: bool = False) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "X-API-Key": KEYS[client]}
    return headers | ({"Accept": "text/event-stream"} if streamed else {})
