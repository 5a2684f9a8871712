"""Attacks a running HTTP service and counts: contract, hostile requests, slow callers, crowds, API keys.

PYTHONPATH=src:tests python tests/bench/hostile_api.py --help

The exit status is 1 if a bar is missed. Everything stays on 127.0.0.1.
"""

import argparse
import base64
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from support.attacks import raw_forms, raw_http
from support.attacks.raw_http import MIB, Call, fault, get, post, send
from support.attacks.slow_clients import SLOW, Watch, connect, count, hold_slow, push, time_calls
from support.servers.bentoml_service import Service, serving

from retouch.schema import BLANK_PATTERN

HOOKS = str(Path(__file__).parents[1] / "e2e" / "schemathesis_hooks.py")
KEY = "key-" + "5d1f0c" * 6
# 25 MiB of image, in base64, and 64 KiB.
MAX_BODY_BYTES = 2 * 26_214_400 * 4 // 3 + 65536
# One whole body, its pieces before they are joined, and garbage not yet collected.
GROWTH_BAR_BYTES = 4 * MAX_BODY_BYTES
LIVE = Call("health", get(b"/readyz"), frozenset({200}))
BLANKS: list[dict[str, str]] = [{"type": "null"}, {"type": "string", "pattern": BLANK_PATTERN}]
CONFIG = """
[[operations]]
include-path = "/jobs/{id}"
# DELETE cancels a job, whose outcome stays readable.
checks = { use_after_free = { enabled = false } }
"""
Row = tuple[str, str, str, bool]


def say_progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def attacked(**settings: str) -> Iterator[tuple[Service, Watch]]:
    say_progress("starting a service")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), settings) as service:
        service.client.headers["X-API-Key"] = KEY
        service.edit(width=64, height=64, num_inference_steps=1)
        yield service, Watch(service.pid)


def picture_url() -> str:
    file = BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")  # a mask too
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def narrow(document: dict[str, Any]) -> dict[str, Any]:
    """Limit edits to small sizes, sources to this host and fields to what the tiny model offers.

    Nothing else in the document changes.
    """
    schemas = document["components"]["schemas"]
    url = {"type": "string", "enum": [picture_url()]}
    side = {"type": "integer", "enum": [64, 80]}
    edit = {
        "image_url": url,
        "mask_url": url,
        "width": side,
        "height": side,
        "image_urls": {"type": "array", "items": url, "minItems": 1, "maxItems": 1},
        "profile": {"type": "string", "enum": ["full"]},
        "loras": {"type": "array", "maxItems": 0},
    }
    images = {"size": {"type": "string", "enum": ["auto", "64x80"]}}
    narrowed = {
        "EditRequest": edit,
        "EditForm": edit,
        "ImagesRequest": images,
        "ImagesForm": images,
    }
    for name, fields in narrowed.items():
        properties = schemas[name]["properties"]
        properties.pop("webhook", None)  # is refused, as WEBHOOK_SECRET is not set
        for field, kind in fields.items():
            blanks = [one for one in properties[field].get("anyOf", []) if one in BLANKS]
            properties[field] = {"anyOf": [kind, *blanks]}
    schemas["ImageReference"]["properties"]["image_url"] = url
    schemas["ImagesRequest"]["properties"]["images"]["maxItems"] = 1
    document["security"].remove({})  # this service requires a key
    text = re.sub(r"https://example\.com/\w+\.(jpg|png)", picture_url(), json.dumps(document))
    return dict(json.loads(text))


def attack_contract(asked: argparse.Namespace) -> list[Row]:
    with attacked(API_KEYS=KEY) as (service, _), tempfile.TemporaryDirectory() as folder:
        document = narrow(service.client.get("/openapi.json").json())
        (Path(folder) / "openapi.json").write_text(json.dumps(document))
        (Path(folder) / "schemathesis.toml").write_text(CONFIG)
        options = ["--url", service.url, "--continue-on-failure", "--no-color"]
        # In both headers, as one valid key is enough.
        options += ["-H", f"X-API-Key: {KEY}", "-H", f"Authorization: Bearer {KEY}"]
        options += ["-n", str(asked.examples), "--seed", str(asked.seed)]
        options += ["--generation-database", "none", "--warnings", "off"]
        tool = str(Path(sys.executable).parent / "schemathesis")
        say_progress(f"schemathesis, {asked.examples} examples an operation")
        run = subprocess.run(  # noqa: S603 - a tool of our own environment
            [tool, "run", "openapi.json", *options],
            cwd=folder,
            env={**os.environ, "SCHEMATHESIS_HOOKS": HOOKS},
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"(\d+) generated", run.stdout)
        cases = int(found[1]) if found else 0
        if run.returncode:
            say_progress(run.stdout + run.stderr[-2000:])
        traces = [line for line in service.output.splitlines() if '"exception"' in line]
    told = f"exit status {run.returncode}, {len(traces)} traces in the log"
    held = run.returncode == 0 and not traces and cases >= asked.cases
    return [("contract, by schemathesis", f"{cases} cases of at least {asked.cases}", told, held)]


