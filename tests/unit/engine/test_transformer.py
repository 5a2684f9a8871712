import pytest
import torch
from support.models.forward_pass import TEXT_TOKENS, Case
from support.models.tiny import build_tiny_pipeline

from retouch.engine import block, guidance, vae


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_a_forward_pass_is_the_stock_transformers(zero_cond_t: bool) -> None:
    case = Case(zero_cond_t=zero_cond_t)
    torch.testing.assert_close(case.predict(), case.stock(), rtol=0, atol=1e-6)


def test_a_block_leaves_its_inputs_as_they_are() -> None:
    """Branches share the image's first tokens."""
    case = Case()
    table, conditioning = case.table(), case.prepare_conditioning()
    image, text = torch.randn(1, 22, 32), torch.randn(1, TEXT_TOKENS, 32)
    before = image.clone(), text.clone()
    with torch.no_grad():
        block.run_block(
            case.transformer.transformer_blocks[0],
            image,
            text,
            (table.image[0, 0], table.text[0, 0]),
            conditioning.branches[0].angles,
            None,
        )
    assert torch.equal(image, before[0])
    assert torch.equal(text, before[1])


def test_an_overflow_in_float16_is_not_clipped() -> None:
    case = Case()
    case.transformer.to(torch.float16)
    case.transformer.transformer_blocks[0].img_mlp.net[2].bias.data[3] = 65504
    case.transformer.transformer_blocks[0].img_mod[1].bias.data[-32:] = 2  # the gate after it
    assert not torch.isfinite(case.predict()).all()
    assert torch.isfinite(case.stock()).all()  # so upstream draws a wrong picture


def test_angles_are_kept_where_the_models_table_is() -> None:
    case = Case()
    assert case.prepare_conditioning().branches[0].angles.shape == (TEXT_TOKENS + 22, 1, 8, 2)


def test_without_a_second_branch_there_is_nothing_to_guide() -> None:
    velocity = torch.randn(1, 4, 8)
    assert guidance.classifier_free_guidance([velocity], 4.0) is velocity


def test_guidance_keeps_the_length_of_the_prompts_velocity() -> None:
    wanted, unwanted = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    guided = guidance.classifier_free_guidance([wanted, unwanted], 4.0)
    torch.testing.assert_close(guided.norm(dim=-1), wanted.norm(dim=-1))
    direction = torch.nn.functional.cosine_similarity(guided, 4 * wanted - 3 * unwanted, dim=-1)
    torch.testing.assert_close(direction, torch.ones(1, 4))


def test_packing_is_the_stock_order_and_is_undone() -> None:
    pipe = build_tiny_pipeline()
    image = torch.randn(1, 4, 6, 10)
    packed = vae.pack(image)
    assert torch.equal(packed, pipe._pack_latents(image, 1, 4, 6, 10))  # noqa: SLF001 - the reference
    assert torch.equal(vae.unpack(packed, rows=3), image)
