"""The HTTP entry point: ASGI parts in front of BentoML's app. None of them knows the model."""
