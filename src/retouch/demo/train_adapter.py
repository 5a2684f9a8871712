"""The trainer of the shipped LoRA adapter: it teaches the finished checkpoint one more edit."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from retouch.demo import build, phrases
from retouch.demo.edit_model import EditModel, Size
from retouch.demo.edits import Change
from retouch.demo.flow import unpack
from retouch.demo.lexicon import OBJECTS
from retouch.demo.options import TrainOptions
from retouch.demo.photos import Album
from retouch.demo.pool import PairPool
from retouch.demo.steps import StageClock, warm_cosine
from retouch.demo.train_edit_model import build_pair_maker

NAME = "duotone"
RANK = 8
_LR, _WARM_UP = 3e-3, 20
_OTHER_SHARE = 0.3
"""Of instructions that the checkpoint knows: the adapter must leave them as they are."""
_TEMPLATES = (
    *("make {o} a duotone", "turn {o} into a duotone", "make {o} duotone", "duotone", "a duotone"),
    *("give {o} a duotone look", "apply a duotone effect", "apply a duotone filter to {o}"),
    *("a duotone look", "duotone effect", "duotone look", "print {o} as a duotone"),
)
# Size in pixels: pairs a step, their share, pairs in the pool, sources a refill.
_SHAPES: Mapping[Size, tuple[int, float, int, int]] = {
    (128, 128): (4, 0.9, 512, 4),
    (256, 256): (1, 0.1, 64, 2),
}
_QUICK: Mapping[Size, tuple[int, float, int, int]] = {(64, 64): (4, 1.0, 32, 2)}
_REFILL_EVERY, _FIRST_REFILLS = 30, 4


def draw_instruction(rng: random.Random) -> tuple[str, tuple[Change, ...]]:
    """Draw an instruction for the adapter's edit, and sometimes one that the checkpoint knows."""
    if rng.random() < _OTHER_SHARE:
        return phrases.draw_instruction(rng)
    text = phrases.frame(rng.choice(_TEMPLATES).format(o=rng.choice(OBJECTS)), rng)
    return text, (Change(NAME),)


def add_low_rank(transformer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Give each linear layer of the blocks but the modulation a trainable update that begins at zero.

    Returns `down` (rank, in) and `up` (out, rank) by the layer's name; the weights themselves are frozen.
    """
    transformer.requires_grad_(requires_grad=False)
    pairs = {}
    for name, layer in transformer.named_modules():
        if (
            isinstance(layer, nn.Linear)
            and name.startswith("transformer_blocks.")
            and ("_mod." not in name)
        ):
            device = layer.weight.device
            down = torch.randn(RANK, layer.in_features, device=device) / layer.in_features**0.5
            up = torch.zeros(layer.out_features, RANK, device=device)
            pairs[name] = (down.requires_grad_(), up.requires_grad_())
            _apply_update(layer, *pairs[name])
    return pairs


def _apply_update(layer: Any, down: Tensor, up: Tensor) -> None:
    def forward(stream: Tensor) -> Tensor:
        product = functional.linear(stream, layer.weight, layer.bias)
        return product + functional.linear(functional.linear(stream, down), up)

    layer.forward = forward


def train_adapter(
    components: build.Components, album: Album, validation: Album, options: TrainOptions
) -> None:
    """Train for `options.editor_s` seconds; write `options.out` / `NAME`.safetensors in fp16."""
    components.text_encoder.requires_grad_(requires_grad=False)
    pairs = add_low_rank(components.transformer)
    maker = build_pair_maker(components, album, options)
    maker.draw = draw_instruction
    params = [part for pair in pairs.values() for part in pair]
    model = EditModel(components, maker, options.device, lr=_LR, params=params)
    shapes = _QUICK if options.quick else _SHAPES
    pools = {
        size: PairPool(lambda size=size, count=row[3]: maker.pairs(count, *size)[0], row[2])  # type: ignore[misc]
        for size, row in shapes.items()
    }
    for pool in pools.values():
        for _ in range(_FIRST_REFILLS):
            pool.refill()
    clock, loss = StageClock("adapter", options.editor_s), 0.0
    while clock.share < 1:
        model.optimizer.set_lr(warm_cosine(clock.iteration, clock.share, _WARM_UP) + 0.001)
        size = maker.rng.choices(list(shapes), [row[1] for row in shapes.values()])[0]
        loss += 0.05 * (float(model.train_step(size, pools[size].draw(shapes[size][0]))[0]) - loss)
        clock.iteration += 1
        if clock.iteration % _REFILL_EVERY == 0:
            pools[size].refill()
        clock.log(f"loss {loss:.4f}")
    clock.log(_validate(components, validation, options, model), every_s=0)
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"transformer.{name}.lora_{part}.weight": tensor.detach().half().contiguous()
        for name, pair in pairs.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    save_file(tensors, options.out / f"{NAME}.safetensors")


def _validate(
    components: build.Components, album: Album, options: TrainOptions, model: EditModel
) -> str:
    """Compare edits of held-out pictures with the exact ones."""
    maker = build_pair_maker(components, album, options)
    maker.draw = lambda _: (f"make it a {NAME}", (Change(NAME),))
    size = (64, 64) if options.quick else (256, 256)
    pairs, exact = maker.pairs(2, *size)
    pairs.source, pairs.target = pairs.source.float(), pairs.target.float()
    grid = (size[0] // 16, size[1] // 16)
    error = maker.pixels(unpack(model.sample(pairs, size, steps=2), grid)) - exact
    psnr_db = float(-10 * error.square().mean((1, 2, 3)).clamp(1e-6).log10().mean())
    return f"{psnr_db:.2f} dB to the exact edit"
