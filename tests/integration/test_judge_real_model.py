"""The judge on real (tiny) models: losses, answers, adapters and the process itself."""

import hashlib
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.atomic import read_json
from core.chat_templates import ChatEncoder
from core.checkpoints import Catalogue
from trainer.evaluate.scoring import load_scorer
from trainer.models.lora import adapter_tensors, add_adapter
from trainer.models.tiny import make_tiny

JOB = "20261122T010101000000Z-abcdef"


def rows(count):
    questions = [f"What is {n} plus {n * n}?" + " Please." * (n % 5) for n in range(count)]
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"It is {n + n * n}."}]}
        for n, q in enumerate(questions)
    ]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny(folder, 0)
    return folder


@pytest.fixture(scope="module")
def scorer(model_folder):
    return load_scorer(model_folder, model_folder, device="cpu", threads=1)


def test_losses_are_those_of_transformers_on_the_assistants_tokens_alone(model_folder, scorer):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    encoder = ChatEncoder.from_folder(model_folder)
    sample = [*rows(12), {"text": "Plain words, all of them trained."}]
    for row, (nll, tokens) in zip(sample, scorer.losses(sample), strict=True):
        encoded = encoder.encode_row(row)
        labels = torch.tensor(encoded.ids, dtype=torch.long).masked_fill(~torch.tensor(encoded.mask), -100)
        with torch.no_grad():
            mean = model(input_ids=torch.tensor(encoded.ids, dtype=torch.long)[None], labels=labels[None]).loss.item()
        assert tokens == int(encoded.mask[1:].sum()) > 0
        assert nll / tokens == pytest.approx(mean, rel=1e-5)


def test_answers_do_not_depend_on_the_batch_they_are_in(model_folder, scorer):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    encoder = ChatEncoder.from_folder(model_folder)
    prompts = [row["messages"][:1] for row in rows(9)]
    for prompt, answer in zip(prompts, scorer.answers(prompts, 12), strict=True):
        ids = encoder.encode_prompt(prompt)
        ends = sorted(encoder.eos_ids)
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=ends, pad_token_id=ends[0]
        )[0].tolist()[len(ids) :]
        stop = next((n for n, one in enumerate(out) if one in encoder.eos_ids), len(out))
        assert answer == encoder.decode(out[:stop])


def test_a_choice_costs_what_its_whole_row_costs_whatever_it_shares_with_the_others(scorer):
    prompts = [row["messages"][:1] for row in rows(7)]
    choices = [["yes", "no"], ["seven", "seventy", "seventy seven of them"], ["①", "a", ""], *[["x", "xx"]] * 4]
    found = scorer.choice_losses(prompts, choices)
    for prompt, texts, losses in zip(prompts, choices, found, strict=True):
        whole = scorer.losses([{"messages": [*prompt, {"role": "assistant", "content": text}]} for text in texts])
        assert [tokens for _nll, tokens in losses] == [tokens for _nll, tokens in whole]
        assert [nll for nll, _tokens in losses] == pytest.approx([nll for nll, _tokens in whole], rel=1e-4)


def test_a_question_longer_than_the_context_has_no_choice_read(scorer):
    long = [{"role": "user", "content": "word " * 4000}]
    short = rows(1)[0]["messages"][:1]
    found = scorer.choice_losses([long, short], [["a", "b"], ["a", "b"]])
    assert found[0] == [(0.0, 0), (0.0, 0)]
    assert all(tokens > 0 for _nll, tokens in found[1])


def test_a_prompt_longer_than_the_context_is_answered_with_nothing(scorer):
    assert scorer.answers([[{"role": "user", "content": "word " * 4000}]], 4) == [""]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers the old way
