import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import os, subprocess, sys, threading
sys.path[:] = [sys.argv[1], *sys.path]
from retouch.images.seccomp import forbid_processes
assert forbid_processes()
ran = []
thread = threading.Thread(target=ran.append, args=(1,))
thread.start()
thread.join()
attempts = (
    os.fork,
    lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    lambda: os.posix_spawn("/bin/true", ["true"], {}),
    lambda: subprocess.run(["/bin/true"]),
)
for attempt in attempts:
    try:
        attempt()
    except PermissionError:
        ran.append("refused")
print(ran)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")
def test_threads_can_be_started_and_processes_cannot() -> None:
    source = os.path.abspath("src")  # noqa: PTH100
    command = [sys.executable, "-c", SCRIPT, source]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    assert ended.stdout.strip() == "[1, 'refused', 'refused', 'refused', 'refused']", ended.stderr
