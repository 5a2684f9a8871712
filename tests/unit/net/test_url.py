import pytest

from retouch.errors import InvalidRequest, SourceUnreachable
from retouch.net.address import is_public
from retouch.net.url import parse_url, require_destination, resolve_redirect


def words(text: str) -> list[str]:
    return text.split()


HOSTILE = words("""
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16
169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1
192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255
240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
::ffff:169.254.169.254 ::ffff:168.63.129.16 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
64:ff9b::169.254.169.254 64:ff9b:1::7f00:1 100::1 2001::1 2001:0:7f00:1::1 2001:10::1 2001:20::1
2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2606:4700::5efe:7f00:1 2606:4700::200:5efe:7f00:1
3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
2606:4700::1%1 2606:4700::1%
""")

NO_ADDRESS = [
    "",
    "example.com",
    "1.2.3",
    "0x7f.0.0.1",
    "017700000001",
    "2130706433",
    "1.1.1.1 ",
    "é",
]

PUBLIC = words("""
1.1.1.1 8.8.8.8 93.184.215.14 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 168.63.129.17
223.255.255.255 ::ffff:8.8.8.8 2606:4700:4700::1111 2a00:1450:4001:830::200e 2001:200::1
2001:4860:4860::8888
""")


@pytest.mark.parametrize("address", HOSTILE + NO_ADDRESS)
def test_an_internal_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_internet_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTP://EXAMPLE.com:80/A?b=C#d", "http://example.com/A?b=C"),
        ("https://example.com:443?x", "https://example.com/?x"),
        ("https://example.com:/", "https://example.com/"),
        ("https://example.com:80/", "https://example.com:80/"),
        ("http://example.com./", "http://example.com/"),
        ("http://Bücher.example/ü?ü=ü", "http://xn--bcher-kva.example/%C3%BC?%C3%BC=%C3%BC"),
        ("http://127。0。0。1/", "http://127.0.0.1/"),
        ("http://0x7f.1/", "http://0x7f.1/"),
        ("https://i❤.ws/photo.jpg", "https://xn--i-7iq.ws/photo.jpg"),
        ("http://☃.example/", "http://xn--n3h.example/"),
        ("http://faß.example/", "http://xn--fa-hia.example/"),
        ("http://例え。テスト/", "http://xn--r8jz45g.xn--zckzah/"),
        (" http://example.com/a b.jpg\t\n", "http://example.com/a%20b.jpg"),
        ("http://exam\nple.com/a\tb", "http://example.com/ab"),
        ("http://example.com/\x85\u2028?ü ü", "http://example.com/%C2%85%E2%80%A8?%C3%BC%20%C3%BC"),
        ("http://under_score.example/", "http://under_score.example/"),
        ("http://[2606:4700:0:0::1]:443/", "http://[2606:4700::1]:443/"),
        (
            "http://example.com/%7e/a..;b[1]?q[]=%20+'/..|",
            "http://example.com/%7e/a..;b[1]?q[]=%20+'/..%7C",
        ),
        (
            'http://example.com/"<a>^`{b}|?"<a>^`{b}|',
            "http://example.com/%22%3Ca%3E%5E%60%7Bb%7D%7C?%22%3Ca%3E%5E%60%7Bb%7D%7C",
        ),
        ("http://example.com/a/../b/./c/..", "http://example.com/b/"),
        ("http://example.com/../../a//.", "http://example.com/a//"),
    ],
)
def test_a_url_has_one_canonical_form(text: str, canonical: str) -> None:
    url = parse_url(text)
    assert url.canonical == canonical
    assert parse_url(url.canonical) == url


