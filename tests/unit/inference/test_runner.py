"""The packed step computes what transformers computes, whoever shares the step, and the same bits each time."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from inference.engine.cache import Newcomer, Shelf, shelf_length
from inference.engine.decoder import ThroughTransformers
from inference.engine.layers import FEWEST_ROWS, PackedLinear
from inference.engine.loading import load_base, with_adapter
from inference.engine.runner import Runner
from inference.generation import TILE_TOKENS, Chunk
from tiny_models import VOCABULARY, gemma, llama, qwen
from trainer.models.lora import add_adapter

ARCHITECTURES = {"qwen": qwen, "llama": llama, "gemma": gemma}


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that different prompts give different tokens."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(6)
    return model.eval()


def serve(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    slices = load_base(folder, torch.device("cpu"))
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def prompts(count: int, seed: int = 0, longest: int = 150) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCABULARY, random.integers(2, longest)).tolist() for _ in range(count)]


def greedy(runner: Runner, batch: Sequence[list[int]], tokens: int, chunk: int = 512) -> list[list[int]]:
    """Generate for all prompts at once, each prompt read in chunks, joining one step after the other."""
    waiting, answers, decode, reading = list(enumerate(batch)), {}, {}, []
    owner: dict[int, int] = {}
    while waiting or reading or decode:
        if waiting:
            place, ids = waiting.pop(0)
            context, done = runner.open(ids)
            owner[context], answers[place] = place, []
            reading.append((context, ids, done))
        chunks = []
        for place, (context, ids, done) in enumerate(reading):
            piece = ids[done : done + chunk]
            reading[place] = (context, ids, done + len(piece))
            chunks.append(Chunk(context, piece, last=done + len(piece) == len(ids)))
        reading = [r for r in reading if r[2] < len(r[1])]
        logits = runner.step(decode, chunks).logits
        decode = {}
        for context, row in logits.items():
            answers[owner[context]].append(int(row.argmax()))
            if len(answers[owner[context]]) == tokens:
                runner.close(context)
            else:
                decode[context] = answers[owner[context]][-1]
    return [answers[place] for place in range(len(batch))]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Callable[[int], PreTrainedModel]:
    return ARCHITECTURES[request.param]


def test_greedy_tokens_equal_transformers_generate(
    architecture: Callable[[int], PreTrainedModel], tmp_path: Path
) -> None:
    reference = spread(architecture(0))
    runner = Runner(serve(reference, tmp_path), 512)
    batch = prompts(6, longest=200)
    found = greedy(runner, batch, 24, chunk=64)
    for ids, tokens in zip(batch, found, strict=True):
        plain = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0}
        whole = reference.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **plain)
        assert tokens == whole[0, len(ids) :].tolist()


def test_places_beyond_those_kept_are_turned_as_transformers_turns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.engine.decoder._FIRST_PLACES", 16)
    reference = spread(llama(3))
    runner = Runner(serve(reference, tmp_path), 512)
    ids = prompts(1, seed=5, longest=300)[0][:60] * 4
    (tokens,) = greedy(runner, [ids], 40)
    plain = {"do_sample": False, "max_new_tokens": 40, "eos_token_id": None, "pad_token_id": 0}
    whole = reference.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **plain)
    assert tokens == whole[0, len(ids) :].tolist()


def test_logits_have_the_same_bits_alone_and_among_others_however_the_prompt_is_cut(tmp_path: Path) -> None:
    network = serve(spread(qwen(1)), tmp_path)
    batch = prompts(9, seed=2, longest=300)

    def logits(order: Sequence[int], chunk: int) -> dict[int, list[bytes]]:
        runner = Runner(network, 512)
        contexts, rows = {}, {place: [] for place in order}
        for place in order:
            contexts[place], _ = runner.open(())
        decode: dict[int, int] = {}
        for place in order:
            ids = batch[place]
            for start in range(0, len(ids), chunk):
                piece = ids[start : start + chunk]
                result = runner.step(decode, [Chunk(contexts[place], piece, last=start + len(piece) == len(ids))])
                decode = {}
                for other, context in contexts.items():
                    if context in result.logits:
                        rows[other].append(result.logits[context].tobytes())
                        decode[context] = int(result.logits[context].argmax())
        for _ in range(10):
            result = runner.step(decode, [])
            decode = {}
            for other, context in contexts.items():
                rows[other].append(result.logits[context].tobytes())
                decode[context] = int(result.logits[context].argmax())
        return rows

    together = logits(range(9), 512)
    for place, chunk in itertools.product((0, 4, 8), (512, 64, 192)):
        alone = logits([place], chunk)[place]
        count = min(len(alone), len(together[place]))
        assert count > 10
        assert alone[:count] == together[place][:count], f"prompt {place} in chunks of {chunk}"


def test_a_shared_beginning_is_not_read_twice_and_changes_no_bit(tmp_path: Path) -> None:
    network = serve(spread(qwen(3)), tmp_path)
    system = prompts(1, seed=5)[0][:60] + [3] * 60
    tails = [[1, 2, 3], [4, 5], [1, 2, 9, 9]]
    fresh = [greedy(Runner(network, 512), [system + tail], 12)[0] for tail in tails]
    runner = Runner(network, 512)
    for tail, expected in zip(tails, fresh, strict=True):
        assert greedy(runner, [system + tail], 12)[0] == expected
    context, shared = runner.open([*system, 7])
    assert shared == len(system) // TILE_TOKENS * TILE_TOKENS >= 64
    runner.close(context)


def test_a_prompt_scored_in_chunks_has_the_loss_transformers_computes(tmp_path: Path) -> None:
    reference = spread(qwen(4))
    runner = Runner(serve(reference, tmp_path), 512)
    ids = prompts(1, seed=7, longest=400)[0] * 2
    context, _ = runner.open(())
    found = []
    for start in range(0, len(ids), 64):
        piece = ids[start : start + 64]
        following = [*ids[start + 1 : start + 65], None][: len(piece)]
        result = runner.step({}, [Chunk(context, piece, last=False, targets=following, top=2)])
        found += [s for s in result.scores[context] if s is not None]
    with torch.no_grad():
        nats = torch.log_softmax(reference(torch.tensor([ids])).logits[0].double(), -1)
    expected = nats[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert len(found) == len(ids) - 1
    assert np.allclose([s.logprob for s in found], expected.numpy(), atol=2e-3)
    assert [s.top[0][0] for s in found] == nats[:-1].argmax(-1).tolist()


@pytest.mark.filterwarnings("ignore:.*base_model_name_or_path.*:UserWarning")
def test_an_adapter_beside_its_packed_base_computes_what_peft_computes(tmp_path: Path) -> None:
    reference = spread(llama(5))
    base = serve(reference, tmp_path / "base")
    adapted = add_adapter(reference, rank=4, seed=0, base_folder=tmp_path / "base")
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(tmp_path / "adapter")
    before = sum(t.data_ptr() for t in base.parameters())
    model = with_adapter(base, tmp_path / "adapter")
    ids = prompts(1, seed=8)[0]

    def logits(network: PreTrainedModel) -> np.ndarray:
        runner = Runner(network, 512)
        context, _ = runner.open(())
        return runner.step({}, [Chunk(context, ids, last=True)]).logits[context]

    with torch.no_grad():
        expected = adapted(torch.tensor([ids])).logits[0, -1].numpy()
    plain, found = logits(base), logits(model)
    assert np.allclose(found, expected, atol=1e-2)
    assert not np.allclose(plain, expected, atol=1.0)
    assert sum(t.data_ptr() for t in model.parameters()) == before


def test_contexts_come_and_go_without_leaving_memory_behind(tmp_path: Path) -> None:
    runner = Runner(serve(spread(qwen(6)), tmp_path), 512)
    greedy(runner, prompts(12, seed=9, longest=100), 80)
    assert not runner._memory.blocks
    assert not runner._memory._where
    assert all(not shelf.contexts and not shelf.keys for shelf in runner._memory.shelves.values())
    assert not runner._prompts


def test_memory_that_nobody_wrote_reaches_no_answer(tmp_path: Path) -> None:
    network = serve(spread(qwen(7)), tmp_path)
    batch = prompts(5, seed=3, longest=60)
    expected = greedy(Runner(network, 512), batch, 40)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        assert greedy(Runner(network, 512), batch, 40) == expected
        assert greedy(Runner(network, 512), batch[:1], 40) == expected[:1]
    finally:
        torch.use_deterministic_algorithms(False)


def test_numbers_of_a_context_that_are_none_do_not_stay_behind_for_its_neighbour() -> None:
    shelf = Shelf(128)
    ruined, sound = torch.full((2, 100, 4), torch.nan), torch.ones(2, 10, 4)
    for context, held in ((1, ruined), (2, sound)):
        shelf.add([Newcomer(context, held.shape[1], {0: held}, {0: held})])
    shelf.remove(1)
    assert shelf.contexts == [2]
    for tensors in (shelf.keys, shelf.values):
        assert tensors[0][0].isfinite().all() and (tensors[0][0, :, :10] == 1).all()


def test_a_context_that_ends_with_its_first_token_takes_no_place_among_those_that_decode(tmp_path: Path) -> None:
    runner = Runner(serve(spread(qwen(8)), tmp_path), 512)
    context, _ = runner.open(())
    runner.step({}, [Chunk(context, [1, 2, 3], last=True)])
    assert not runner._memory.decoding()
    runner.close(context)
    assert not runner._memory.blocks


@pytest.mark.parametrize(
    ("tokens", "length"), [(1, 128), (128, 128), (129, 256), (257, 384), (1025, 1536), (2049, 3072)]
)
def test_shelves_are_a_quarter_longer_than_what_stands_on_them_at_most(tokens: int, length: int) -> None:
    assert shelf_length(tokens) == length


def test_no_linear_of_a_step_sees_fewer_rows_than_have_equal_bits(tmp_path: Path) -> None:
    network = serve(spread(qwen(9)), tmp_path)
    rows: set[int] = set()
    for module in network.modules():
        if isinstance(module, PackedLinear):
            module.register_forward_pre_hook(lambda _, inputs: rows.add(inputs[0].shape[-2]))
    runner = Runner(network, 512)
    runner._through = ThroughTransformers(network)
    greedy(runner, prompts(3, longest=20), 4)
    assert min(rows) == FEWEST_ROWS
