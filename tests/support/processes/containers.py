"""Images and containers, by podman and buildah: what is in one, and running it locked down."""

import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

UID = "1034"
BENTO = "/home/bentoml/bento"
START_S = 120.0
_LOCKED_DOWN = [
    "--read-only",
    "--read-only-tmpfs=false",  # podman would add one on /run and /var/tmp by default
    "--tmpfs=/tmp:rw,noexec,nosuid,nodev,size=256m,mode=1777",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--network=host",
    "--cgroups=disabled",
    "--ulimit=nofile=1024:4096",  # podman's default is more than a machine may allow
    "--ulimit=nproc=4096:4096",
]


def run(*command: str) -> str:
    """Run a command that must succeed and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def describe(image: str) -> dict[str, Any]:
    """Return an image's metadata."""
    told: dict[str, Any] = json.loads(run("podman", "image", "inspect", image))[0]
    return told


def list_layers(image: str) -> list[dict[str, Any]]:
    """Return an image's layers, first to last, each with its `size` and the command that made it."""
    history = json.loads(run("podman", "history", "--no-trunc", "--format=json", image))
    return [*reversed(history)]


@contextmanager
def mounted(image: str) -> Iterator[Path]:
    """Mount an image's files."""
    try:
        yield Path(run("podman", "image", "mount", image).strip())
    finally:
        run("podman", "image", "unmount", image)


class Container:
    """A container with a read-only root file system, without capabilities, with a tmpfs for /tmp."""

    def __init__(self, image: str, *command: str, settings: Mapping[str, str]) -> None:
        self.name = f"retouch-{secrets.token_hex(4)}"
        variables = [f"--env={name}={value}" for name, value in settings.items()]
        options = ["--rm", f"--name={self.name}", *_LOCKED_DOWN, *variables]
        self._output = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed with the container
        self._process = subprocess.Popen(  # noqa: S603
            ["podman", "run", *options, image, *command],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            run("podman", "kill", self.name)
        self._process.wait()
        self._output.close()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode()

    def run(self, command: str) -> str:
        """Run a shell command in it and return what that printed."""
        return run("podman", "exec", self.name, "sh", "-c", command)

    def require_healthy(self) -> None:
        run("podman", "healthcheck", "run", self.name)

    def wait(self) -> int:
        return self._process.wait(START_S)

    def end(self) -> int:
        """Stop it as a platform does; return its exit status."""
        run("podman", "kill", "--signal=TERM", self.name)
        return self.wait()

    def wait_until_ready(self, url: str) -> float:
        """Return the seconds until the service in it was ready."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < START_S:
            assert self.running, self.output
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", trust_env=False).status_code == httpx.codes.OK:
                    return time.monotonic() - began_s
            time.sleep(0.1)
        raise AssertionError(self.output)

    def require_locked_down(self) -> None:
        """Require that all its processes run as our user, without capabilities, and cannot write."""
        lines = self.run("cat /proc/[0-9]*/status").splitlines()
        users = {uid for line in lines if line.startswith("Uid:") for uid in line.split()[1:]}
        assert users == {UID}, users
        rights = {line.split()[1] for line in lines if line.startswith("CapEff:")}
        assert rights == {"0" * 16}, rights
        places = ("/x", "/app/x", "/var/x", "/home/bentoml/models/x", f"{BENTO}/x")
        refused = self.run(f"touch {' '.join(places)} 2>&1 || true")
        assert refused.count("Read-only file system") == len(places), refused
