import os
import shutil
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from retouch.errors import StorageError, StoreDenied, StoreUnavailable
from retouch.storage import local
from retouch.storage.local import LocalStore, load_secret

KEY = "retouch/results/0f/job-1.png"
SOURCE = "retouch/sources/v1/ab/abcd"
TTL_S = 3600


class Clock:
    def __init__(self) -> None:
        self.now_s = int(time.time()) + 0.5  # files have the real time: of a later one all are old

    def __call__(self) -> float:
        return self.now_s


def build(folder: Path, clock: Clock | None = None, max_bytes: int = 1 << 30) -> LocalStore:
    return LocalStore(
        folder,
        secret=b"s" * 32,
        public_url="",
        result_ttl_s=TTL_S,
        max_bytes=max_bytes,
        clock=clock or Clock(),
    )


def put(store: LocalStore, key: str = KEY, body: bytes = b"picture") -> None:
    store.put(key, body, content_type="image/png", metadata={"n": "1"}, timeout_s=1)


def get(store: LocalStore, key: str = KEY) -> bytes | None:
    found = store.get(key, max_bytes=1000, timeout_s=1)
    return found.body if found else None


def signed(store: LocalStore, expires_in_s: int = 60) -> tuple[str, str]:
    url = store.link(KEY, expires_in_s=expires_in_s)
    return KEY, urlsplit(url).query


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(path: Path, moment_s: float) -> None:
    os.utime(path, (moment_s, moment_s))


def test_an_object_is_one_file_that_only_this_user_can_read(tmp_path: Path) -> None:
    put(build(tmp_path))
    (path,) = files(tmp_path)
    assert path == tmp_path / "objects" / KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().endswith(b"\npicture")


def test_a_body_may_hold_line_breaks(tmp_path: Path) -> None:
    store = build(tmp_path)
    put(store, body=b"\n\n{}\n")
    assert get(store) == b"\n\n{}\n"


def test_a_key_below_an_object_is_absent_and_cannot_be_put(tmp_path: Path) -> None:
    store = build(tmp_path)
    put(store, "a")
    assert get(store, "a/b") is None
    with pytest.raises(StorageError, match="LOCAL_STORE_DIR"):
        put(store, "a/b")
    assert get(store, "a") == b"picture"
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("linked", [KEY, "retouch/results", "retouch"])
def test_a_symbolic_link_in_the_store_is_not_followed(tmp_path: Path, linked: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "store"
    put(build(outside))
    there, here = outside / "objects" / linked, folder / "objects" / linked
    store = build(folder)
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(there)
    before = files(outside)

    for use in (get, put, lambda one: one.list_keys(f"{KEY}/", max_keys=9, timeout_s=1), signed):
        with pytest.raises(StoreDenied, match="symbolic link in LOCAL_STORE_DIR"):
            use(store)
    assert files(outside) == before


def test_the_directory_itself_may_be_linked(tmp_path: Path) -> None:
    (tmp_path / "disk" / "objects").mkdir(parents=True)
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = build(tmp_path / "store")
    put(store)
    assert get(store) == b"picture"


def test_a_key_that_is_a_folder_is_an_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    store = build(tmp_path)
    put(store, "a/b")
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(StorageError):
        get(store, "a")
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no json\nx", b"[]\nx", b"{}\nx", b"[" * 40_000),
        b'{"content_type": "a", "metadata": null}\nx',
        b'{"content_type": "a", "metadata": {"etag": 5}}\nx',
        b'{"content_type": "a", "metadata": []}\nx',
        b'{"content_type": 5, "metadata": {}}\nx',
    ],
)
def test_a_file_of_another_format_is_a_storage_error(tmp_path: Path, content: bytes) -> None:
    store = build(tmp_path)
    put(store)
    (tmp_path / "objects" / KEY).write_bytes(content)
    with pytest.raises(StoreUnavailable):
        get(store)


def test_a_full_disk_is_a_storage_error_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(tmp_path)

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailable, match="LOCAL_STORE_DIR"):
        put(store)
    assert files(tmp_path) == []


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="LOCAL_STORE_DIR"):
        build(tmp_path / "file")
    with pytest.raises(StorageError, match="LOCAL_STORE_DIR"):
        load_secret(tmp_path / "file", "")


def test_a_missing_permission_is_a_denial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        StorageError, match="no permission in the local store; check LOCAL_STORE_DIR"
    ) as caught:
        get(store)
    assert not caught.value.retryable


def test_a_check_that_reads_something_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(tmp_path)
    store.check(timeout_s=1)
    assert files(tmp_path) == []
    monkeypatch.setattr(store, "get", lambda *_, **__: None)
    with pytest.raises(StorageError, match="LOCAL_STORE_DIR"):
        store.check(timeout_s=1)


def test_a_put_survives_sweeps_that_remove_its_empty_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(tmp_path)
    replace = Path.replace
    swept: list[Path] = []

    def sweep_first(draft: Path, path: Path) -> Path:
        if len(swept) < 3:
            swept.append(path.parent)
            store.sweep()
        return replace(draft, path)

    monkeypatch.setattr(Path, "replace", sweep_first)
    put(store)
    assert len(swept) == 3
    assert get(store) == b"picture"


