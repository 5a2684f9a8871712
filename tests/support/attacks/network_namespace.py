"""Asks a service for every address it must not reach, in a network namespace where every address answers.

unshare --net --mount env PYTHONPATH=src:tests python tests/support/attacks/network_namespace.py [--every 1]

As root on Linux. Inside, every address of IPv4 and IPv6 is a host that serves an image on port 80 and
accepts connections on 443. Names come from an `/etc/hosts` made here, so resolver, routes and sockets are real. Prints one line of JSON.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from support.attacks.addresses import PUBLIC, STEP, Target, list_public, list_targets
from support.servers.bentoml_service import SAMPLE, Service, serving

LOCAL_ROUTES = ("-4 route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo")
SMALL = {"width": 64, "height": 64, "num_inference_steps": 1}


class Host(BaseHTTPRequestHandler):
    """Redirects as the path says, or serves an image."""

    def do_GET(self) -> None:  # the library's name
        _, code, *rest = self.path.split("/", 2)
        self.send_response(int(code) if rest else 200)
        self.send_header("Location", unquote(rest[0]) if rest else "/")
        self.send_header("Content-Length", str(len(SAMPLE)))
        self.end_headers()
        self.wfile.write(SAMPLE)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class Hosts(ThreadingHTTPServer):
    """All hosts on one port. `reached` has each address that was connected to."""

    address_family = socket.AF_INET6
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        self.reached: list[str] = []
        super().__init__(("::", port), Host)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        self.reached.append(connection.getsockname()[0].removeprefix("::ffff:"))
        return connection, peer


def make_world() -> None:
    for command in ("link set lo up", *LOCAL_ROUTES):
        subprocess.run(["ip", *command.split()], check=True)  # noqa: S603, S607 - Debian's


def name_hosts(targets: list[Target], file: Path) -> None:
    """Name each target twice: alone, and beside a public address."""
    named = [(n, target.address) for n, target in enumerate(targets) if "%" not in target.address]
    lines = ["127.0.0.1 localhost"]
    lines += [f"{address} alone{n}.example" for n, address in named]
    lines += [f"{each} mixed{n}.example" for n, address in named for each in (STEP, address)]
    file.write_text("\n".join(lines) + "\n")
    subprocess.run(["mount", "--bind", file, "/etc/hosts"], check=True)  # noqa: S603, S607


def list_urls(targets: list[Target]) -> Iterator[str]:
    for n, target in enumerate(targets):
        for host in target.hosts:
            yield f"http://{host}/"
        yield f"https://{target.hosts[0]}/"
        yield f"http://{STEP}/302/{quote(f'http://{target.hosts[0]}/', safe='')}"
        if "%" not in target.address:
            yield f"http://alone{n}.example/"
            yield f"http://mixed{n}.example/"


def is_host(address: str) -> bool:
    """Return whether the address answers: only such an address could have been reached."""
    with suppress(OSError), socket.create_connection((address, 80), timeout=2):
        return True
    return False


def ask(service: Service, url: str) -> bool:
    """Return whether it was edited; a refusal must be a typed error."""
    answer = service.ask(image_url=url, **SMALL)
    if answer.status_code not in {200, 400, 502, 504}:
        raise AssertionError(f"{url}: {answer.status_code} {answer.text}")
    return answer.status_code == 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="of the targets, the share asked for")
    options = parser.parse_args()
    if Path("/proc/self/ns/net").readlink() == Path(f"/proc/{os.getppid()}/ns/net").readlink():
        parser.error("run it by unshare --net --mount: it changes routes and names")
    make_world()
    targets = list(list_targets(random.Random(1), extra=0))[:: options.every]  # noqa: S311 - the same ones each time
    public = [f"http://{target.hosts[0]}/" for target in list_public()]
    web, tls = Hosts(80), Hosts(443)
    for server in (web, tls):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as names:
        name_hosts(targets, Path(names.name))
        hosts = sum(is_host(target.address) for target in targets)
        with serving(Path(folder), {}) as service:
            edited = sum(ask(service, url) for url in public)
            web.reached.clear()
            urls = list(list_urls(targets))
            let_in = [url for url in urls if ask(service, url)]
    open_to_all = {str(ip_address(address)) for address in (*PUBLIC, STEP)}
    reached = sorted({*web.reached, *tls.reached} - open_to_all)
    found = {"hosts": hosts, "of": len(targets), "asked": len(urls), "edited": let_in}
    found |= {"reached": reached, "public": len(public), "public_edited": edited}
    found |= {"redirected": web.reached.count(STEP)}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
