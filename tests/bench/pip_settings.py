"""Lets a build inside an image install packages from the host's pip sources: `pip_settings.py FOLDER LOCK`.

Writes into a folder pip.conf and uv.toml as pip's configuration and its PIP_* variables say, and
`mounts`: options for buildah. Wheels of local folders that stand in for published ones get their
hashes into the lock.
"""

import ast
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LISTS = ("extra-index-url", "find-links")
_OF_UV = ("index-url", "no-index", *_LISTS)


def read_settings() -> dict[str, str]:
    """Return pip's settings; the environment overrides files."""
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    pairs = [line.split("=", 1) for line in listed.splitlines()]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, value in pairs}


def find_folders(settings: dict[str, str]) -> list[Path]:
    """Return the local folders that packages come from."""
    folders = []
    for name in _LISTS:
        for place in settings.get(name, "").split():
            url = urlsplit(place)
            path = Path(unquote(url.path))
            if url.scheme in ("", "file") and path.is_dir():
                folders.append(path.parent if name == "extra-index-url" else path)
    return folders


def admit(lock: Path, folders: list[Path]) -> None:
    """Add the hashes of the wheels in local folders to the packages of a lock that they are files of."""
    text = lock.read_text()
    for wheel in (path for folder in folders for path in folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        same = re.sub("[-_.]+", "[-_.]+", name)
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        text = re.sub(
            rf"^{same}=={re.escape(version.partition('+')[0])} \\$",
            lambda entry, found=found: f"{entry[0]}\n    --hash=sha256:{found} \\",  # type: ignore[misc]
            text,
            flags=re.IGNORECASE | re.MULTILINE,
        )
    lock.write_text(text)


def main() -> None:
    """Write the three files, and add the hashes of local folders' files."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    work, lock = map(Path, sys.argv[1:])
    settings = read_settings()
    settings["cert"] = "/etc/ssl/certs/ca-certificates.crt"  # Debian's path, in the image
    settings.pop("constraint", None)  # a file of the host; in the image the lock is enough
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (work / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    of_uv = {name: settings[name] for name in _OF_UV if name in settings}
    values = {name: v.split() if name in _LISTS else v for name, v in of_uv.items()}
    # pip takes the best version of all places, uv unasked that of the first that has any.
    lines = ["system-certs = true", "[pip]", 'index-strategy = "unsafe-best-match"']
    lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    (work / "uv.toml").write_text("\n".join([*lines, ""]))
    mounts = {work / "pip.conf": "/etc/pip.conf", work / "uv.toml": "/etc/uv/uv.toml"}
    folders = find_folders(settings)
    admit(lock, folders)
    mounts |= {folder: str(folder) for folder in folders}
    options = [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
    (work / "mounts").write_text("\n".join([*options, ""]))


if __name__ == "__main__":
    main()
