"""How often torch compiles a block: a compilation takes seconds, and on a GPU a minute."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.adapters import draw, load, name_adapter
from support.models.forward_pass import Case
from support.models.shared_pass import SharedPass, join_all
from support.models.tiny import build_tiny_pipeline
from torch._dynamo.utils import counters

from retouch.editing.adapters import resolve_adapters
from retouch.engine.block import run_block
from retouch.engine.compilation import compile_block
from retouch.engine.linear import linear
from retouch.schema import Lora

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_a_block_compiles_without_breaks_once_for_all_blocks_and_once_for_the_last(
    zero_cond_t: bool,
) -> None:
    case, graphs = Case(zero_cond_t=zero_cond_t), []

    def backend(graph: Any, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()  # noqa: SLF001 - documented for tests
    compiled = torch.compile(run_block, backend=backend, fullgraph=True)
    first = case.predict(compiled)
    torch.testing.assert_close(first, case.stock(), rtol=0, atol=1e-6)
    assert len(graphs) == 2
    assert not [node for node in graphs[0].graph.nodes if "complex" in str(node.target)]
    torch._dynamo.reset()  # noqa: SLF001 - as above


def test_blocks_compile_once_for_a_rank_and_not_again_for_other_adapters_of_it(
    tmp_path: Path,
) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    adapters = load(
        name_adapter(tmp_path, "one", draw(rank=4)),
        name_adapter(tmp_path, "other", draw(rank=9, seed=2, only="attn")),
        name_adapter(tmp_path, "wide", draw(rank=20, seed=3)),
    )
    torch._dynamo.reset()  # noqa: SLF001 - documented for tests
    compiled = torch.compile(run_block, backend=backend, fullgraph=True)
    block = build_tiny_pipeline().transformer.transformer_blocks[0]
    streams = torch.randn(1, 6, 32), torch.randn(1, 5, 32)
    modulation = torch.randn(6, 1, 32), torch.randn(6, 1, 32)

    def run(run_block: Any, scales: Mapping[str, float]) -> torch.Tensor:
        loras = [Lora(name=name, scale=scale) for name, scale in scales.items()]
        terms = adapters.get_terms(resolve_adapters(loras, adapters.info), streams[0])
        with torch.no_grad():
            image: torch.Tensor = run_block(
                block, *streams, modulation, torch.randn(11, 1, 8, 2), None, None, terms.of_block(0)
            )[0]
        return image

    counts = []
    for scales in ({}, {"one": 1.0}, {"other": 0.5}, {"one": 1.0, "other": -1.0}, {"wide": 1.0}):
        run(compiled, scales)
        counts.append(len(graphs))
    assert counts == [1, 2, 2, 2, 3]
    for scales in ({"one": 2.0}, {"wide": -1.0}, {}):
        run(compiled, scales)
    assert len(graphs) == 3
    torch._dynamo.reset()  # noqa: SLF001 - as above


@pytest.mark.filterwarnings("ignore")
def test_shares_of_the_tokens_compile_once_for_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()  # noqa: SLF001 - documented for tests
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", backend)
    compiled = compile_block(run_block)
    case, shares = SharedPass(zero_cond_t=True, grids=((4, 3), (2, 4))), join_all(2)
    for count in (8, 12, 6):
        texts = [torch.randn(1, count, 32)]
        (parts,), (whole,) = case.join(texts, shares, compiled), case.predict(texts)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    # And none in a second step: what is compiled cannot be recorded.
    assert len(graphs) == 4, "what is before attention and what is after it; and of the last block"
    torch._dynamo.reset()  # noqa: SLF001 - as above


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("caches_traces", [True, False])
def test_cached_code_is_found_wherever_the_weights_lie_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caches_traces: bool
) -> None:
    from torch._functorch import config
    from torch._inductor import compile_fx  # warns

    compile_graph = compile_fx._compile_fx_inner  # noqa: SLF001 - where the compiler marks them

    def mark_as_on_a_gpu(graph: Any, inputs: Any, **options: Any) -> Any:
        for at in options["static_input_idxs"]:
            inputs[at]._is_inductor_static = True  # noqa: SLF001 - as above
        return compile_graph(graph, inputs, **options)

    monkeypatch.setattr(compile_fx, "_compile_fx_inner", mark_as_on_a_gpu)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layer, streams, term = torch.nn.Linear(8, 8), torch.randn(2, 1, 6, 8), torch.randn(2, 8, 8)

    def apply(block: Any, image: torch.Tensor, text: torch.Tensor, *_rest: object) -> Any:
        return linear(block, image, (term[0], term[1])), text

    counters.clear()
    for _start in range(2):
        torch._dynamo.reset()  # noqa: SLF001 - documented for tests
        with torch.no_grad(), config.patch(enable_autograd_cache=caches_traces):
            compile_block(apply)(layer, *streams, None, torch.randn(11, 1, 8, 2))
        storage = torch.zeros(256)
        layer.weight.data = storage[64:128].view(8, 8).copy_(layer.weight)
        layer.bias.data = storage[128:136].copy_(layer.bias)
    assert counters["inductor"]["fxgraph_cache_miss"] == 1
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert counters["aot_autograd"]["autograd_cache_hit"] == caches_traces
    torch._dynamo.reset()  # noqa: SLF001 - as above