def test_results_are_deleted_with_their_links_and_sources_after_a_month(tmp_path: Path) -> None:
    clock = Clock()
    store = build(tmp_path, clock)
    for key in (KEY, SOURCE):
        put(store, key)
        age(tmp_path / "objects" / key, clock.now_s)
    clock.now_s += TTL_S
    store.sweep()
    assert get(store, KEY) == b"picture"
    clock.now_s += 1
    store.sweep()
    assert get(store, KEY) is None
    assert not (tmp_path / "objects/retouch/results").exists()
    clock.now_s += local.SOURCE_LIFE_S
    build(tmp_path, clock)
    assert files(tmp_path) == []


def test_a_new_link_prolongs_the_life_of_its_object(tmp_path: Path) -> None:
    clock = Clock()
    store = build(tmp_path, clock)
    put(store)
    age(tmp_path / "objects" / KEY, clock.now_s)
    clock.now_s += TTL_S - 1
    link = signed(store, expires_in_s=TTL_S)
    clock.now_s += TTL_S - 1
    store.sweep()
    assert store.open_link(*link).body == b"picture"


def test_a_put_starts_a_sweep_in_the_background_only_once_in_a_while(tmp_path: Path) -> None:
    clock = Clock()
    store = build(tmp_path, clock)
    put(store)
    old = tmp_path / "objects" / KEY
    age(old, clock.now_s - TTL_S - 1)
    put(store, "other")
    assert old.exists()
    clock.now_s += local.SWEEP_EVERY_S
    put(store, "other")
    for sweeping in threading.enumerate():
        if sweeping.name == "sweep":
            sweeping.join()
    assert not old.exists()


def test_a_sweep_deletes_the_drafts_of_dead_writers_only(tmp_path: Path) -> None:
    clock = Clock()
    build(tmp_path, clock)
    for name, age_s in (("dead", local.DRAFT_LIFE_S + 1), ("alive", 1)):
        (tmp_path / "drafts" / name).write_bytes(b"half")
        age(tmp_path / "drafts" / name, clock.now_s - age_s)
    build(tmp_path, clock)
    assert [path.name for path in files(tmp_path)] == ["alive"]


def fill(store: LocalStore, folder: Path, count: int, clock: Clock) -> list[str]:
    """Put objects of 1000 bytes, the oldest first."""
    keys = [f"sources/v1/{number:02}/{number}" for number in range(count)]
    for age_s, key in enumerate(reversed(keys)):
        put(store, key, bytes(1000))
        age(folder / "objects" / key, clock.now_s - age_s)
    return keys


def test_a_store_over_its_size_loses_its_oldest_objects(tmp_path: Path) -> None:
    clock = Clock()
    keys = fill(build(tmp_path, clock), tmp_path, 8, clock)
    store = build(tmp_path, clock, max_bytes=5500)
    assert [key for key in keys if get(store, key)] == keys[-4:]


def test_a_put_over_the_size_starts_a_sweep_at_once(tmp_path: Path) -> None:
    clock = Clock()
    store = build(tmp_path, clock, max_bytes=5500)
    fill(store, tmp_path, 5, clock)
    put(store, "sources/v1/99/99", bytes(1000))
    for sweeping in threading.enumerate():
        if sweeping.name == "sweep":
            sweeping.join()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 5500


def test_processes_that_share_a_store_keep_it_within_its_size_together(tmp_path: Path) -> None:
    stores = [build(tmp_path, max_bytes=5500) for _ in range(4)]
    for number in range(24):
        put(stores[number % 4], f"sources/v1/{number:02}/{number:02}", bytes(1000))
        for sweeping in threading.enumerate():
            if sweeping.name == "sweep":
                sweeping.join()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 5500


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path)
    store.require_space()
    usage = shutil.disk_usage(tmp_path)._replace(free=local.MIN_FREE_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreUnavailable, match="LOCAL_STORE_DIR is full"):
        store.require_space()


def test_a_configured_secret_wins_and_writes_nothing(tmp_path: Path) -> None:
    assert load_secret(tmp_path / "store", "configured") == b"configured"
    assert not (tmp_path / "store").exists()


def test_a_made_secret_is_kept_for_this_user_alone(tmp_path: Path) -> None:
    first = load_secret(tmp_path / "store", "")
    assert len(first) == 32
    assert load_secret(tmp_path / "store", "") == first
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_secret(tmp_path / "other", "") != first


def test_a_sweep_deletes_the_draft_of_a_secret_whose_writer_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Path, "replace", die)
    monkeypatch.setattr(Path, "unlink", die)  # a killed process cleans up nothing
    with pytest.raises(Killed):
        load_secret(tmp_path, "")
    monkeypatch.undo()
    clock = Clock()
    (draft,) = files(tmp_path)
    age(draft, clock.now_s - local.DRAFT_LIFE_S - 1)
    build(tmp_path, clock)
    assert files(tmp_path) == []


def test_one_sweep_runs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    store = build(tmp_path, clock)
    walks: list[object] = []

    def walk(folder: Path, **_: object) -> list[tuple[str, list[str], list[str]]]:
        walks.append(folder)
        store.sweep()  # as another thread would
        return []

    monkeypatch.setattr(os, "walk", walk)
    store.sweep()
    assert len(walks) == 2  # drafts and objects, once


def test_processes_that_start_together_share_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: load_secret(tmp_path / "store", ""), range(8)))
    assert len(set(made)) == 1
    files = [path.name for path in (tmp_path / "store").iterdir() if path.is_file()]
    assert files == ["link_secret"]
