"""`GET /info`: what is loaded, for forms and programs that adapt to it."""

from dataclasses import asdict

from retouch import __version__
from retouch.editing.ports import EngineInfo
from retouch.schema import InfoDefaults, InfoLora, ServiceInfo


def build_info(engine: EngineInfo, *, max_image_bytes: int) -> ServiceInfo:
    """Return what callers may know of the loaded model."""
    preset = engine.preset
    return ServiceInfo(
        version=__version__,
        model=engine.model,
        revision=engine.revision,
        dtype=engine.dtype,
        memory_plan=engine.memory_plan,
        attention=engine.attention,
        defaults=InfoDefaults(
            num_inference_steps=preset.steps,
            guidance_scale=preset.guidance_scale,
            area_px=preset.area_px,
        ),
        profiles=[one.name for one in engine.profiles] or ["full"],
        max_images=len(engine.max_areas_px),
        max_areas_px=list(engine.max_areas_px),
        max_image_bytes=max_image_bytes,
        loras=[InfoLora.model_validate(asdict(adapter)) for adapter in engine.adapters],
        examples=list(engine.examples),
        notes=list(engine.notes),
    )