def test_an_adapter_is_scored_on_top_of_its_base(model_folder, scorer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    adapted = add_adapter(base, rank=4, seed=0, base_folder=model_folder)
    with torch.no_grad():
        for name, tensor in adapter_tensors(adapted).items():
            if "lora_B" in name:
                tensor.copy_(torch.full_like(tensor, 0.05))
    adapted.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    encoder = ChatEncoder.from_folder(model_folder)
    row = rows(3)[2]
    encoded = encoder.encode_row(row)
    labels = torch.tensor(encoded.ids, dtype=torch.long).masked_fill(~torch.tensor(encoded.mask), -100)
    with torch.no_grad():
        mean = adapted(input_ids=torch.tensor(encoded.ids, dtype=torch.long)[None], labels=labels[None]).loss.item()
    ((nll, tokens),) = load_scorer(tmp_path, model_folder, device="cpu", threads=1).losses([row])
    ((plain, _),) = scorer.losses([row])
    assert nll / tokens == pytest.approx(mean, rel=1e-5)
    assert abs(nll - plain) > 1e-3


@pytest.fixture
def farm(workspace, model_folder):
    """A root with a base, a commit whose weights moved, and 60 held-out rows."""
    catalogue = Catalogue(workspace, "main")
    job = {"job_id": JOB, "file": "a.jsonl", "sha256": "0" * 64, "generator": "manual"}
    job |= {"rows_train": 1, "rows_trained": 1, "epochs": 1}
    sums = {"tokenizer_sha256": "", "chat_template_sha256": "", "profile": None, "config_sha256": "", "versions": {}}
    ids, parent, base = [], None, {"name": "dropforge-tiny", "sha256": None}
    for step, jobs in ((0, []), (5, [job])):
        staged = catalogue.stage(step)
        for file in model_folder.iterdir():
            (staged / file.name).write_bytes(file.read_bytes())
        if step:
            moved = {
                name: w + 0.02 * torch.randn_like(w) for name, w in load_file(staged / "model.safetensors").items()
            }
            save_file(moved, staged / "model.safetensors", metadata={"format": "pt"})
        made = catalogue.commit(
            staged, {"step": step, "parent": parent, "base": base, "jobs": jobs, "train_loss": None} | sums
        )
        parent, base = made.id, made.manifest["base"]
        ids.append(made.id)
    workspace.incoming_dir("main").mkdir(parents=True)
    lines = [
        json.dumps({"sha256": hashlib.sha256(str(n).encode()).hexdigest(), "row": n, **row})
        for n, row in enumerate(rows(60))
    ]
    (workspace.incoming_dir("main") / f"{JOB}.jsonl").write_text("\n".join(lines))
    return workspace, ids


def run(workspace, *arguments):
    command = [sys.executable, "-m", "trainer.evaluate", "--root", str(workspace.root), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_the_process_judges_a_commit_and_gives_the_same_bits_twice(farm):
    workspace, (base, candidate) = farm
    samples = workspace.evaluation_dir("main", candidate) / "samples.jsonl"
    bits = []
    for _ in range(2):
        done = run(workspace, "--candidate", candidate, "--serving", base, "--suite", "incoming")
        assert done.returncode == 0, done.stderr
        bits.append(samples.read_bytes())
        samples.unlink()
    assert bits[0] == bits[1]
    doc = read_json(workspace.evaluation_dir("main", candidate) / "metrics.json")
    assert doc["suites"]["incoming"]["n"] == 60
    assert math.isfinite(doc["suites"]["incoming"]["value"])


def test_the_process_compares_two_checkpoints_as_one_json_document(farm):
    workspace, (base, candidate) = farm
    done = run(workspace, "--compare", base, candidate, "--suite", "incoming", "--json")
    assert done.returncode == 0, done.stderr
    doc = json.loads(done.stdout)
    assert (doc["a"], doc["b"]) == (base, candidate)
    assert doc["suites"]["incoming"]["a"]["n"] == 60


def test_the_process_explains_itself(farm):
    workspace, _ids = farm
    unknown = run(workspace, "--candidate", "77-aaaaaaaaaaaa")
    assert unknown.returncode == 2
    assert "no checkpoint" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    nothing = run(workspace, "--candidate", "0", "--suite", "no-such")
    assert nothing.returncode == 2
    assert "no-such" in nothing.stderr


def test_refreshing_the_leaderboard_loads_no_torch(farm):
    workspace, (base, _candidate) = farm
    code = (
        "import sys; from trainer.evaluate.__main__ import main; "
        f"assert main(['--root', {str(workspace.root)!r}, '--refresh', '--serving', {base!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert read_json(workspace.status_file("leaderboard.json"))["serving"] == base
