"""README, DOCS.md, .env.example and the code say the same."""

import json
import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from retouch.engine.preset import PresetFile
from retouch.engine.profiles import ProfileFile
from retouch.errors import error_classes
from retouch.images.decode import Limits
from retouch.schema import EXAMPLE, SCHEDULERS, EditRequest, EditResult
from retouch.schema.response import ErrorInfo, Meta, Result
from retouch.settings import DEFAULT_REGION, Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = (ROOT / "DOCS.md").read_text(encoding="utf-8")
ENV = (ROOT / ".env.example").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "tests/bench/RESULTS.md").read_text(encoding="utf-8")
METRICS = (ROOT / "src/retouch/web/metrics.py").read_text(encoding="utf-8")
PAGES = [
    Path(name)
    for name in (
        "README.md",
        "DOCS.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
        "tests/bench/RESULTS.md",
    )
]
MAX_LINE = 300
MAX_README_LINES = 100
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))

# To the letter from the project's first description; what it calls required has no default.
PROMISED_SETTINGS = {
    "S3_ENDPOINT": "",
    "S3_ACCESS_KEY": "",
    "S3_SECRET_KEY": "",
    "S3_BUCKET": "",
    "HF_TOKEN": "",
    "S3_REGION": "us-west-000",
    "S3_SECURE": "true",
    "S3_OBJECT_PREFIX": "qwen-image-edit/",
    "PRESIGN_EXPIRY": "86400",
    "MAX_IMAGE_BYTES": "26214400",
    "TIMEOUT_SECONDS": "120",
    "LOG_LEVEL": "INFO",
}
PROMISED_ERRORS = {"BadInput", "DownloadFailed", "CacheReadFailed", "ModelError", "StorageError"}
PROMISED_RESULT = {"presigned_url", "bucket", "object_key", "content_type", "expires_in", "meta"}


def rows(text: str, heading: str, columns: int) -> dict[str, list[str]]:
    """Read the tables under a heading: first cell without backticks to the other cells."""
    section = text.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")]
        if line.startswith("| `") and len(cells) == columns:
            for name in re.findall(r"`([^`]+)`", cells[0]):
                found[name] = cells[1:]
    return found


def plain_defaults() -> dict[str, str]:
    defaults = {}
    for name, field in Settings.model_fields.items():
        value = field.default
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        defaults[name.upper()] = text.lower() if isinstance(value, bool) else text
    return defaults


def test_every_setting_stands_in_env_example_with_its_default() -> None:
    assert dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", ENV, re.MULTILINE)) == plain_defaults()


def test_env_example_says_the_range_of_each_number() -> None:
    found = re.findall(r"^#.* \(((?:over|at least) [^()]+)\)\n#?([A-Z0-9_]+)=", ENV, re.MULTILINE)
    words = {"gt": "over", "ge": "at least", "le": "at most"}
    expected = {}
    for name, field in Settings.model_fields.items():
        bounds = [(bound, getattr(one, bound, None)) for one in field.metadata for bound in words]
        texts = [f"{words[bound]} {value}" for bound, value in bounds if value is not None]
        expected |= {name.upper(): ", ".join(texts)} if texts else {}
    assert {name: text for text, name in found} == expected


def test_env_example_sets_nothing_that_the_image_sets() -> None:
    """With `docker --env-file` an empty MODEL_ID would turn off a baked model."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    of_image = set(re.findall(r"^(?:ENV| {4})\s*([A-Z0-9_]+)=", dockerfile, re.MULTILINE))
    assert {"MODEL_ID", "LOCAL_STORE_DIR"} <= of_image
    assert of_image.isdisjoint(re.findall(r"^([A-Z0-9_]+)=", ENV, re.MULTILINE))


def test_every_setting_stands_in_the_docs_with_its_default() -> None:
    documented = {
        name: cells[0].strip("`") for name, cells in rows(DOCS, "## Set it up", 4).items()
    }
    expected = {name: value or "unset" for name, value in plain_defaults().items()}
    assert documented == expected | {"S3_REGION": DEFAULT_REGION}


@pytest.mark.parametrize("name", PROMISED_SETTINGS)
def test_a_promised_setting_has_its_promised_default(name: str) -> None:
    promised = PROMISED_SETTINGS[name]
    if name == "S3_REGION":
        assert promised == DEFAULT_REGION
    else:
        assert plain_defaults()[name] == promised


def test_every_error_code_stands_in_the_docs_with_type_status_and_advice() -> None:
    documented = {
        code: tuple(cells[:3]) for code, cells in rows(DOCS, "## Handle errors", 5).items()
    }
    assert documented == {
        cls.code: (cls.type, str(cls.status), "yes" if cls.retryable else "no")
        for cls in error_classes()
    }


def test_every_error_type_stands_in_the_readme_with_its_statuses() -> None:
    found: dict[str, set[str]] = {}
    section = README.split("## Errors", 1)[1].split("\n## ", 1)[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            types, statuses = line.split("|")[1:3]
            names, numbers = re.findall(r"`(\w+)`", types), re.findall(r"\d{3}", statuses)
            split = len(names) > 1
            for at, name in enumerate(names):
                found[name] = {numbers[at]} if split else set(numbers)
    expected: dict[str, set[str]] = {}
    for cls in error_classes():
        expected.setdefault(cls.type, set()).add(str(cls.status))
    assert found == expected


def test_the_promised_error_types_are_those_of_the_contract() -> None:
    types = set(typing.get_args(ErrorInfo.model_fields["type"].annotation))
    assert types >= PROMISED_ERRORS
    assert {cls.type for cls in error_classes()} == types


def test_the_promised_answer_has_every_field() -> None:
    assert set(Result.model_fields) >= PROMISED_RESULT
    assert set(EditResult.model_fields) == {"status", "result", "results"}


def test_the_example_of_the_contract_is_a_request() -> None:
    request = EditRequest.model_validate(dict(EXAMPLE))
    assert request.model_dump(exclude_unset=True) == dict(EXAMPLE)


def test_every_request_field_stands_in_readme_and_docs() -> None:
    fields = set(EditRequest.model_fields)
    assert set(rows(README, "## Request", 3)) >= fields
    assert set(rows(DOCS, "## Send a request", 3)) >= fields


def test_every_field_of_meta_stands_in_the_docs() -> None:
    assert [name for name in Meta.model_fields if f"`{name}`" not in DOCS] == []


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_stands_in_readme_and_docs(name: str) -> None:
    assert f"`{name}`" in README
    assert f"`{name}`" in DOCS


def test_every_event_that_is_logged_stands_in_the_docs() -> None:
    logged = set(re.findall(r'event\(\s*_?log,\s*"([a-z_.]+)"', SOURCE))
    logged |= set(re.findall(r'_log\.\w+\("([a-z_]+\.[a-z_]+)"', SOURCE))
    section = DOCS.split("## Read the logs", 1)[1].split("\n## ", 1)[0]
    assert {name for name in logged if f"`{name}`" not in section} == set()
    assert logged


def test_the_request_of_the_readme_parses() -> None:
    body = re.search(r"echo '(\{.*\})' \|", README)
    assert body
    text = re.sub(r"'\$\(base64 [^)]*\)'", "AAAA", body[1])
    assert EditRequest.model_validate(json.loads(text)).prompt


def anchors(text: str) -> set[str]:
    """Name the headings as GitHub's links do."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text("utf-8")):
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


