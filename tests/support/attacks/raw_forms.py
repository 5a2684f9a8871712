"""Hostile forms, requests of OpenAI's images API and requests for jobs, as `raw_http` has bodies."""

import json
from collections.abc import Iterator

from support.attacks.raw_http import Call, get, post

REFUSED = frozenset({400, 413, 415})
_KIND = b"multipart/form-data; boundary=b"
_END = b"\r\n--b--\r\n"
_IMAGE = b'Content-Disposition: form-data; name="image"; filename="a.png"'
_PNG = b"data:image/png;base64,iVBORw0KGgo="
OFF_TYPE = (
    b"null true -1 0 1.5 1e400 NaN Infinity 99999999999999999999 " + b"9" * 5000 + b' "" "x" '
    b'"1024x" "x" "-1x64" "99999x99999" "0x0" "\\u0000" [] [[]] [null] {} {"a":[]} "auto\\n"'
).split()
FIELDS = [
    *("n", "size", "quality", "background", "output_compression", "output_format"),
    *(
        "response_format",
        "stream",
        "partial_images",
        "seed",
        "guidance_scale",
        "num_inference_steps",
    ),
    *("strength", "mask_feather", "loras", "profile", "image", "images"),
    *("mask", "markup", "prompt", "negative_prompt", "model", "user"),
    *("webhook", "num_images"),
]


def part(head: bytes, body: bytes = b"x") -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + body + b"\r\n"


def text(name: bytes, value: bytes) -> bytes:
    return part(b'Content-Disposition: form-data; name="' + name + b'"', value)


