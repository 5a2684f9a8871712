from retouch.demo import build
from retouch.engine.checkpoint.find import DEMO_FOLDER
from retouch.engine.preset import PRESET_FILE, PresetFile


def test_the_trainer_writes_the_shipped_preset() -> None:
    shipped = PresetFile.model_validate_json((DEMO_FOLDER / PRESET_FILE).read_bytes())
    assert shipped == build.PRESET
