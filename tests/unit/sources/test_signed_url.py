import base64
import json

import pytest

from retouch.net.url import parse_url
from retouch.sources.signed_url import valid_for_s

NOW_S = 1_795_700_000  # Thu, 26 Nov 2026 13:33:20 GMT
POLICY = json.dumps({"Statement": [{"Condition": {"DateLessThan": {"AWS:EpochTime": NOW_S + 90}}}]})
CLAIMS = base64.urlsafe_b64encode(json.dumps({"url": "a/b", "exp": NOW_S + 70}).encode()).decode()
POLICY = base64.b64encode(POLICY.encode()).decode().translate(str.maketrans("+=/", "-_~"))


@pytest.mark.parametrize(
    ("query", "valid_s"),
    [
        ("X-Amz-Date=20261126T133320Z&X-Amz-Expires=900&X-Amz-Signature=ab", 900),
        ("X-Goog-Date=20261126T133320Z&X-Goog-Expires=60&X-Goog-Signature=ab", 60),
        ("X-Amz-Date=20261126T133320Z&X-Amz-Expires=900&x-amz-signature=ab", 900),
        ("X-Amz-Date=20261125T133320Z&X-Amz-Expires=900&X-Amz-Signature=ab", 0),
        ("X-Amz-Signature=ab", 0),
        ("X-Amz-Date=soon&X-Amz-Expires=900&X-Amz-Signature=ab", 0),
        (f"AWSAccessKeyId=k&Expires={NOW_S + 5}&Signature=ab%3D", 5),
        (f"GoogleAccessId=k&Expires={NOW_S + 5}&Signature=ab", 5),
        ("sv=2024-11-04&se=2026-11-26T13:34:20Z&sr=b&sp=r&sig=ab", 60),
        ("sv=2024-11-04&se=2026-11-27&sr=b&sp=r&sig=ab", 37600),
        ("sv=2024-11-04&si=policy&sig=ab", 0),
        (f"Policy={POLICY}&Signature=ab&Key-Pair-Id=k", 90),
        ("Policy=%00&Signature=ab&Key-Pair-Id=k", 0),
        (f"hdnts=st=1~exp={NOW_S + 7}~acl=/*~hmac=ab", 7),
        (f"q-sign-algorithm=sha1&q-sign-time=1;{NOW_S + 8}&q-signature=ab", 8),
        (f"ex={NOW_S + 9:x}&is=1&hm=ab", 9),
        (f"oh=00_Af&oe={NOW_S + 9:X}", 9),
        ("X-Tos-Date=20261126T133320Z&X-Tos-Expires=60&X-Tos-Signature=ab", 60),
        (f"x-expires={NOW_S + 3}&x-signature=ab", 3),
        (f"ik-t={NOW_S + 6}&ik-s=ab", 6),
        (f"e={NOW_S + 9}&v=beta&t=ab", 9),
        (f"token=eyJhbGciOiJIUzI1NiJ9.{CLAIMS.rstrip('=')}.ab", 70),
        (f"token=exp={NOW_S + 8}~acl=/*~hmac=ab", 8),
        ("token=a.b.c", None),
        ("token=a.bcdef.g", None),
        (f"token=a.b.c&expires={NOW_S + 4}", 4),
        ("Authorization=3_20261126133320_ab", 0),
        ("alt=media&access_token=ab", 0),
        ("tempauth=v1.ab.cd", 0),
        ("t=1&v=2", None),
        (f"token=ab&expires={NOW_S + 4}", 4),
        (f"md5=ab&expires={NOW_S + 4}", 4),
        ("token=ab", None),
        ("alt=media&token=1-2-3", None),
        ("expires=never", None),
        (f"expires={NOW_S + 4}", None),
        ("width=900", None),
        ("", None),
    ],
)
def test_a_signed_url_is_valid_for_as_long_as_it_says(query: str, valid_s: float | None) -> None:
    assert valid_for_s(parse_url(f"https://pictures.example/a.jpg?{query}"), NOW_S) == valid_s
