"""Two loads of the tiny model that stream from the same memory, as two processes do."""

from functools import partial

import pytest
import torch
from support.models.reference_edits import IMAGE, WORK
from support.models.streaming_loads import StreamingLoads, pixels
from support.models.tiny import build_tiny

from retouch.editing.ports import run_edit
from retouch.engine.memory import weights as weights_module
from retouch.engine.memory.shared_memory import HostShare
from retouch.engine.memory.weights import Weights
from retouch.errors import ModelError

pytestmark = pytest.mark.integration


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> StreamingLoads:
    return StreamingLoads(monkeypatch)


def bytes_of(weights: Weights) -> dict[str, bytes]:
    return {
        path: tensor.detach().view(-1).view(torch.uint8).numpy().tobytes()
        for path, tensor in weights.tensors().items()
    }


def test_the_second_process_reads_only_what_stays_on_its_gpu(
    host: StreamingLoads, share: HostShare
) -> None:
    first, second = host.load(share), host.load(share)
    own, shared, own_again, shared_again = host.read
    assert own == own_again
    assert shared_again == set()
    assert {path.split(".")[1] for path in shared} == {"transformer_blocks", "model"}
    assert not own & shared
    streamed = sum(unit.size_bytes for unit in (*first.params.blocks, *first.params.layers))
    assert streamed < share.used_bytes
    assert pixels(first) == pixels(second) == run_edit(build_tiny(), [IMAGE], WORK)[0].tobytes()


def test_a_process_that_streams_more_reads_only_the_rest(
    host: StreamingLoads, share: HostShare
) -> None:
    host.streamed = {"streamed_blocks": frozenset({1})}
    host.load(share)
    host.streamed = {}
    second = host.load(share)
    (_, rest) = host.read[2:]
    assert {path.removeprefix("transformer.transformer_blocks.")[0] for path in rest} == {"0"}
    assert pixels(second) == pixels(host.load(None))


def test_packed_weights_are_shared_too(host: StreamingLoads, share: HostShare) -> None:
    alone = pixels(host.load(None, packed="int8"))
    first = host.load(share, packed="int8")
    host.read.clear()
    second = host.load(share, packed="int8")
    assert host.read[1] == set()
    assert pixels(first) == pixels(second) == alone


def test_weights_that_were_read_in_part_are_read_again(
    host: StreamingLoads, share: HostShare
) -> None:
    host.fails_at = 2
    with pytest.raises(ModelError):
        host.load(share)
    assert pixels(host.load(share)) == pixels(host.load(None))
    assert host.read[3] == host.read[1]


def test_other_weights_are_of_one_process_and_planned_so(
    host: StreamingLoads, share: HostShare
) -> None:
    first = host.load(share, dtype=torch.float16)
    before = bytes_of(first)
    used_bytes = share.used_bytes
    other = host.load(share)
    assert host.planned == [share, share, None]
    assert pixels(other) == pixels(host.load(None))
    assert bytes_of(first) == before
    assert share.used_bytes == used_bytes


def test_a_process_that_casts_leaves_the_others_their_bytes(
    host: StreamingLoads, share: HostShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = partial(host.load, dtype=torch.float16)
    first, second, alone = load(share), load(share), load(None)
    before = bytes_of(second)
    pinned: list[str] = []
    monkeypatch.setattr(weights_module, "pin", lambda unit: pinned.append(unit.name) or True)
    monkeypatch.setattr(weights_module, "unpin", lambda unit: pinned.remove(unit.name))
    first.device = torch.device("cuda")
    first.pin()
    streamed = sorted(pinned)
    for weights in (first, alone):
        weights.cast(torch.bfloat16)
    assert bytes_of(second) == before
    assert bytes_of(first) == bytes_of(alone) != before
    assert sorted(pinned) == streamed
    first.close()
    assert pinned == []


def test_a_cast_without_room_for_a_copy_changes_nothing(
    host: StreamingLoads, share: HostShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = host.load(share, dtype=torch.float16)
    before = bytes_of(weights)
    monkeypatch.setattr(weights_module, "measure_host", lambda: 1)
    with pytest.raises(ModelError, match="short of memory"):
        weights.cast(torch.bfloat16)
    assert weights.transformer.dtype == torch.float16
    assert bytes_of(weights) == before
