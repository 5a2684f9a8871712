from dataclasses import replace

import pytest
from support.fakes import FakeEngine

from retouch.editing.ports import AdapterChoice, AdapterInfo
from retouch.lifecycle.warm_up import warm_up

CHOICES = AdapterChoice(), AdapterChoice("", (("film", 0.5),))


@pytest.mark.parametrize(
    ("compiled", "scales"), [(False, [[]]), (True, [[], [], [("film", 0.5)], [("film", 0.5)]])]
)
def test_a_compiled_engine_edits_with_each_choice_of_adapters_in_two_sizes(
    *, compiled: bool, scales: list[list[tuple[str, float]]]
) -> None:
    engine = FakeEngine()
    film = AdapterInfo("film", "ab", 1, 4)
    engine.info = replace(engine.info, adapters=(film,), adapter_choices=CHOICES)
    warm_up(engine, compiled=compiled)
    assert [[(one.name, one.scale) for one in edit.loras] for edit in engine.edits] == scales


def test_an_engine_edits_with_what_its_default_merges() -> None:
    engine = FakeEngine()
    film = AdapterInfo("film", "ab", 1, 4, always=True, merged=True)
    engine.info = replace(engine.info, adapters=(film,))
    warm_up(engine, compiled=False)
    assert [one.merged for edit in engine.edits for one in edit.loras] == [True]
