from typing import Any

import pytest
import torch
from support.models.tiny import build_tiny_pipeline

from retouch.engine.vision import encode_vision, prepare_vision


@pytest.fixture(scope="module")
def model() -> Any:
    return build_tiny_pipeline().text_encoder.model


@pytest.mark.parametrize(
    "grids",
    [
        [[1, 8, 8]],  # one window exactly
        [[1, 20, 26]],  # windows of four sizes
        [[1, 2, 2]],
        [[1, 20, 26], [1, 18, 12]],  # two images
    ],
)
@torch.no_grad()
def test_grouped_windows_give_what_the_stock_tower_gives(
    model: Any, grids: list[list[int]]
) -> None:
    grid = torch.tensor(grids)
    draw = torch.Generator().manual_seed(0)
    patches = torch.randn(int(grid.prod(-1).sum()), 1176, generator=draw)
    inputs = prepare_vision(patches, grid, model.visual.config)
    found = encode_vision(model.visual, inputs, torch.device("cpu"))
    expected = torch.cat(model.get_image_features(patches, grid).pooler_output)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_windows_of_one_length_are_one_call(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        shapes.append(tuple(query.shape))
        return attend(query, *args, **options)

    grid = torch.tensor([[1, 20, 16]])
    inputs = prepare_vision(torch.randn(320, 1176), grid, model.visual.config)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    with torch.no_grad():
        encode_vision(model.visual, inputs, torch.device("cpu"))
    # The first layer has windows of 8 x 8 and 4 x 8 patches, the second sees the whole image.
    assert shapes == [(4, 2, 64, 16), (2, 2, 32, 16), (1, 2, 320, 16)]
