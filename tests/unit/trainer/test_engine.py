"""The optimizer step: packed equals unpacked, documents do not leak, nothing non-finite moves a weight."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.errors import CheckpointError, ModelError, NonFiniteLossError
from tiny_models import VOCABULARY, dials, gemma, llama, qwen, rows
from trainer import attention, causal_blocks
from trainer import loss as loss_module
from trainer.engine import Engine
from trainer.loss import summed_cross_entropy
from trainer.packing import BLOCK, Layout, Row, layout_of, pack
from trainer.self_check import refuse_wrong_loss

MODELS = pytest.mark.parametrize("make", [qwen, llama, gemma])
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
Make = Callable[[], PreTrainedModel]


def _reference_gradients(model: PreTrainedModel, given: list[Row]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by the model's own eager attention, one document a pass, mean over all trained tokens."""
    model.set_attn_implementation("eager")
    trained = sum(int(row.mask[1:].sum()) for row in given)
    total = 0.0
    for row in given:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        wanted = torch.from_numpy(row.mask[1:])
        part = torch.nn.functional.cross_entropy(logits[wanted], ids[0, 1:][wanted], reduction="sum") / trained
        part.backward()
        total += part.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _packed_gradients(engine: Engine, given: list[Row], budget: int = 4096) -> tuple[float, dict[str, Tensor]]:
    engine.optimizer.zero_grad()
    trained = sum(int(row.mask[1:].sum()) for row in given)
    total = sum(float(engine.loss(batch, scale=1 / trained)) for batch in pack(given, budget))
    return total, {name: p.grad.clone() for name, p in engine.trainable.items() if p.grad is not None}


@MODELS
@pytest.mark.parametrize("budget", [4096, 64])
def test_loss_and_gradients_of_packed_rows_equal_those_of_single_rows(make: Make, budget: int) -> None:
    given = rows([40, 38, 33, 12, 12, 7, 3, 250])
    expected, wanted = _reference_gradients(make(), given)
    found, gradients = _packed_gradients(Engine(make(), dials()), given, budget)
    assert found == pytest.approx(expected, abs=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-4)


@MODELS
@FORMATS
def test_changing_one_document_leaves_the_losses_and_gradients_of_all_others_unchanged(
    make: Make, dtype: torch.dtype
) -> None:
    watched = rows([40, 36, 31, 12])
    silent = [Row(row.ids, np.zeros_like(row.mask)) for row in rows([39, 33, 200, 5], seed=1)]
    other = [Row((row.ids + 1) % VOCABULARY, row.mask) for row in silent]
    engine = Engine(make(), dials(compute_dtype=dtype))
    before, gradients = _packed_gradients(engine, watched + silent)
    after, changed = _packed_gradients(engine, watched + other)
    assert after == pytest.approx(before, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(changed[name], gradient, atol=1e-6, rtol=0)


def test_attention_by_blocks_has_the_gradients_of_torchs_own_whatever_comes_back_to_the_last_tokens() -> None:
    lengths = [3 * BLOCK - 14, BLOCK + 1, BLOCK, BLOCK - 7, 5]
    torch.manual_seed(0)
    shapes = [(sum(lengths), heads, 8) for heads in (4, 2, 2)]
    ours = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    returned = torch.randn(shapes[0])
    blocks = attention.to_device(layout_of(lengths), torch.device("cpu")).blocks
    out = causal_blocks.CausalBlocks.apply(*ours, blocks, 8**-0.5)
    documents = zip(*(x.split(lengths) for x in theirs), strict=True)
    expected = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in document), is_causal=True, enable_gqa=True
            )[0].transpose(0, 1)
            for document in documents
        ]
    )
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    for found, wanted in zip(
        torch.autograd.grad(out, ours, returned), torch.autograd.grad(expected, theirs, returned), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept_tokens", [0, 2 * BLOCK, 1024])
def test_attention_in_many_blocks_kept_or_computed_again_gives_the_gradients_of_single_rows(
    kept_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_blocks, "KEPT_TOKENS", kept_tokens)
    given = rows([250, 190, 100, 96, 95, 33, 3])
    _, wanted = _reference_gradients(qwen(), given)
    _, gradients = _packed_gradients(Engine(qwen(), dials()), given)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-4)


