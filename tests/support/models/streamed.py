"""A toy pipeline whose weights all stream, on the CPU."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.flat_params import Encode, flatten_pipeline
from retouch.engine.memory.plan import RESIDENT, Plan
from retouch.engine.memory.quantization import UNQUANTIZED, Quantization
from retouch.engine.memory.weights import Weights

CPU = torch.device("cpu")


def modules_of(pipe: Any) -> dict[str, Any]:
    return {name: getattr(pipe, name) for name in ("transformer", "vae", "text_encoder")}


def keep_everything(
    pipe: Any, quantization: Quantization, *, fp8_products: bool = False
) -> Weights:
    """Pack the weights where they are."""
    encode = encode_as(quantization, fp8_products=fp8_products)
    weights = Weights(**modules_of(pipe), plan=RESIDENT, device=CPU, encode=encode)
    weights.allocate()
    return weights


def stream_everything(
    pipe: Any,
    *,
    slots: int = 2,
    quantization: Quantization = UNQUANTIZED,
    mapped: Mapping[str, torch.Tensor] = MappingProxyType({}),
    fp8_products: bool = False,
) -> Weights:
    modules = modules_of(pipe)
    encode = encode_as(quantization, fp8_products=fp8_products)
    plan = plan_streaming(modules, encode, slots=slots)
    weights = Weights(**modules, plan=plan, device=CPU, encode=encode, mapped=mapped)
    weights.allocate()
    return weights


def plan_streaming(modules: dict[str, Any], encode: Encode, *, slots: int = 2) -> Plan:
    sizes = flatten_pipeline(**modules, encode=encode).sizes
    return Plan(
        "all streamed",
        streamed_blocks=frozenset(range(len(sizes.blocks))),
        streamed_layers=frozenset(range(len(sizes.layers))),
        slot_bytes=max(*sizes.blocks, *sizes.layers, *sizes.modulation),
        slots=slots,
    )
