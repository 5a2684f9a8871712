"""Faults of an S3 server: transient ones, and denials with the setting that the error must name."""

from support.servers.fault_proxy import (
    Step,
    answered,
    garbage,
    lost,
    reset,
    s3_error,
    silent,
)

HTML = b"<html>busy</html>"

TRANSIENT: dict[str, Step] = {
    "503 SlowDown": s3_error(503, "SlowDown"),
    "503 SlowDown, Retry-After": s3_error(503, "SlowDown", {"Retry-After": "0"}),
    "503 with a Retry-After that is no time": s3_error(503, "SlowDown", {"Retry-After": "soon"}),
    "503 HTML": answered(503, HTML, {"Content-Type": "text/html"}),
    "503 broken XML": answered(503, b"<Error><Code>", {"Content-Type": "application/xml"}),
    "500": s3_error(500, "InternalError"),
    "502 without a body": answered(502),
    "504": answered(504, HTML),
    "408": answered(408, HTML),
    "429": s3_error(429, "TooManyRequests"),
    "400 RequestTimeout": s3_error(400, "RequestTimeout"),
    "reset": reset,
    "no HTTP": garbage,
    "lost answer": lost,
    "silence": silent,
    "short answer": answered(200, b"short", {"Content-Length": "9"}),
}
DENIALS: dict[str, tuple[Step, str]] = {
    "key": (s3_error(403, "InvalidAccessKeyId"), "S3_ACCESS_KEY"),
    "secret": (s3_error(403, "SignatureDoesNotMatch"), "S3_SECRET_KEY"),
    "rights": (s3_error(403, "AccessDenied"), "S3_BUCKET"),
    "clock": (s3_error(403, "RequestTimeTooSkewed"), "clock"),
    "bucket": (s3_error(404, "NoSuchBucket"), "S3_BUCKET"),
    "region": (s3_error(400, "AuthorizationHeaderMalformed"), "S3_REGION"),
    "307": (s3_error(307, "TemporaryRedirect", {"Location": "http://127.0.0.1:1/"}), "S3_REGION"),
    "301 without a body": (answered(301, b"", {"Location": "http://127.0.0.1:1/"}), "S3_ENDPOINT"),
    "404 HTML": (answered(404, HTML), "S3_ENDPOINT"),
    "409 without a body": (answered(409), "S3_ENDPOINT"),
    "400 unknown": (s3_error(400, "Whatever"), "S3_ENDPOINT"),
    "501": (s3_error(501, "NotImplemented"), "S3_ENDPOINT"),
}