def test_an_optimizer_step_does_not_depend_on_how_rows_are_split_into_micro_batches() -> None:
    given = rows([40, 20, 31, 12, 60, 9])
    weights = []
    for budget in (4096, 64):
        engine = Engine(qwen(), dials())
        for _ in range(3):
            engine.step(pack(given, budget), 1e-2)
        weights.append(dict(engine.trainable))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-5, rtol=1e-4)


@MODELS
def test_recomputed_activations_give_the_same_gradients(make: Make) -> None:
    given = rows([40, 33, 12, 7])
    plain, wanted = _packed_gradients(Engine(make(), dials()), given)
    found, gradients = _packed_gradients(Engine(make(), dials(gradient_checkpointing=True)), given)
    assert found == plain
    assert all(torch.equal(wanted[name], gradient) for name, gradient in gradients.items())


def test_dials_of_a_later_job_reach_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(qwen(), dials())
    engine.adopt(dials(weight_decay=0.5, learning_rate=1.0))
    before = engine.trainable["model.layers.0.mlp.up_proj.weight"].detach().clone()
    silent = [Row(row.ids, row.mask) for row in rows([9])]
    engine.step(pack(silent, 64), 1e-9)  # a rate that moves nothing by itself
    assert torch.allclose(engine.trainable["model.layers.0.mlp.up_proj.weight"], before)
    assert engine.optimizer.param_groups[0]["weight_decay"] == 0.5


@MODELS
def test_the_self_check_passes_models_whose_packed_loss_is_their_own_and_leaves_them_as_they_were(make: Make) -> None:
    engine = Engine(make(), dials())
    before = {name: p.detach().clone() for name, p in engine.trainable.items()}
    refuse_wrong_loss(engine)
    assert engine.model.training
    assert engine.step(pack(rows([9, 4]), 64), 0.0).loss > 0
    assert before.keys() == engine.trainable.keys()


def test_the_self_check_refuses_a_model_whose_attention_leaks_between_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(qwen(), dials())
    with torch.no_grad():
        for parameter in engine.trainable.values():
            parameter.mul_(3)  # small weights hardly attend to anything
    real = attention.to_device

    def one_document(layout: Layout, device: torch.device) -> attention.LayoutOnDevice:
        return real(layout_of([sum(layout.lengths)]), device)

    monkeypatch.setattr(attention, "to_device", one_document)
    with pytest.raises(ModelError, match="packed rows give this model a loss"):
        refuse_wrong_loss(engine)


def test_training_learns_its_rows() -> None:
    engine = Engine(qwen(), dials())
    given = rows([12, 10, 9])
    losses = [engine.step(pack(given, 4096), 1e-2).loss for _ in range(40)]
    assert losses[-1] < 0.2 < 3 < losses[0]


def test_the_gradient_is_clipped_to_the_set_norm() -> None:
    engine = Engine(qwen(), dials(grad_clip=1e-3, learning_rate=0.0))
    assert engine.step(pack(rows([30]), 4096), 0.0).grad_norm > 1e-3
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.trainable.values()])
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("poison", ["weight", "gradient"])
def test_a_non_finite_loss_or_gradient_moves_no_weight_and_no_moment(poison: str) -> None:
    engine = Engine(qwen(), dials())
    engine.step(pack(rows([20]), 4096), 1e-2)
    name, parameter = next(iter(engine.trainable.items()))
    if poison == "weight":
        with torch.no_grad():
            parameter[5] = float("nan")
        victim = [Row(np.array([5, 5, 5], np.int32), np.ones(3, np.bool_))]
    else:
        parameter.register_hook(lambda gradient: gradient * float("inf"))
        victim = rows([20])
    before = {n: p.detach().clone() for n, p in engine.trainable.items()}
    moments = {n: t.clone() for n, t in engine.optimizer_tensors().items()}
    with pytest.raises(NonFiniteLossError):
        engine.step(pack(victim, 4096), 1e-2)
    assert all(torch.equal(before[n].nan_to_num(7), p.detach().nan_to_num(7)) for n, p in engine.trainable.items())
    assert all(torch.equal(moments[n], t) for n, t in engine.optimizer_tensors().items())
    assert name