CANARY = "s3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{CANARY}",
        f"/{CANARY}",
        f"//example.com/{CANARY}",
        f"ftp://example.com/{CANARY}",
        f"file:///{CANARY}",
        f"http:example.com/{CANARY}",
        f"http:///{CANARY}",
        f"http://?{CANARY}",
        f"http://user:{CANARY}@example.com/",
        f"http://@example.com/{CANARY}",
        f"http://exa mple.com/{CANARY}",
        f"http://example.com/\0{CANARY}",
        f"http://example.com/{CANARY}\x7f",
        f"http://example.com\\{CANARY}",
        f"http://example.com/\ud800{CANARY}",
        f"http://\ud800{CANARY}/",
        f"http://example.com:0/{CANARY}",
        f"http://example.com:65536/{CANARY}",
        f"http://example.com:99999/{CANARY}",
        f"http://example.com:8o/{CANARY}",
        f"http://example.com:٨٠/{CANARY}",
        f"http://example.com:-1/{CANARY}",
        f"http://example.com:1:2/{CANARY}",
        f"http://.example.com/{CANARY}",
        f"http://example..com/{CANARY}",
        f"http://./{CANARY}",
        f"http://ex%61mple.com/{CANARY}",
        f"http://{'a' * 64}.com/{CANARY}",
        f"http://{'a.' * 127}com/{CANARY}",
        f"http://{'ü' * 300}.com/{CANARY}",
        f"http://[::1%25eth0]/{CANARY}",
        f"http://[::1%eth0]/{CANARY}",
        f"http://[1.2.3.4]/{CANARY}",
        f"http://[::1/{CANARY}",
        f"http://[]/{CANARY}",
        f"http://[::1]x/{CANARY}",
        f"http://example.com/{CANARY}".ljust(4097, "a"),
        f"http://example.com/{CANARY}".ljust(2000, "ü"),
        f"http://example.com:{'9' * 4000}/{CANARY}",
    ],
)
def test_the_error_for_a_malformed_url_does_not_repeat_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as caught:
        parse_url(text)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_url_shows_neither_path_nor_query() -> None:
    url = parse_url("https://example.com/path?token=s3cr3t")
    assert f"{url} {url!r}" == " ".join(["SourceUrl(https://example.com:443)"] * 2)


@pytest.mark.parametrize(
    ("text", "authority", "host_port"),
    [
        ("http://example.com/a", "example.com", "example.com:80"),
        ("https://example.com:8443", "example.com:8443", "example.com:8443"),
        ("https://[::1]", "[::1]", "[::1]:443"),
    ],
)
def test_authority_leaves_out_the_default_port_and_host_port_does_not(
    text: str, authority: str, host_port: str
) -> None:
    url = parse_url(text)
    assert (url.authority, url.host_port) == (authority, host_port)


@pytest.mark.parametrize(
    ("location", "canonical"),
    [
        ("/b?c", "https://example.com/b?c"),
        ("b", "https://example.com/a/b"),
        ("?c", "https://example.com/a/x?c"),
        ("//other.example/", "https://other.example/"),
        ("https://other.example:443/#x", "https://other.example/"),
        ("/ü", "https://example.com/%C3%BC"),
        (" /a b ", "https://example.com/a%20b"),
        ("//exa\tmple.com/", "https://example.com/"),
        (b"/\xe9\xc3\xa9".decode("utf-8", "surrogateescape"), "https://example.com/%E9%C3%A9"),
    ],
)
def test_a_redirect_may_be_relative(location: str, canonical: str) -> None:
    assert resolve_redirect(parse_url("https://example.com/a/x?y"), location).canonical == canonical


@pytest.mark.parametrize(
    "location",
    [
        "http://example.com/",
        "ftp://example.com/",
        "javascript:alert(1)",
        "data:image/png;base64,",
        "https://user@example.com/",
        "//[/",
        "/a\x00b",
        "\\\\other.example/",
        "https://example.com:0/",
        "//ex\u2100mple.com@x/",
    ],
)
def test_a_redirect_to_a_malformed_url_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        resolve_redirect(parse_url("https://example.com/a"), location)


def test_a_redirect_may_lead_from_http_to_https() -> None:
    assert resolve_redirect(parse_url("http://a.example/"), "https://a.example/").scheme == "https"


def test_only_ports_80_and_443_and_allowed_hosts_pass() -> None:
    allowed = frozenset({"intranet.example:8080", "[::1]:9000"})
    for text in ("http://a.example", "https://a.example", "http://a.example:443"):
        require_destination(parse_url(text), allowed_hosts=frozenset())
    require_destination(parse_url("http://intranet.example:8080/"), allowed_hosts=allowed)
    require_destination(parse_url("http://[::1]:9000/"), allowed_hosts=allowed)
    for text in ("http://intranet.example:8081/", "http://b.intranet.example:8080/"):
        with pytest.raises(InvalidRequest) as caught:
            require_destination(parse_url(text), allowed_hosts=allowed)
        assert list(caught.value.details["fields"]) == ["image_url"]


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "127.1", "0x7f000001", "017700000001", "2130706433", "[::ffff:10.0.0.1]"]
)
def test_a_private_address_is_refused_in_every_spelling_unless_its_port_is_allowed(
    host: str,
) -> None:
    url = parse_url(f"https://{host}/")
    with pytest.raises(SourceUnreachable):
        require_destination(url, allowed_hosts=frozenset())
    require_destination(url, allowed_hosts=frozenset({url.host_port}))


@pytest.mark.parametrize("host", ["1.1.1.1", "[2606:4700::1111]", "localhost", "10.0.0.1.example"])
def test_a_public_address_passes_and_a_name_is_left_to_the_look_up(host: str) -> None:
    require_destination(parse_url(f"https://{host}/"), allowed_hosts=frozenset())
