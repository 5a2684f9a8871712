"""The S3 endpoint as people write it: with scheme, port, path, or the bucket in front."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_REGION = "us-west-000"
_EXAMPLE = "such as s3.us-west-004.backblazeb2.com"
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
# Hosts that name their region, with or without the bucket in front of them.
_PROVIDER = re.compile(
    r"(?:(?P<bucket>[a-z0-9._-]+)\.)?(?P<host>"
    r"s3\.(?P<plain>[a-z0-9-]+)\.(?:backblazeb2\.com|wasabisys\.com|scw\.cloud|io\.cloud\.ovh\.net)"
    r"|s3(?:\.dualstack)?(?:[.-](?P<aws>[a-z]{2}-[a-z0-9-]+))?\.amazonaws\.com(?:\.cn)?|s3\.wasabisys\.com"
    r"|(?P<spaces>[a-z]{3}\d)\.digitaloceanspaces\.com"
    r"|(?P<r2>[0-9a-f]{32}(?:\.(?:eu|fedramp))?)\.r2\.cloudflarestorage\.com)"
)


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """`host` with its port if any; `secure` is None without a scheme, `region` empty if not named."""

    host: str
    secure: bool | None = None
    region: str = ""


def parse_endpoint(text: str, *, bucket: str) -> S3Endpoint:
    """Parse an endpoint. The bucket is dropped where it stands in front of the host or as the path.

    Raises:
        ValueError: it is not an endpoint; the text says what to write.

    >>> parse_endpoint("https://pictures.s3.us-west-004.backblazeb2.com/", bucket="pictures")
    S3Endpoint(host='s3.us-west-004.backblazeb2.com', secure=True, region='us-west-004')
    >>> parse_endpoint("http://minio:9000/pictures", bucket="pictures")
    S3Endpoint(host='minio:9000', secure=False, region='')
    """
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        raise ValueError(f"must be a host with or without a port, {_EXAMPLE}") from None
    if parts.scheme not in ("", "http", "https"):
        raise ValueError(f"must be a host, {_EXAMPLE}, not a {parts.scheme}: address")
    if "@" in parts.netloc:
        raise ValueError("must not hold a key: set S3_ACCESS_KEY and S3_SECRET_KEY")
    host = parts.netloc.lower().removesuffix(port)
    if not _HOST.fullmatch(host):
        raise ValueError(f"must be a host with or without a port, {_EXAMPLE}")
    if parts.path.strip("/") not in ("", bucket) or parts.query or parts.fragment:
        raise ValueError(f"must end after the host: write {host}{port}")
    secure = parts.scheme == "https" if parts.scheme else None
    named = _PROVIDER.fullmatch(host)
    if not named:
        return S3Endpoint(host + port, secure)
    if named["bucket"] not in (None, bucket.lower()):
        raise ValueError(f"begins with a bucket that is not S3_BUCKET: write {named['host']}{port}")
    region = named["plain"] or named["spaces"] or ("auto" if named["r2"] else named["aws"])
    return S3Endpoint(named["host"] + port, secure, region or "us-east-1")