def all_calls() -> Iterator[tuple[str, Iterator[Call]]]:
    yield "methods", raw_http.wrong_methods()
    yield "content types", raw_http.wrong_kinds()
    yield "headers and hosts", raw_http.hostile_heads()
    yield "paths and queries", raw_http.hostile_paths()
    yield "lengths and smuggling", raw_http.hostile_lengths(MAX_BODY_BYTES)
    yield "bodies", raw_http.hostile_bodies(MAX_BODY_BYTES)
    yield "forms", raw_forms.hostile_forms(MAX_BODY_BYTES)
    yield "images edits", raw_forms.hostile_images_edits()
    yield "jobs", raw_forms.hostile_jobs()


def attack_calls(_: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    with attacked() as (service, watch):
        for name, calls in all_calls():
            say_progress(name)
            faults, statuses, slowest = [], Counter[int](), (0.0, "")
            with watch.peak() as grown:
                for call in calls:
                    began_s = time.monotonic()
                    answer = send(service.port, call)
                    slowest = max(slowest, (time.monotonic() - began_s, call.name))
                    statuses[answer.status] += 1
                    faults += [wrong] if (wrong := fault(call, answer)) else []
            for wrong in faults[:20]:
                say_progress(f"VIOLATION {wrong}")
            told = ", ".join(f"{status} {number}" for status, number in sorted(statuses.items()))
            told += f"; peak {grown[0] / MIB:+.0f} MiB; slowest {slowest[0]:.2f} s ({slowest[1]})"
            held = not faults and grown[0] < GROWTH_BAR_BYTES
            rows.append((name, f"{len(faults)} of {statuses.total()} wrong", told, held))
        rows.append(require_no_traces(service))
    return rows


def require_no_traces(service: Service) -> Row:
    traces = [line for line in service.output.splitlines() if "Traceback" in line]
    for line in traces[:5]:
        say_progress(f"TRACE {line[-1500:]}")
    return ("traces in the log", "none", str(len(traces)), not traces)


def attack_growth(asked: argparse.Namespace) -> list[Row]:
    """Send endless heads and trailers, and bodies over the limit."""
    chunked = post(b"", b"Transfer-Encoding: chunked")
    endless = {
        "target": (b"GET /", b"a" * 65536),
        "header": (b"GET / HTTP/1.1\r\nA: ", b"a" * 65536),
        "headers": (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 10_000),
        "trailers": (chunked + b"0\r\n", b"A: b\r\n" * 10_000),
        "chunk extension": (chunked + b"1;", b"a" * 65536),
        "requests sent ahead": (b"", get(b"/livez") * 2000),
        "chunks": (chunked, b"10000\r\n" + bytes(65536) + b"\r\n"),
        "chunks of a byte": (chunked, b"1\r\n \r\n" * 10_000),
    }
    rows: list[Row] = []
    with attacked() as (service, watch):
        for name, (first, again) in endless.items():
            say_progress(f"endless {name}")
            with watch.peak() as grown, connect(service.port) as connection:
                sent_bytes = pour(connection, first, again, asked.pour_s)
            told = f"{sent_bytes / MIB:.1f} MiB taken, peak {grown[0] / MIB:+.0f} MiB"
            rows.append((f"endless {name}", "", told, grown[0] < GROWTH_BAR_BYTES))
        rows.append(require_no_traces(service))
    return rows


def pour(connection: Any, first: bytes, again: bytes, limit_s: float) -> int:
    give_up_at_s, sent_bytes = time.monotonic() + limit_s, 0
    try:
        connection.sendall(first)
        while time.monotonic() < give_up_at_s:
            connection.sendall(again)
            sent_bytes += len(again)
    except OSError:  # closed, or no longer read
        pass
    return sent_bytes


def attack_slow(asked: argparse.Namespace) -> list[Row]:
    with attacked(TIMEOUT_SECONDS="40") as (service, watch):
        before = watch.descriptors
        alone_s = time_calls(service.port, LIVE, asked.healthy)
        names = [name for name in SLOW for _ in range(asked.slow)]
        say_progress(f"{len(names)} slow callers, {asked.slow} of each kind")
        with ThreadPoolExecutor(len(names)) as pool:
            held = {
                n: pool.submit(hold_slow, service.port, name, 90) for n, name in enumerate(names)
            }
            time.sleep(3)
            among_s = time_calls(service.port, LIVE, asked.healthy)
            still = sum(not one.done() for one in held.values())
            ends = {
                name: max(held[n].result() for n, own in enumerate(names) if own == name)
                for name in SLOW
            }
        after = watch.wait_until_descriptors(before, 40)
    rows = [(name, "ended within 60 s", f"{s:.0f} s", s < 60) for name, s in ends.items()]
    told = f"{1000 * alone_s:.1f} ms alone, {1000 * among_s:.1f} ms among {still} slow callers"
    rows.append(("health beside them", "within 50 ms more", told, among_s < alone_s + 0.05))
    rows.append(("descriptors", f"{before} before", f"{after} afterwards", after <= before + 2))
    return rows


def attack_crowd(asked: argparse.Namespace) -> list[Row]:
    edit = {"image_url": picture_url(), "prompt": "a", "width": 64, "height": 64}
    call = Call("edit", post(json.dumps(edit | {"num_inference_steps": 1}).encode()))
    with attacked() as (service, watch), ExitStack() as stack:
        before, memory = watch.descriptors, watch.memory_bytes
        say_progress(f"{asked.crowd} idle connections")
        idle = [stack.enter_context(connect(service.port)) for _ in range(asked.crowd)]
        health_s = time_calls(service.port, LIVE, asked.healthy)
        grown = watch.memory_bytes - memory
        told = f"health in {1000 * health_s:.1f} ms, {grown / len(idle) / 1024:.1f} KiB each"
        rows = [(f"{len(idle)} idle connections", "health answers in 1 s", told, health_s < 1)]
        say_progress(f"{asked.crowd} edits at once")
        with ThreadPoolExecutor(1) as pool, watch.peak() as peak:
            pushed = pool.submit(push, service.port, call, asked.crowd)
            time.sleep(1)
            health_s = time_calls(service.port, LIVE, asked.healthy)
            answers = pushed.result()
        statuses = count(answers)
        polite = all(b"retry-after: " in one.head for one in answers if one.status == 429)
        told = f"{dict(statuses)}, health in {1000 * health_s:.1f} ms, {peak[0] / MIB:+.0f} MiB"
        held = set(statuses) == {200, 429} and polite and health_s < 1
        rows.append((f"{asked.crowd} edits at once", "200, or 429 with Retry-After", told, held))
        stack.close()
        after = watch.wait_until_descriptors(before, 40)
        rows.append(("descriptors", f"{before} before", f"{after} afterwards", after <= before + 2))
        again = send(service.port, call).status
        rows.append(("an edit afterwards", "200", str(again), again == 200))
    return rows


def attack_keys(asked: argparse.Namespace) -> list[Row]:
    """Guess keys that share none, half or all but one of the characters, or have another length."""
    guesses = {
        "nothing right": "x" * len(KEY),
        "half right": KEY[: len(KEY) // 2] + "x" * (len(KEY) - len(KEY) // 2),
        "all but the last right": KEY[:-1] + "x",
        "one character short": KEY[:-1],
        "one character": KEY[:1],
    }
    took_us: dict[str, list[float]] = {name: [] for name in guesses}
    with attacked(API_KEYS=f"another-key-of-callers,{KEY}") as (service, _):
        say_progress(f"{asked.guesses} guesses of each of {len(guesses)} kinds")
        order = [name for name in guesses for _ in range(asked.guesses)]
        random.Random(asked.seed).shuffle(order)  # noqa: S311 - an order, not a secret
        for name in order:
            began_ns = time.perf_counter_ns()
            answer = service.client.get("/metrics", headers={"X-API-Key": guesses[name]})
            took_us[name].append((time.perf_counter_ns() - began_ns) / 1000)
            assert answer.status_code == 401
    medians = {name: statistics.median(times) for name, times in took_us.items()}
    ends = [bounds_of_median(times) for times in took_us.values()]
    # Only noise: the 99.9 % intervals of all medians overlap.
    overlap = max(low for low, _ in ends) <= min(high for _, high in ends)
    told = ", ".join(f"{name} {us:.0f} µs" for name, us in medians.items())
    return [(f"{len(order)} guesses of a key", "medians do not differ (99.9 %)", told, overlap)]


def bounds_of_median(values: list[float]) -> tuple[float, float]:
    """Return the interval of order statistics that holds the median with 99.9 %."""
    ordered, half = sorted(values), 3.29 * len(values) ** 0.5 / 2
    middle = len(ordered) / 2
    return ordered[max(0, int(middle - half))], ordered[min(len(ordered) - 1, int(middle + half))]


ATTACKS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "contract": attack_contract,
    "calls": attack_calls,
    "growth": attack_growth,
    "slow": attack_slow,
    "crowd": attack_crowd,
    "keys": attack_keys,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = f"of {', '.join(ATTACKS)}; all if none is named"
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS], metavar="ATTACK", help=told)
    parser.add_argument("--seed", type=int, default=1, help="of what is random")
    parser.add_argument(
        "--examples", type=int, default=1000, help="of each operation, for contract"
    )
    parser.add_argument("--cases", type=int, default=5000, help="at least, for contract")
    parser.add_argument("--pour-s", type=float, default=10, help="seconds of each endless thing")
    parser.add_argument("--slow", type=int, default=10, help="slow callers of each kind")
    parser.add_argument("--crowd", type=int, default=1000, help="callers at once")
    parser.add_argument("--healthy", type=int, default=20, help="healthy calls timed, each way")
    parser.add_argument("--guesses", type=int, default=2700, help="of each kind of key")
    asked = parser.parse_args()
    rows = [row for name in asked.attacks or ATTACKS for row in ATTACKS[name](asked)]
    for name, bar, told, held in rows:
        print(f"{'held' if held else 'MISSED'} | {name} | {bar} | {told}")  # noqa: T201
    return 0 if all(held for *_, held in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