def test_the_contents_of_the_results_link_each_of_its_sections() -> None:
    contents, sections = RESULTS.split("\n## ", 1)
    assert re.findall(r"\[([^]]+)\]\(#", contents) == re.findall(
        r"^## (.+)$", f"## {sections}", re.MULTILINE
    )


def test_a_package_stands_below_what_it_imports() -> None:
    table = CONTRIBUTING.split("\n## Where things are\n", 1)[1].split("\n## ", 1)[0]
    above: set[str] = set()
    for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE):
        names = {name.removesuffix(".py") for name in re.findall(r"`([\w/.]+)`", row)}
        above |= names
        for name in names:
            folder = ROOT / "src/retouch" / name
            files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
            text = "\n".join(path.read_text(encoding="utf-8") for path in files)
            imported = set(re.findall(r"^\s*from retouch\.(\w+)", text, re.MULTILINE))
            assert imported - above == set(), name


@pytest.mark.parametrize("part", ["Use", "Operate", "Change"])
def test_the_contents_of_a_part_link_each_of_its_sections(part: str) -> None:
    section = DOCS.split(f"\n# {part}\n", 1)[1].split("\n# ", 1)[0]
    contents = section.split("\n## ", 1)[0]
    assert re.findall(r"\[([^]]+)\]\(#", contents) == re.findall(
        r"^## (.+)$", section, re.MULTILINE
    )


def test_no_line_is_too_long_to_read() -> None:
    for text in (README, DOCS):
        assert [line for line in text.splitlines() if len(line) > MAX_LINE] == []
    assert len(README.splitlines()) < MAX_README_LINES


def test_every_metric_stands_in_the_docs() -> None:
    names = set(re.findall(r'"(retouch_[a-z_]+)"', METRICS))
    assert names
    assert {name for name in names if f"`{name}" not in DOCS} == set()


def test_the_answer_of_the_readme_parses() -> None:
    body = README.split("```json\n", 1)[1].split("```", 1)[0]
    answer = json.loads(body)
    assert EditResult.model_validate(answer)
    assert set(answer["result"]["meta"]) == set(Meta.model_fields)


@pytest.mark.parametrize(
    ("heading", "model"),
    [("## Choose a checkpoint", PresetFile), ("## Offer few-step profiles", ProfileFile)],
)
def test_every_field_of_a_file_that_operators_write_stands_in_the_docs(
    heading: str, model: type[BaseModel]
) -> None:
    section = DOCS.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    assert [name for name in model.model_fields if not re.search(rf'[`"]{name}[`"]', section)] == []


def test_the_size_that_sources_are_reduced_to_stands_in_the_docs() -> None:
    section = DOCS.split("\n## Send a request\n", 1)[1].split("\n## ", 1)[0]
    assert section.count(f"{Limits().working_pixels:,} pixels") > 1


def test_every_detail_of_an_error_stands_in_the_docs() -> None:
    given = set(re.findall(r'details=\{"(\w+)"', SOURCE))
    given |= set(re.findall(r'details(?:\["| = \{\*\*error\.details, ")(\w+)"', SOURCE))
    section = DOCS.split("\n## Handle errors\n", 1)[1].split("\n| code |", 1)[0]
    assert {name for name in given if f"`{name}`" not in section} == set()
    assert {"fields", "source", "results", "allow"} <= given


def test_ci_runs_the_readmes_test_command() -> None:
    command = "pip install -r tests/requirements.txt && pre-commit run -a && pytest"
    assert f"\n{command}\n" in README
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ci.rstrip().replace("pip install -q -r", "pip install -r").endswith(command)


def test_every_requirement_is_pinned_exactly() -> None:
    for file in ("requirements.txt", "tests/requirements.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            assert (
                not line
                or line.startswith(("#", "-r "))
                or re.fullmatch(r"[\w-]+==[\w.]+(; sys_platform == .+)?", line)
            )
