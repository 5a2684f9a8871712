"""What Backblaze B2's S3 API accepts, as a step for `fault_proxy.FaultProxy`: everything else is refused.

After the request headers in Backblaze's documentation of S3 Put Object, its page "S3-Compatible API"
(only V4 signatures, no object ACLs, no tagging, no `x-amz-checksum-*`), and what users met: streaming
payloads and checksums (home-assistant/core#143995, iterate-ch/cyberduck#16107), tags
(Intrinsec/s3proxy#34), conditional writes (sathinduga/obsidian-s3-sync-and-backup#78).
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from support.servers.fault_proxy import Exchange, passed, s3_error

REGION = "us-west-000"
_HEADERS = {"authorization", "host", "user-agent", "content-length", "content-type", "content-md5"}
_HEADERS |= {"accept", "accept-encoding", "connection", "x-amz-date", "x-amz-content-sha256"}
_SIGNED_QUERY = ("algorithm", "credential", "date", "expires", "signedheaders", "signature")
_QUERY = {f"x-amz-{name}" for name in _SIGNED_QUERY}
_QUERY |= {"response-content-type", "response-content-disposition"}
_PAYLOAD = re.compile(r"[0-9a-f]{64}|UNSIGNED-PAYLOAD")


@dataclass
class Backblaze:
    """Records what it passed on, and what it refused and why."""

    passed: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    def __call__(self, exchange: Exchange) -> None:
        if reason := reason_to_refuse(exchange):
            self.refused.append(f"{exchange.method}: {reason}")
            is_missing = reason in {"conditional write", "operation"}
            status, code = (501, "NotImplemented") if is_missing else (400, "InvalidArgument")
            s3_error(403 if reason == "signature" else status, code)(exchange)
            return
        self.passed[exchange.method] += 1
        passed(exchange)


def reason_to_refuse(exchange: Exchange) -> str:
    """Return what B2 does not accept in a request, or an empty string."""
    url = urlsplit(exchange.head.split(b" ")[1].decode())
    query = {name.lower(): value for name, value in parse_qsl(url.query, keep_blank_values=True)}
    headers = exchange.headers
    if exchange.method == "PUT" and {"if-none-match", "if-match"} & set(headers):
        return "conditional write"
    if exchange.method not in {"GET", "PUT", "DELETE"} or set(query) - _QUERY:
        return "operation"
    unknown = {name for name in headers if not name.startswith("x-amz-meta-")} - _HEADERS
    if unknown:
        return f"header {sorted(unknown)}"
    if _PAYLOAD.fullmatch(headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")) is None:
        return "streaming payload"
    signed = headers.get("authorization", "")
    scope = query.get("x-amz-credential") or signed.partition("Credential=")[2].partition(",")[0]
    is_v4 = query.get("x-amz-algorithm", signed.partition(" ")[0]) == "AWS4-HMAC-SHA256"
    if not is_v4 or scope.split("/")[2:] != [REGION, "s3", "aws4_request"]:
        return "signature"
    kept = sum(len(n) + len(v) for n, v in headers.items() if n.startswith("x-amz-meta-"))
    return "metadata over 2048 bytes" if kept + len(url.path) > 2048 else ""
