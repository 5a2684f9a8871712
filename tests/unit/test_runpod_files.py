"""What Runpod's Hub reads: every setting in it is one of ours, and its test is a request."""

import json
from pathlib import Path
from typing import Any

import pytest

from retouch import demo
from retouch.schema import EditRequest
from retouch.settings import Settings

FOLDER = Path(__file__).parents[2] / ".runpod"
HUB: dict[str, Any] = json.loads((FOLDER / "hub.json").read_text())["config"]
TESTS: dict[str, Any] = json.loads((FOLDER / "tests.json").read_text())


@pytest.mark.parametrize("preset", HUB["presets"], ids=lambda preset: preset["name"])
def test_a_preset_has_settings_that_pass(preset: dict[str, Any]) -> None:
    given = {name.lower(): value for name, value in preset["defaults"].items()}
    assert Settings(_env_file=None, **given).model_fields_set == set(given)


def test_there_is_a_preset_for_every_pool() -> None:
    assert [preset["name"].split(" GB")[0] for preset in HUB["presets"]] == ["80", "48", "24", "16"]


def test_every_field_of_the_form_is_a_setting_with_its_default() -> None:
    for field in HUB["env"]:
        setting = Settings.model_fields[field["key"].lower()]
        if field["input"].get("advanced"):
            assert field["input"]["default"] == setting.default


def test_the_test_of_the_hub_is_a_request_to_the_demo_model() -> None:
    [test] = TESTS["tests"]
    EditRequest.model_validate(test["input"])
    env = {entry["key"]: entry["value"] for entry in TESTS["config"]["env"]}
    own = Path(demo.CHECKPOINT_DIR).relative_to(FOLDER.parent / "src")
    assert env == {"MODEL_ID": f"/home/bentoml/bento/src/{own}"}
