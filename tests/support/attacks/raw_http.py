"""Hostile requests in raw bytes, and the statuses allowed for each."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

MIB = 1 << 20
REFUSED = frozenset({400, 401, 403, 404, 405, 413, 414, 415, 431, 501})
ENDED = 0
"""Stands for a status: the connection was closed without an answer."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
ROUTES = {
    "/": "GET HEAD",
    "/docs": "GET HEAD",
    "/sample.jpg": "GET HEAD",
    "/demo.webp": "GET HEAD",
    "/page/main.js": "GET HEAD",
    "/info": "GET HEAD",
    "/openapi.json": "GET HEAD",
    "/livez": "GET HEAD",
    "/healthz": "GET HEAD",
    "/readyz": "GET HEAD",
    "/ping": "GET HEAD",
    "/metrics": "GET HEAD",
    "/schema.json": "GET HEAD",
    "/edit": "POST",
    "/v1/images/edits": "POST",
    "/v1/models": "GET HEAD",
    "/files/a": "GET HEAD",
}
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_TRACE = re.compile(rb"Traceback|File \"|site-packages|\.py\b|0x[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Call:
    """`raw` is sent unchanged; the status of the answer must be one of `allowed`."""

    name: str
    raw: bytes
    allowed: frozenset[int] = REFUSED


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: bytes
    body: bytes


def send(port: int, call: Call, *, timeout_s: float = 30) -> Answer:
    """Send and return the first whole answer."""
    raw = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(call.raw)
        with suppress(ConnectionResetError):
            while not is_whole(raw, call.raw) and (piece := connection.recv(65536)):
                raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)  # what follows answers the next request
    return Answer(int(head[9:12] or ENDED), head, body[: int(length[1])] if length else body)


