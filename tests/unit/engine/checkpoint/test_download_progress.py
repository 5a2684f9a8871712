import pytest

from retouch.engine.checkpoint import download_progress


def test_a_download_is_told_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_progress, "EVERY_S", 0.0)
    reported: list[str] = []
    lines = download_progress.make_line_bar(reported.append)
    with lines(total=0, desc="Reconstructing", unit="B") as bar:
        bar.total = 8 << 20
        bar.update(2 << 20)
        bar.update(6 << 20)
    assert reported[0] == "download: 2 of 8 MiB"
    assert "download: 8 of 8 MiB" in reported


@pytest.mark.parametrize("desc", ["Downloading bytes", "Fetching 3 files", None])
def test_other_bars_of_the_hub_library_are_silent(
    desc: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download_progress, "EVERY_S", 0.0)
    reported: list[str] = []
    with download_progress.make_line_bar(reported.append)(total=3, desc=desc) as bar:
        bar.update(3)
    assert reported == []
    assert capfd.readouterr() == ("", "")


def test_lines_are_limited_in_rate() -> None:
    reported: list[str] = []
    with download_progress.make_line_bar(reported.append)(
        total=1 << 30, desc="Reconstructing"
    ) as bar:
        for _ in range(100):
            bar.update(1 << 20)
            bar.refresh()
    assert len(reported) == 1