def hostile_forms(max_bytes: int) -> Iterator[Call]:
    """Forms that are truncated, nested, huge, or not what their header says."""
    whole = part(_IMAGE) + text(b"prompt", b"a")
    bodies = {
        **{f"cut after {end}": whole[:end] for end in range(0, len(whole), 3)},
        **{f"{one!r} changed": whole.replace(one, b"\0") for one in (b"\r\n", b":", b'"', b";")},
        "nothing": b"",
        "an end alone": b"--b--\r\n",
        "no end": whole,
        "65 parts": text(b"a", b"x") * 65 + _END,
        "100,000 parts": part(b"A: b", b"") * 100_000 + _END,
        "10,000 headers of a part": part(b"\r\n".join([b"A: b"] * 10_000)) + _END,
        "a long header": part(b"A: " + b"b" * 200_000) + _END,
        "a long name": part(b'Content-Disposition: form-data; name="' + b"n" * 3000 + b'"') + _END,
        "a name of another alphabet": text("é漢\U0001f600".encode(), b"x") + _END,
        "a name that is not UTF-8": text(b"\xff\xfe", b"x") + _END,
        "a text that is not UTF-8": text(b"prompt", b"\xff\xfe") + _END,
        "a surrogate": text(b"prompt", b"\xed\xa0\x80") + _END,
        "a nested form": part(
            _IMAGE + b"\r\nContent-Type: multipart/mixed; boundary=c", b"--c\r\n\r\nx\r\n--c--"
        )
        + _END,
        "a file name of dots": part(_IMAGE.replace(b"a.png", b"../" * 300 + b"etc/passwd")) + _END,
        "a file name that folds": part(_IMAGE.replace(b"a.png", b"a\r\n b")) + _END,
        "an empty file": part(_IMAGE, b"") + text(b"prompt", b"a") + _END,
        "four files": part(_IMAGE) * 4 + text(b"prompt", b"a") + _END,
        "a file for a text": part(_IMAGE.replace(b'"image"', b'"seed"')) + _END,
        "a field twice": text(b"seed", b"1") * 2 + _END,
        "epilogue": whole + _END + b"z" * 200_000,
        "preamble": b"z" * 200_000 + b"\r\n" + whole + _END,
        "line ends before it": b"\r\n" * 100_000 + whole + _END,
        "line ends as a file": part(_IMAGE, b"\r\n" * (max_bytes // 8)) + _END,
        "half a boundary, again and again": part(_IMAGE, b"\r\n--" * (max_bytes // 16)) + _END,
        "a file over the limit": part(_IMAGE, bytes(max_bytes)) + _END,
        "a transfer encoding": part(_IMAGE + b"\r\nContent-Transfer-Encoding: base64", b"eA==")
        + _END,
    }
    for route in (b"/edit", b"/v1/images/edits"):
        for name, body in bodies.items():
            raw = post(body, kind=_KIND).replace(b"/edit", route, 1)
            yield Call(f"form at {route!r}: {name}", raw, REFUSED)
    for kind in (
        *(b"", b"; boundary", b"; boundary=", b'; boundary=""', b"; boundary=\xff", b";boundary=c"),
        *(b"; boundary=" + b"b" * 60_000, b"; boundary*=utf-8''b", b'; boundary="a\\"b"'),
        *(b";" * 60_000 + b"boundary=b", b';a="' + b";" * 60_000, b"; charset=utf-16; boundary=c"),
        *(b"; boundary*0=b; boundary*1=", b"; boundary*=x''%ff", b"; boundary=b\x7f"),
    ):
        raw = post(whole + _END, kind=b"multipart/form-data" + kind)
        yield Call(f"form of kind {kind[:30]!r}", raw, REFUSED)


def hostile_images_edits() -> Iterator[Call]:
    """Wrong types and values in every field of OpenAI's images API, in JSON and in forms."""
    valid = {"prompt": "a", "images": [{"image_url": _PNG.decode()}]}
    for field in FIELDS:
        for value in OFF_TYPE:
            inner = json.dumps({name: one for name, one in valid.items() if name != field})
            body = b'{"%s":%s,%s' % (field.encode(), value, inner[1:].encode())
            # The image itself is broken, so nothing is edited whatever else is ignored.
            yield _images_edit(f"{field} {value[:20]!r}", body)
            form = text(field.encode(), value.strip(b'"')) + text(b"prompt", b"a") + part(_IMAGE)
            raw = post(form + _END, kind=_KIND).replace(b"/edit", b"/v1/images/edits", 1)
            yield Call(f"{field} {value[:20]!r} as text", raw, REFUSED)
    for name, body in {
        "lists, 100,000 deep": b'{"a":' + b"[" * 100_000,
        "lists, 20,000 deep": b'{"images":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        "a field twice": b'{"prompt":"a","prompt":1}',
        "a surrogate": b'{"prompt":"\\ud800"}',
        "a surrogate as name": b'{"\\ud800":1}',
        "many images": b'{"images":[' + b",".join([b'"data:,"'] * 5000) + b"]}",
        "images within images": b'{"images":[{"image_url":{"url":[{"image_url":1}]}}]}',
        "a list": b"[]",
        "nothing": b"",
        "zeros": bytes(60_000),
    }.items():
        yield _images_edit(name, body)


def _images_edit(name: str, body: bytes) -> Call:
    return Call(
        f"images edit: {name}", post(body).replace(b"/edit", b"/v1/images/edits", 1), REFUSED
    )


def hostile_jobs() -> Iterator[Call]:
    """Ids that are no ids, keys that are no keys, and the methods of jobs."""
    ids = [
        *(
            b".. ../.. %2e%2e %2e%2e%2f%2e%2e %00 a%00 a%0a .. ..%5c..%5c alive webhooks alive/a/1 "
            b"webhooks/a/due a/accepted a/ended A+A %C3%A9 %ff -a _a a.b a;b a%20b ~ * %25 a/ /a "
        ).split(),
        *(b"a" * 129, b"a" * 60_000),
    ]
    body = b'{"image_url":"data:,","prompt":"a"}'
    missing = frozenset({400, 404, 405, 414, 431})
    for name in ids:
        for method in (b"GET", b"DELETE"):
            target = b"/jobs/" + name
            yield Call(f"{method!r} {target[:40]!r}", get(target, method=method), missing)
        raw = post(body).replace(b"POST /edit", b"PUT /jobs/" + name, 1)
        yield Call(f"PUT {name[:40]!r}", raw, missing)
    for key in (b"a" * 256, b"a" * 60_000):
        yield Call(f"a key of {len(key)}", post(body, b"Idempotency-Key: " + key), frozenset({400}))
    for headers in (
        [b"Prefer: " + b"respond-async;" * 4000],
        [b"Prefer: respond-async=1; wait=99999999999999999999"],
        [b"Idempotency-Key: \xff\xfe"],
        [b"Idempotency-Key: a", b"Idempotency-Key: b"],
        [b"Accept: " + b"text/event-stream;q=0," * 2000],
        [b"traceparent: 00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"],
        [b"traceparent: " + b"f" * 50_000],
        [b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"] * 2,
        [b"tracestate: " + b"a=b," * 10_000],
    ):
        yield Call(f"headers {headers[0][:40]!r}", post(b"{}", *headers), frozenset({400}))
