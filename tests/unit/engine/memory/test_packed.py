"""Weights that are kept packed and expanded just before they run."""

import itertools
from typing import Any

import pytest
import torch
from support.models.no_compiler import no_compiler
from support.models.streamed import keep_everything, stream_everything
from support.models.tiny import build_tiny_pipeline, keep_resident

from retouch.engine.memory.encode import PACKERS
from retouch.engine.memory.quantization import Quantization
from retouch.engine.memory.weights import Weights

ENCODINGS = sorted(PACKERS)
INT8 = Quantization("int8", "int8")


def is_packed(path: str, tensor: torch.Tensor) -> bool:
    stacks = ("transformer_blocks.", "visual.blocks.", "language_model.layers.")
    return tensor.ndim == 2 and any(s in path for s in stacks) and "_mod." not in path


def rounded(pipe: Any, encoding: str) -> Any:
    """The pipeline with its weights as they are after packing."""
    for module in (pipe.transformer, pipe.text_encoder):
        for path, parameter in module.named_parameters():
            if is_packed(path, parameter):
                packer = PACKERS[encoding]
                packer.expand(packer.pack(parameter.data), parameter.data)
    return pipe


def encode_text(weights: Weights) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.arange(12).reshape(2, 6)
        states: torch.Tensor = weights.text_encoder(
            input_ids=ids, output_hidden_states=True
        ).hidden_states[-1]
    return states


def read_blocks(weights: Weights) -> list[dict[str, torch.Tensor]]:
    return [
        {k: v.clone() for k, v in block.state_dict().items() if "_mod." not in k}
        for block in weights.blocks()
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("streamed", [False, True])
def test_each_block_has_its_expanded_weights_while_it_is_yielded(
    encoding: str, streamed: bool
) -> None:
    both = Quantization(encoding, encoding)
    pipe = build_tiny_pipeline()
    weights = (
        stream_everything(pipe, quantization=both) if streamed else keep_everything(pipe, both)
    )
    expected = rounded(build_tiny_pipeline(), encoding).transformer.transformer_blocks
    for _step in range(2):
        for found, block in zip(read_blocks(weights), expected, strict=True):
            for key, tensor in found.items():
                assert torch.equal(tensor, block.state_dict()[key]), key


def test_the_text_encoder_runs_with_expanded_weights() -> None:
    packed = encode_text(keep_everything(build_tiny_pipeline(), INT8))
    dense = encode_text(keep_resident(**parts(rounded(build_tiny_pipeline(), "int8"))))
    assert torch.equal(packed, dense)


def parts(pipe: Any) -> dict[str, Any]:
    return {name: getattr(pipe, name) for name in ("transformer", "vae", "text_encoder")}


def test_weights_that_stream_packed_give_the_same_bits_as_those_that_stay() -> None:
    streamed = stream_everything(build_tiny_pipeline(), quantization=INT8)
    stayed = keep_everything(build_tiny_pipeline(), INT8)
    assert torch.equal(encode_text(streamed), encode_text(stayed))
    for ours, theirs in zip(read_blocks(streamed), read_blocks(stayed), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_packed_weights_stream_packed() -> None:
    weights = stream_everything(build_tiny_pipeline(), quantization=INT8)
    list(weights.blocks())
    plain = stream_everything(build_tiny_pipeline()).params.sizes
    assert weights.copied_bytes == sum(weights.params.sizes.blocks)
    assert weights.copied_bytes < 0.45 * sum(plain.blocks), "float32 over one byte, and the biases"


def test_only_one_block_is_expanded_at_a_time() -> None:
    weights = keep_everything(build_tiny_pipeline(), INT8)
    blocks = weights.transformer.transformer_blocks
    places = []
    for block in weights.blocks():
        places.append({p.data_ptr() for p in block.parameters() if p.device.type != "meta"})
        assert all(
            parameter.is_meta
            for other in blocks
            if other is not block
            for path, parameter in other.named_parameters(prefix="transformer_blocks")
            if is_packed(f"{path}.", parameter)
        )
    assert len(set.intersection(*places)) == 12, "the matrices of all blocks share a buffer"


def test_sensitive_weights_stay_plain() -> None:
    weights = keep_everything(build_tiny_pipeline(), INT8)
    plain = {path for path in weights.tensors() if path.endswith(".weight")}
    for part in ("img_in", "txt_in", "proj_out", "norm_out.linear", "time_text_embed", "_mod."):
        assert any(part in path for path in plain)
    assert not plain & weights.destinations().keys() - weights.tensors().keys()
    assert all(
        "embed_tokens" not in path
        for path in weights.destinations().keys() - plain
        if path not in weights.tensors()
    )


def test_a_part_can_stay_plain() -> None:
    weights = keep_everything(build_tiny_pipeline(), Quantization("none", "nf4"))
    packed = weights.destinations().keys() - weights.tensors().keys()
    assert {path.partition(".")[0] for path in packed} == {"text_encoder"}


def test_an_interrupted_pass_leaves_no_block_expanded() -> None:
    weights = keep_everything(build_tiny_pipeline(), INT8)
    before = read_blocks(weights)
    passing = weights.blocks()
    block: Any = next(passing)
    passing.close()
    assert block.attn.to_q.weight.is_meta
    for ours, theirs in zip(read_blocks(weights), before, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_after_a_cast_weights_expand_to_the_new_type() -> None:
    pipe = build_tiny_pipeline()
    pipe.transformer.to(torch.float16)
    weights = keep_everything(pipe, Quantization("int8", "none"))
    before = read_blocks(weights)
    with no_compiler():
        weights.cast(torch.bfloat16)
    assert weights.transformer.dtype == torch.bfloat16
    for ours, theirs in zip(read_blocks(weights), before, strict=True):
        for key, tensor in ours.items():
            assert tensor.dtype == torch.bfloat16
            torch.testing.assert_close(tensor.float(), theirs[key].float(), rtol=2**-7, atol=0)


def test_all_blocks_of_a_stack_have_one_layout() -> None:
    weights = keep_everything(build_tiny_pipeline(), INT8)
    layouts = [params.layout for params in weights.params.blocks]
    assert all(a == b for a, b in itertools.pairwise(layouts))
