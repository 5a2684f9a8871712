import asyncio
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from retouch import logs
from retouch.errors import BrokenImage
from retouch.logs import bind, event, redact

SECRET = "K0-s3cr3t"  # noqa: S105 - planted, to be looked for
PROMPT = "paint the cat's hat\nblue"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, restored afterwards."""
    root, quiet = logging.getLogger(), {name: logging.getLogger(name) for name in logs.QUIET}
    handlers, level = root.handlers[:], root.level
    levels = {name: logger.level for name, logger in quiet.items()}
    yield root
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, logger in quiet.items():
        logger.setLevel(levels[name])


class Output:
    """The lines written to stdout since, parsed."""

    def __init__(self, stream: StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def only(self) -> dict[str, Any]:
        (line,) = self.lines
        return line


@pytest.fixture
def output(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> Output:
    stream = StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    logs.install("INFO", secrets=["", SECRET])
    return Output(stream)


LOG = logging.getLogger("retouch.test")


def test_a_line_is_one_object_with_time_level_logger_event_and_fields(output: Output) -> None:
    before = datetime.now(UTC)
    event(LOG, "edit.finished", level=logging.WARNING, steps=4, cached=True, key=None, ms=1.23456)
    line = output.only
    moment = datetime.fromisoformat(line.pop("time"))
    assert abs((moment - before).total_seconds()) < 5
    assert moment.utcoffset() is not None
    assert line == {
        "level": "WARNING",
        "logger": "retouch.test",
        "message": "edit.finished",
        "requestId": None,
        "steps": 4,
        "cached": True,
        "key": None,
        "ms": 1.235,
    }


def test_a_line_below_the_level_is_not_written(output: Output) -> None:
    event(LOG, "edit.seen", level=logging.DEBUG)
    assert output.text == ""


def test_a_line_of_a_library_is_an_object_too(output: Output) -> None:
    logging.getLogger("some.library").info("got %s from %s", 3, "https://a.example/b?c=d")
    assert output.only["message"] == "got 3 from https://a.example/[redacted]"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_become_text(output: Output, number: float) -> None:
    event(LOG, "x.done", ms=number)
    assert output.only["ms"] == str(number)


def test_fields_of_any_type_become_text_and_are_redacted_too(output: Output) -> None:
    event(
        LOG,
        "x.done",
        path=Path("/a/b"),
        several=[f"https://a.example/{SECRET}", SECRET],
        raw=b"\xff",
        odd="\ud800 \x00 \n",
    )
    line = output.only
    assert line["path"] == "/a/b"
    assert line["several"] == "['https://a.example/[redacted]', '[redacted]']"
    assert line["raw"] == "b'\\xff'"
    assert line["odd"] == "\ud800 \x00 \n"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://a.example", "http://a.example"),
        ("http://a.example/", "http://a.example"),
        ("(https://a.example:8443/b)", "(https://a.example:8443/[redacted])"),
        ("https://u:p@a.example/b", "https://a.example/[redacted]"),
        ("https://u:p@a.example", "https://a.example"),
        ("https://a.example?token=1", "https://a.example/[redacted]"),
        ("https://a.example#token", "https://a.example/[redacted]"),
        ("S3+HTTP://a.example/b c", "S3+HTTP://a.example/[redacted] c"),
        ("'https://a.example/it's'", "'https://a.example/[redacted]'"),
        (
            "https://[::1]:80/x and https://b.example/y",
            "https://[::1]:80/[redacted] and https://b.example/[redacted]",
        ),
        ("data:image/png;base64,AAAA/+== end", "data:[redacted] end"),
        ("DATA:,hello%20there", "data:[redacted]"),
        ("metadata: a, b", "metadata: a, b"),
        ("no url here: a/b?c=d", "no url here: a/b?[redacted]"),
        (r'"https://a.example/b\"x"', r'"https://a.example/[redacted]\"x"'),
    ],
)
def test_urls_are_cut_to_their_host(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_a_secret_is_replaced_before_a_shorter_one_it_begins_with() -> None:
    assert redact("key-1-more key-1", ["key-1", "key-1-more"]) == "[redacted] [redacted]"


def test_a_secret_too_short_to_be_one_does_not_blank_the_log() -> None:
    record = logging.makeLogRecord({"msg": "11 GiB, key EMPTY"})
    line = json.loads(logs.JsonFormatter(["1", "EMPTY"]).format(record))
    assert line["message"] == "11 GiB, key [redacted]"


def test_redaction_takes_linear_time() -> None:
    for text in ("a." * 80_000, "data:" * 40_000, "http://" * 40_000, "a@" * 80_000):
        began_s = time.thread_time()
        redact(text)
        assert time.thread_time() - began_s < 2


def test_secrets_are_redacted_in_event_fields_messages_and_traces(output: Output) -> None:
    event(LOG, "x.done", header=f"Bearer {SECRET}")
    LOG.info("said %s", SECRET)
    event(LOG, "x.failed", cause=ValueError(f"no {SECRET} at https://a.example/b"))
    assert SECRET not in output.text
    assert (
        "ValueError: no [redacted] at https://a.example/[redacted]" in output.lines[2]["exception"]
    )


def test_an_exception_is_in_the_line_with_its_causes(output: Output) -> None:
    fault = BrokenImage("no picture", path="/secret")
    try:
        try:
            _ = 1 // 0
        except ZeroDivisionError as error:
            raise fault from error
    except BrokenImage as error:
        event(LOG, "edit.failed", cause=error)
    trace = output.only["exception"]
    assert trace.startswith("Traceback")
    assert "ZeroDivisionError" in trace
    assert "BrokenImage: no picture" in trace


def test_the_prompt_is_redacted_inside_its_edit_only(output: Output) -> None:
    with bind("r-1", private=(f"  {PROMPT} \n", "", "low")):
        event(LOG, "x.done", text=f"low: {PROMPT.strip()}!")
        LOG.info("%s", PROMPT)
    event(LOG, "x.done", text=PROMPT)
    inside, message, outside = output.lines
    assert inside["text"] == "low: [redacted]!"
    assert message["message"] == "[redacted]"
    assert outside["text"] == PROMPT


def test_a_prompt_that_is_a_prefix_of_the_negative_prompt_leaves_no_rest_of_it(
    output: Output,
) -> None:
    with bind("r-1", private=("a cat", "a cat in the rain")):
        event(LOG, "x.done", text="a cat in the rain")
    assert output.only["text"] == "[redacted]"


def test_request_ids_nest_and_end(output: Output) -> None:
    with bind("outer"):
        with bind("inner"):
            event(LOG, "x.done")
        event(LOG, "x.done")
        with pytest.raises(KeyError), bind("broken"):
            raise KeyError
        event(LOG, "x.done")
    event(LOG, "x.done")
    assert [line["requestId"] for line in output.lines] == ["inner", "outer", "outer", None]


async def test_tasks_keep_their_own_request_id(output: Output) -> None:
    turn = asyncio.Event()

    async def work(name: str) -> None:
        with bind(name, private=[f"prompt of {name}"]):
            await turn.wait()
            event(LOG, "x.done", name=name, text="prompt of one, prompt of two")

    tasks = [asyncio.create_task(work(name)) for name in ("one", "two")]
    await asyncio.sleep(0)
    turn.set()
    await asyncio.gather(*tasks)
    assert [(line["requestId"], line["name"]) for line in output.lines] == [
        ("one", "one"),
        ("two", "two"),
    ]
    assert output.lines[0]["text"] == "[redacted], prompt of two"


def test_a_thread_given_the_context_logs_under_the_request(output: Output) -> None:
    with ThreadPoolExecutor(1) as threads, bind("r-1", private=[PROMPT]):
        threads.submit(copy_context().run, lambda: event(LOG, "x.done", text=PROMPT)).result()
        threads.submit(event, LOG, "x.done").result()
    within, without = output.lines
    assert (within["requestId"], within["text"]) == ("r-1", "[redacted]")
    assert without["requestId"] is None


def test_handlers_of_libraries_are_removed(root: logging.Logger) -> None:
    library = logging.getLogger("some.other.library")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    logs.install("INFO")
    assert not library.handlers
    assert library.propagate


@pytest.mark.parametrize("name", ["httpx", "httpcore", "urllib3", "minio", "asyncio", "PIL"])
def test_clients_that_log_whole_urls_are_held_at_warning(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stream = StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    logs.install("DEBUG")
    logging.getLogger(name).info("GET /a?token")
    assert stream.getvalue() == ""
    logging.getLogger(name).warning("careful")
    assert "careful" in stream.getvalue()


def test_the_level_is_the_one_given(root: logging.Logger) -> None:
    logs.install("ERROR")
    assert root.level == logging.ERROR
    assert len(root.handlers) == 1


def test_warnings_of_python_are_logged(output: Output) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old thing", stacklevel=1)
        logging.captureWarnings(capture=False)
    assert output.only["logger"] == "py.warnings"
    assert "old thing" in output.only["message"]


def test_the_log_line_names_no_wrong_place_for_a_caller(output: Output) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign,assignment]
    logging.getLogger().addHandler(handler)
    event(LOG, "x.done")
    logging.getLogger().removeHandler(handler)
    assert records[0].funcName == "test_the_log_line_names_no_wrong_place_for_a_caller"


@pytest.mark.parametrize("shown", [str, repr, json.dumps])
def test_a_private_text_is_kept_out_however_it_is_written(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], shown: Callable[[str], str]
) -> None:
    prompt = 'paint "Zo\u00eb"\nin a hat'
    logs.install("INFO")
    with bind("r1", private=[prompt]):
        root.warning("failed on %s", shown(prompt))
    printed = capsys.readouterr().out
    assert "failed on" in printed
    assert "Zo" not in printed


def test_a_line_of_a_recorded_trace_has_its_id(output: Output) -> None:
    tracer = TracerProvider(sampler=ALWAYS_ON).get_tracer("test")
    with tracer.start_as_current_span("an edit") as span:
        event(LOG, "inside.logged")
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_as_current_span("unrecorded"):
        event(LOG, "outside.logged")
    inside, outside = output.lines
    assert inside["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert "trace_id" not in outside
