from retouch.demo import CHECKPOINT_DIR, build
from retouch.engine.preset import PRESET_FILE, PresetFile


def test_the_trainer_writes_the_shipped_preset() -> None:
    shipped = PresetFile.model_validate_json((CHECKPOINT_DIR / PRESET_FILE).read_bytes())
    assert shipped == build.PRESET
