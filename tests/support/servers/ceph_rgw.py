"""A real S3 server for the tests: Ceph's RADOS Gateway on 127.0.0.1, in memory, up in about 1 s."""

import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import trustme
from minio import Minio

BINARIES = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")
PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"
_START_S = 30.0

_CONF = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
public_network = 127.0.0.0/8
public_network_interface = lo
cluster_network_interface = lo
ms_bind_msgr1 = false
ms_bind_ipv6 = false
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
crash_dir = {folder}
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
# The defaults batch map changes for a second each: 12 s to start.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:{port} ssl_endpoint=127.0.0.1:{tls_port} \
ssl_certificate={folder}/tls.crt ssl_private_key={folder}/tls.key tcp_nodelay=1
"""
_CAPS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
    "client.rgw.a": ["mon", "allow rw", "osd", "allow rwx"],
}


def missing_binaries() -> list[str]:
    return [name for name in BINARIES if shutil.which(name) is None]


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


class Rgw:
    """One gateway over one in-memory OSD; everything it starts is stopped by its process id."""

    bucket = "retouch-test"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self.port, self.tls_port, self._mon_port = free_ports(3)
        self.ca_file = str(folder / "ca.pem")
        self._running: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def tls_endpoint(self) -> str:
        return f"127.0.0.1:{self.tls_port}"

    def settings(self, endpoint: str = "") -> dict[str, str]:
        """Return the service's settings of this store, reached at `endpoint` where a proxy is before it."""
        return {
            "S3_ENDPOINT": endpoint or self.endpoint,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
            "S3_BUCKET": self.bucket,
            "S3_SECURE": "false",
        }

    def start(self) -> None:
        self._write_files()
        mon_keys = ["--keyring", f"{self.folder}/keyring"]
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{self.folder}/monmap", *mon_keys)
        self._spawn("ceph-mon", "-i", "a", "-f")
        osd_uuid = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd_uuid)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        self._spawn("ceph-osd", "-i", "0", "-f")
        self._wait_for(lambda: b"1 up" in self._run("ceph", "osd", "stat"))
        self.start_gateway()
        keys = ["--access-key", self.access_key, "--secret-key", self.secret_key]
        self._run("radosgw-admin", "user", "create", "--uid=t", "--display-name=t", *keys)
        # RGW accepts only its own region when a bucket is made, and checks none afterwards.
        self.client(region="us-east-1").make_bucket(bucket_name=self.bucket)

    def client(self, *, region: str) -> Minio:
        return Minio(
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region=region,
        )

    def server_tls(self) -> ssl.SSLContext:
        """The certificate and key for a proxy that clients trust like the gateway."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "tls.crt", self.folder / "tls.key")
        return context

    def start_gateway(self) -> None:
        self._gateway = self._spawn("radosgw", "-n", "client.rgw.a", "-f")
        self._wait_for(self._answers)

    def kill_gateway(self) -> None:
        assert self._gateway is not None
        self._gateway.kill()
        self._gateway.wait()

    def pause_gateway(self) -> None:
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGSTOP)

    def resume_gateway(self) -> None:
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()

    def _write_files(self) -> None:
        conf = _CONF.format(
            fsid=uuid.uuid4(),
            folder=self.folder,
            port=self.port,
            tls_port=self.tls_port,
            mon_port=self._mon_port,
        )
        (self.folder / "ceph.conf").write_text(conf)
        for name in ("mon", "osd"):
            (self.folder / name).mkdir()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_pem.write_to_path(str(self.folder / "tls.key"))
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(str(self.folder / "tls.crt"), append=True)
        keyring = f"{self.folder}/keyring"
        for name, caps in _CAPS.items():
            pairs = [
                text for at in range(0, len(caps), 2) for text in ("--cap", *caps[at : at + 2])
            ]
            create = [] if Path(keyring).exists() else ["--create-keyring"]
            self._run("ceph-authtool", keyring, *create, "-n", name, "--gen-key", *pairs)
        address = f"[v2:127.0.0.1:{self._mon_port}]"
        self._run("monmaptool", "--create", "--addv", "a", address, f"{self.folder}/monmap")

    def _run(self, *command: str) -> bytes:
        done = subprocess.run(  # noqa: S603
            self._with_conf(command), capture_output=True, timeout=_START_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()[-1000:]}"
        return done.stdout

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            process = subprocess.Popen(  # noqa: S603
                self._with_conf(command), stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self._running.append(process)
        return process

    def _with_conf(self, command: tuple[str, ...]) -> list[str]:
        knows_conf = command[0] not in {"ceph-authtool", "monmaptool"}
        conf = ["-c", f"{self.folder}/ceph.conf"] if knows_conf else []
        return [command[0], *conf, *command[1:]]

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def _wait_for(self, is_done: Callable[[], bool]) -> None:
        give_up_at_s = time.monotonic() + _START_S
        while not is_done():
            assert time.monotonic() < give_up_at_s, f"RGW did not start; see {self.folder}"
            time.sleep(0.02)
