import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from support.fakes import URL, House
from support.worker import build_worker

from retouch.schema import EditRequest, EditResult, ErrorBody
from retouch.worker.handler import MAX_ANSWER_BYTES

pytestmark = pytest.mark.fuzz

text = st.text(st.characters(exclude_categories=()), max_size=80)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=10,
)
names = st.sampled_from(sorted(EditRequest.model_fields)) | text
changes = st.dictionaries(names, values, max_size=40)
inputs = values | changes.map(lambda made: {"image_url": URL, "prompt": "warm", **made})


@given(inputs, st.none() | st.text(max_size=80))
@settings(max_examples=300, deadline=None)
async def test_any_job_gets_an_envelope_of_bounded_size(body: Any, job_id: str | None) -> None:
    house = House()
    answer = await build_worker(house).handle({"id": job_id, "input": body})
    await house.editor.close()
    sent = json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()  # as the SDK sends it
    assert len(sent) <= MAX_ANSWER_BYTES
    if "error" in answer:
        assert ErrorBody.model_validate_json(answer["error"]).error.message == answer["message"]
    else:
        EditResult.model_validate(answer)
