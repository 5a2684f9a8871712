"""Keeps the tests that collect garbage fast."""

import gc


def pytest_collection_finish() -> None:
    """Exempt what the imports created: torch alone makes each collection cost a second."""
    gc.collect()
    gc.freeze()
