"""Sends one request of a load or soak test and checks every part of its answer."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from support.load.requests import Ask, read_number

TIMEOUT_S = 600.0


@dataclass(slots=True)
class Attempt:
    """The outcome of one request; `end` is `answered`, `left` (by the client) or `lost`."""

    id: str
    number: int
    kind: str
    client: str
    phase: str
    due_s: float
    end: str = "lost"
    took_s: float = 0.0
    status: int = 0
    code: str = ""
    retry_after_s: int | None = None
    job_id: str = ""
    object_key: str = ""
    queue_s: float = 0.0
    faults: list[str] = field(default_factory=list)


async def send(
    client: httpx.AsyncClient, ask: Ask, *, phase: str, due_s: float, began_s: float, again: int = 0
) -> Attempt:
    """Send `ask`, read its answer and check it; times are seconds since `began_s`.

    The answer is timed from the moment the request was due, so a late sender hides no delay.
    """
    name = f"load-{ask.number}" + (f".{again}" if again else "")
    attempt = Attempt(name, ask.number, ask.kind, ask.client, phase, due_s)
    try:
        async with asyncio.timeout(ask.leave_after_s):
            answer = await _exchange(client, ask, name)
        attempt.took_s = time.monotonic() - began_s - due_s
        attempt.end = "answered"
        result = _read(attempt, ask, *answer)
        if result:
            await _judge_result(client, attempt, ask, result)
    except TimeoutError:
        attempt.end = "left"
        attempt.took_s = time.monotonic() - began_s - due_s
    except (httpx.HTTPError, ValueError, LookupError) as error:
        attempt.end = "lost"
        attempt.faults.append(f"{type(error).__name__}: {error}")
    return attempt


async def _exchange(
    client: httpx.AsyncClient, ask: Ask, name: str
) -> tuple[int, Mapping[str, str], str]:
    response = await client.request(
        ask.method,
        ask.path,
        content=ask.content,
        headers={**ask.headers, "X-Request-ID": name},
        timeout=TIMEOUT_S,
    )
    return response.status_code, response.headers, response.text


def _read(
    attempt: Attempt, ask: Ask, status: int, headers: Mapping[str, str], text: str
) -> dict[str, Any] | None:
    """Record the answer; return its result, if it has one."""
    attempt.status = status
    if headers.get("x-request-id") != attempt.id:
        attempt.faults.append(f"the answer is of request {headers.get('x-request-id')}")
    if ask.streamed and status == httpx.codes.OK:
        body = _read_stream(attempt, text)
    else:
        body = json.loads(text)
    if body.get("status") == "success":
        attempt.code = "success"
    else:
        details = body["error"]["details"]
        attempt.code = details["code"]
        attempt.retry_after_s = details.get("retry_after")
        if not ask.streamed and attempt.code == "queue_full":
            attempt.retry_after_s = int(headers["retry-after"])
        if details["request_id"] != attempt.id:
            attempt.faults.append(f"the error is of request {details['request_id']}")
    if attempt.code not in ask.codes:
        attempt.faults.append(f"answered {attempt.code}, not {' or '.join(sorted(ask.codes))}")
    return body.get("result")


def _read_stream(attempt: Attempt, text: str) -> dict[str, Any]:
    """Return the last event's body, which is the only `result` or `error`."""
    events = [block.split("\n", 1) for block in text.split("\n\n") if block.startswith("event: ")]
    ends = [data for name, data in events if name in ("event: result", "event: error")]
    if len(ends) != 1 or events[-1][1] != ends[0]:
        attempt.faults.append(f"a stream with {len(ends)} ends")
    body: dict[str, Any] = json.loads(ends[-1].removeprefix("data: "))
    return body


async def _judge_result(
    client: httpx.AsyncClient, attempt: Attempt, ask: Ask, result: dict[str, Any]
) -> None:
    meta = result["meta"]
    attempt.job_id, attempt.object_key = meta["job_id"], result["object_key"]
    attempt.queue_s = meta["timings_ms"]["queue"] / 1000
    picture = await client.get(result["presigned_url"], timeout=TIMEOUT_S)
    found = {
        "request": meta["request_id"],
        "seed": meta["seed"],
        "size": (meta["width"], meta["height"]),
        "source": result["object_key"].split("/")[-2],
        "picture": read_number(picture.raise_for_status().content),
    }
    wanted = {
        "request": attempt.id,
        "seed": ask.number,
        "size": (ask.side_px, ask.side_px),
        "source": ask.source_id,
        "picture": ask.picture,
    }
    attempt.faults += [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    ]