def is_whole(answer: bytes, asked: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    said = _LENGTH.search(head)
    bare = asked.startswith(b"HEAD ") or head[9:12] == b"204"
    return bool(end) and (bare or (said is not None and len(body) >= int(said[1])))


def fault(call: Call, answer: Answer) -> str:
    """Return what is wrong with an answer, or an empty string."""
    if answer.status not in call.allowed:
        return f"{call.name}: answered {answer.status} {answer.body[:200]!r}"
    if answer.status in REFUSED and _TRACE.search(answer.head + answer.body):
        return f"{call.name}: a trace in the answer {answer.body[:200]!r}"
    if answer.status >= 400 and b"application/json" in answer.head and answer.body:
        with suppress(ValueError, KeyError):
            error = json.loads(answer.body)["error"]
            if error.get("details", error)["code"] != "internal_error":  # or in OpenAI's shape
                return ""
        return f"{call.name}: not in the envelope {answer.body[:200]!r}"
    return ""


def post(body: bytes, *headers: bytes, kind: bytes = b"application/json") -> bytes:
    lines = [b"POST /edit HTTP/1.1", b"Host: localhost", b"Content-Type: " + kind, *headers]
    if not any(header.lower().startswith((b"content-l", b"transfer")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(
    target: bytes, *headers: bytes, method: bytes = b"GET", host: bytes = b"localhost"
) -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: " + host, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def wrong_methods() -> Iterator[Call]:
    """Every method on every route: 405 where it is not offered."""
    for route, offered in ROUTES.items():
        for method in METHODS:
            right = frozenset({200, 204, 401, 403, 415}) if method in offered.split() else {405}
            raw = get(route.encode(), method=method.encode())
            yield Call(f"{method} {route}", raw, frozenset(right))
        for odd in (b"CONNECT", b"PRI", b"get", b"FOO", b"G\x00T", b"A" * 9000, b""):
            yield Call(f"{odd[:9]!r} {route}", get(route.encode(), method=odd), REFUSED | {ENDED})


def wrong_kinds() -> Iterator[Call]:
    """Content types that are not JSON."""
    for kind in (
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/mixed; boundary=a",
        b"application/vnd.bentoml+pickle",
        b"application/json-seq",
        b"application/jsonx",
        b"",
        b"*/*",
        b"\xff",
        b"a" * 5000,
    ):
        yield Call(f"kind {kind[:30]!r}", post(b"{}", kind=kind), frozenset({415}))
    for coding in (b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip"):
        raw = post(b"\x1f\x8b\x08" + bytes(50), b"Content-Encoding: " + coding)
        yield Call(f"compressed {coding!r}", raw)


def hostile_bodies(max_bytes: int) -> Iterator[Call]:
    """Bodies up to the limit that are not requests."""
    many = max_bytes // 12
    bodies = {
        "unknown fields": b"{" + b",".join(b'"%x":1' % n for n in range(many)) + b"}",
        "one field, again and again": b"{" + b",".join([b'"seed":-9'] * many) + b"}",
        "numbers": b'{"prompt":[' + b"1," * (max_bytes // 2 - 20) + b"1]}",
        "empty lists": b'{"prompt":[' + b"[]," * (max_bytes // 3 - 20) + b"1]}",
        "objects": b'{"prompt":[' + b'{"":0},' * (max_bytes // 7 - 20) + b"1]}",
        "a long number": b'{"seed":' + b"9" * (max_bytes - 20) + b"}",
        "a long fraction": b'{"guidance_scale":1.' + b"9" * 60_000 + b"}",
        "a long text": b'{"prompt":"' + b"a" * (max_bytes - 20) + b'"}',
        "escapes": b'{"image_url":"data:,' + b"\\u0041" * (max_bytes // 6 - 20) + b'","prompt":""}',
        "lists, 100,000 deep": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "lists, 30,000 deep": b'{"prompt":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        "objects, 10,000 deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "zeros": bytes(60_000),
        "nothing": b"",
    }
    values = (
        b"1e999 -1e999 1e-999 NaN Infinity -Infinity 0x1 01 -0 1.0 true {} [] 99999999999999999999"
    )
    for value in values.split():
        for field in (b"seed", b"guidance_scale", b"num_inference_steps", b"width"):
            text = b'{"%s":%s,"image_url":"data:,","prompt":"a"}' % (field, value)
            bodies[text[:40].decode()] = text
    for text in (
        b'"a\xff"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\\u0000"',
        b'"\x00"',
        b'"\\x"',
        b"'a'",
    ):
        bodies[f"prompt {text!r}"] = b'{"image_url":"data:,","prompt":%s}' % text
    for prefix in (b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b")]}'", b"//\n"):
        bodies[f"{prefix!r} before it"] = prefix + b'{"image_url":"http:","prompt":"a"}'
    bodies["UTF-16"] = '{"image_url":"data:,","prompt":"a"}'.encode("utf-16")
    for name, body in bodies.items():
        yield Call(name, post(body), frozenset({400, 413}))


def hostile_lengths(max_bytes: int) -> Iterator[Call]:
    """Bodies over the limit, lengths that lie, and two lengths at once."""
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    coded = b"Transfer-Encoding: chunked"
    ended = frozenset({400, 411, 413, 501, ENDED})
    yield Call("length over the limit", post(b"", b"Content-Length: %d" % (max_bytes + 1)), ended)
    yield Call("chunks over the limit", post(chunk * (max_bytes // 65536 + 2), coded), ended)
    for said in (b"-1", b"+1", b"1e3", b"0x10", b"9" * 30, b"9" * 5000, b"", b"1,1", b"1 1", b"a"):
        yield Call(f"length {said[:9]!r}", post(b"{}", b"Content-Length: " + said), ended | {415})
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    for codings in (
        [coded, b"Content-Length: 5"],
        [b"Content-Length: 5", coded],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Transfer-Encoding: xchunked", b"Content-Length: 5"],
        [b"Transfer-Encoding : chunked"],
        [b"Transfer-Encoding: chunked, identity"],
        [b"Transfer-Encoding: identity, chunked, chunked"],
        [b"Transfer-Encoding:\x0bchunked", b"Content-Length: 5"],
        [b"X: a\nTransfer-Encoding: chunked", b"Content-Length: 5"],
        [b"X: a\rTransfer-Encoding: chunked", b"Content-Length: 5"],
        [b" Transfer-Encoding: chunked"],  # h11 folds it into the content type before it
    ):
        yield Call(f"smuggled {codings!r}", post(smuggled, *codings), ended | {415})
    # h11 takes a size of up to 20 digits, and waits for its bytes as for any body.
    for size in (b"-1", b"g", b"f" * 21, b"0x1", b"1 ", b"", b"1;\n"):
        yield Call(f"chunk of {size!r}", post(size + b"\r\nA\r\n0\r\n\r\n", coded), ended)


def hostile_heads() -> Iterator[Call]:
    """Headers: long, many, repeated, malformed, non-ASCII; and the Host header."""
    ended = frozenset({200, 400, 401, 431, ENDED})
    for name, lines in {
        "a long value": [b"A: " + b"b" * 200_000],
        "a long name": [b"A" * 200_000 + b": b"],
        "20,000 headers": [b"A: b"] * 20_000,
        "a carriage return": [b"A: b\rc: d"],
        "a line feed": [b"A: b\nX-Request-ID: c"],
        "a null": [b"A: b\x00c"],
        "a fold": [b"A: b", b" c"],
        "no colon": [b"A"],
        "no name": [b": b"],
        "Latin": [b"A: \xe9\xff"],
        "a name of another alphabet": [b"\xc3\xa9: b"],
        "two request ids": [b"X-Request-ID: a", b"X-Request-ID: b"],
        "a request id that splits": [b"X-Request-ID: a%0d%0aSet-Cookie: b"],
        "a long request id": [b"X-Request-ID: " + b"a" * 5000],
        "broken trace": [b"traceparent: 00-zz", b"baggage: ;;==", b"b3: ????"],
        "proxies": [b"X-Forwarded-For: ]", b"X-Forwarded-Proto: javascript", b"Forwarded: a"],
        "many keys": [b"Authorization: Bearer " + b"a" * 50] * 500,
        "odd key": [b"Authorization: \xff\xfe", b"X-API-Key: \xff"],
        "websocket": [
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ],
        "h2c": [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA"],
        "expectation": [b"Expect: 200-never"],
        "ranges": [b"Range: bytes=" + b"0-1," * 10_000 + b"0-1"],
        "languages": [b"Accept: " + b"*/*;q=0.1," * 5000],
    }.items():
        for route in (b"/", b"/livez", b"/openapi.json"):
            yield Call(f"{name} at {route!r}", get(route, *lines), ended)
    for host in (b"", b"[", b"[::1", b"a/b", b"a?b", b"a#b", b"a@b", b"a:b", b"a:99999", b"\xff"):
        raw = get(b"/files/a", host=host)
        yield Call(f"host {host!r}", raw, frozenset({400, 403}))
    yield Call("two hosts", get(b"/livez", b"Host: b"), frozenset({200, 400}))


def hostile_paths() -> Iterator[Call]:
    """Path traversal, and request targets of other forms."""
    steps = (
        b".. %2e%2e .%2e ..%2f %2e%2e%2f ..%5c ..%255c %252e%252e ..;/ ..%00/ ..%c0%af //.. /%2f.."
    )
    link = b"?expires=9999999999&type=text%2Fplain&name=a&signature="
    for step in steps.split():
        for ends in (b"etc/passwd", b"link_secret", b"service.py"):
            for query in (b"", link, link + b"0" * 64, link + b"%ff"):
                target = b"/files/" + b"/".join([step] * 8) + b"/" + ends + query
                yield Call(f"{target[:60]!r}", get(target), frozenset({400, 403, 404}))
    files = frozenset({400, 403, 404})
    queries = (
        b"?a=%ff",
        b"?\xff",
        b"?" + b"a=b&" * 5000,
        b"?;",
        b"?signature=%00",
        b"?expires=1e9",
    )
    for query in queries:
        yield Call(f"{query[:20]!r}", get(b"/files/a" + query), files)
    for target in (
        *(b"//livez", b"/livez/", b"/./livez", b"/livez%00", b"/livez;a", b"/%2flivez", b"/LIVEZ"),
        *(b"/static", b"/static/../service.py", b"/docs/../../etc/passwd", b"/docs.json"),
        *(b"/%ff", b"/\xff", b"/%", b"/%zz", b"/%00", b"/" + b"a" * 60_000, b"/" + b"a/" * 30_000),
        *(b"*", b"livez", b"", b"?", b"#", b"http://a", b"http://a/%2e%2e", b"ftp://a/b", b"a:80"),
        *(b"/edit/submit", b"/edit/status", b"/is_alive", b"/__is_ready__", b"/sample.jpg/..%2f"),
    ):
        yield Call(f"{target[:30]!r}", get(target), files | {414, 431})
    yield Call("absolute form", get(b"http://elsewhere/livez"), frozenset({200, 400, 404}))