def test_a_step_whose_rows_hold_no_trained_token_changes_nothing() -> None:
    engine = Engine(qwen(), dials())
    before = {n: p.detach().clone() for n, p in engine.trainable.items()}
    silent = [Row(row.ids, np.zeros_like(row.mask)) for row in rows([9, 4])]
    result = engine.step(pack(silent, 4096), 1e-2)
    assert (result.loss, result.trained_tokens) == (0.0, 0)
    assert all(torch.equal(before[n], p) for n, p in engine.trainable.items())


def test_fp16_gradients_that_overflow_repeat_the_step_with_a_smaller_factor_and_lose_no_row() -> None:
    half, plain = Engine(qwen(), dials(compute_dtype=torch.float16)), Engine(qwen(), dials())
    half._scale.value = 2.0**40  # far too much
    batches = pack(rows([20, 12]), 4096)
    for engine in (half, plain):
        engine.step(batches, 1e-2)
    assert 1 < half._scale.value < 2.0**40
    for name, tensor in plain.trainable.items():
        torch.testing.assert_close(half.trainable[name], tensor, atol=0.02, rtol=0.1)
    kept = {name: tensor.clone() for name, tensor in half.optimizer_tensors().items()}
    again = Engine(half.model, half.dials)
    again.load_optimizer_tensors(kept)
    assert again._scale.value == half._scale.value


@FORMATS
def test_moments_taken_out_and_put_back_continue_bit_for_bit(dtype: torch.dtype) -> None:
    batches = pack(rows([30, 20]), 4096)
    straight, resumed = (Engine(qwen(), dials(compute_dtype=dtype)) for _ in range(2))
    for _ in range(2):
        straight.step(batches, 1e-2)
        resumed.step(batches, 1e-2)
    kept = {name: tensor.clone() for name, tensor in resumed.optimizer_tensors().items()}
    again = Engine(resumed.model, dials(compute_dtype=dtype))
    again.load_optimizer_tensors(kept)
    for _ in range(2):
        straight.step(batches, 1e-2)
        again.step(batches, 1e-2)
    assert all(torch.equal(p, again.trainable[n]) for n, p in straight.trainable.items())


def test_moments_of_another_model_are_refused() -> None:
    engine, other = Engine(qwen(), dials()), Engine(llama(), dials())
    other.step(pack(rows([9]), 64), 1e-2)
    with pytest.raises(CheckpointError, match="lm_head"):
        engine.load_optimizer_tensors(other.optimizer_tensors())


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_chunked_loss_equals_the_plain_one(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 3 * VOCABULARY)  # three positions a chunk
    hidden, weight = torch.randn(10, 8, requires_grad=True), torch.randn(VOCABULARY, 8, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (10,))
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * 0.1
    wanted = torch.autograd.grad(expected, (hidden, weight))
    found = summed_cross_entropy(hidden, weight, targets, scale=0.1, softcap=softcap)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, reference in zip(torch.autograd.grad(found, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


def test_the_tables_gradient_is_summed_in_fp32_over_all_chunks_of_bf16_hidden_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 8).bfloat16(), torch.randn(VOCABULARY, 8, requires_grad=True)
    target = torch.tensor([5])
    (once,) = torch.autograd.grad(summed_cross_entropy(hidden, weight, target), weight)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", VOCABULARY)  # one position a chunk
    found = summed_cross_entropy(hidden.expand(600, -1), weight, target.expand(600))
    (often,) = torch.autograd.grad(found, weight)
    torch.testing.assert_close(often, 600 * once, atol=1e-4, rtol=1e-3)  # a sum in bf16 stands still at 256
