"""The real openai client and curl cannot tell this server from the one they were written for."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.chat_templates import ChatEncoder
from core.services import ServiceClient
from serving_rig import ServerProcess, place, ready_root, running

pytestmark = pytest.mark.slow

HELLO: Any = [{"role": "user", "content": "hello there"}]
FIXED: Any = {"model": "dropforge", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    workspace, chain = ready_root(tmp_path_factory.mktemp("openai") / "root")
    with running(workspace, env={"INFERENCE_API_KEY": "sk-answers", "INFERENCE_ADMIN_KEY": "sk-admin"}) as process:
        for checkpoint in chain:
            body = place(checkpoint, workspace.root / "served")
            with ServiceClient("inference", process.url, api_key="sk-admin") as admin:
                assert admin.post("/admin/reload", body).json["id"] == checkpoint.id
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-answers", max_retries=0) as made:
        yield made


@pytest.fixture
def serving(server: ServerProcess) -> str:
    answer = server.get("/v1/checkpoints", headers={"Authorization": "Bearer sk-answers"})
    return str(answer.json()["serving"])


def test_a_chat_answers_and_names_the_checkpoint(client: openai.OpenAI, serving: str) -> None:
    raw = client.chat.completions.with_raw_response.create(messages=HELLO, **FIXED)
    assert raw.headers["X-Dropforge-Checkpoint"] == serving
    answer = raw.parse()
    assert (answer.object, answer.system_fingerprint, answer.model) == ("chat.completion", serving, serving)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.refusal is None
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_the_streamed_answer_is_the_same_text_and_has_the_agreed_chunks(client: openai.OpenAI, serving: str) -> None:
    whole = client.chat.completions.create(messages=HELLO, **FIXED).choices[0].message.content
    chunks = list(
        client.chat.completions.create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **FIXED)
    )
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in (first, *middle)) == whole
    assert all(c.choices[0].finish_reason is None for c in (first, *middle))
    assert last.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 12
    assert {c.system_fingerprint for c in chunks} == {serving}
    assert len({c.id for c in chunks}) == 1
    plain = list(client.chat.completions.create(messages=HELLO, stream=True, **FIXED))
    assert all(c.choices and c.usage is None for c in plain)


def test_stop_strings_cut_across_token_boundaries_the_same_streamed_or_not(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, **{**FIXED, "max_tokens": 40}).choices[0].message.content
    assert whole is not None
    for start in (3, 7, 11):
        stop = whole[start : start + 5]
        expected = whole[: whole.index(stop)]
        asked: Any = {**FIXED, "max_tokens": 40, "messages": HELLO, "stop": [stop]}
        answer = client.chat.completions.create(**asked).choices[0]
        assert (answer.message.content, answer.finish_reason) == (expected, "stop")
        parts = list(client.chat.completions.create(stream=True, **asked))
        assert "".join(c.choices[0].delta.content or "" for c in parts) == expected


@torch.inference_mode()
def penalized(folder: Path, prompt: list[int], presence: float, frequency: float, tokens: int) -> str:
    """Greedy text by OpenAI's formula: logit[j] -= count[j] * frequency + (count[j] > 0) * presence, over what was
    generated so far; end tokens are forbidden."""
    model, codec = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ChatEncoder.from_folder(folder)
    made: list[int] = []
    for _ in range(tokens):
        logits_V = model(torch.tensor([prompt + made])).logits[0, -1]
        for token, count in Counter(made).items():
            logits_V[token] -= count * frequency + presence
        logits_V[list(codec.eos_ids)] = -torch.inf
        made.append(int(logits_V.argmax()))
    return codec.decode(made)


@pytest.mark.parametrize(("presence", "frequency"), [(0, 0), (2, 0), (0, 2), (-2, 0), (0.5, -1.5), (1, 1)])
def test_penalties_change_the_text_as_openai_defines_them(
    client: openai.OpenAI, server: ServerProcess, serving: str, presence: float, frequency: float
) -> None:
    folder = server.workspace.root / "served" / serving
    prompt = [40, 41, 42, 41, 40]
    bias = {str(token): -100 for token in ChatEncoder.from_folder(folder).eos_ids}
    fields: Any = {"presence_penalty": presence, "frequency_penalty": frequency, "logit_bias": bias}
    answer = client.completions.create(model="dropforge", prompt=prompt, temperature=0, max_tokens=30, **fields)
    assert answer.choices[0].text == penalized(folder, prompt, presence, frequency, 30)


def test_the_same_seed_gives_the_same_text_and_n_gives_different_choices(client: openai.OpenAI) -> None:
    asked: Any = {"model": "dropforge", "messages": HELLO, "max_tokens": 20, "seed": 5, "n": 3, "temperature": 1.5}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in second.choices]
    assert len(set(texts)) == 3
    assert [c.index for c in first.choices] == [0, 1, 2]
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_logprobs_are_those_of_the_chosen_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=3, **FIXED).choices[0]
    assert answer.logprobs is not None
    assert answer.logprobs.content is not None
    assert len(answer.logprobs.content) == 12
    for token in answer.logprobs.content:
        assert token.logprob == max(t.logprob for t in token.top_logprobs)  # greedy
        assert len(token.top_logprobs) == 3
    assert "".join(t.token for t in answer.logprobs.content) == answer.message.content


def test_completions_echo_the_prompt_with_the_logprobs_that_score_reports(
    client: openai.OpenAI, server: ServerProcess
) -> None:
    text = "the quick brown fox"
    asked: Any = {"model": "dropforge", "prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = client.completions.create(**asked).choices[0]
    assert answer.text.startswith(text)
    assert answer.logprobs is not None
    assert answer.logprobs.token_logprobs is not None
    head = {"Authorization": "Bearer sk-answers"}
    score = server.post("/v1/score", {"text": text}, headers=head).json()
    surprisals = [row["surprisal"] for row in score["tokens"]]
    assert surprisals[0] is None
    assert [-s for s in surprisals[1:]] == pytest.approx(answer.logprobs.token_logprobs[1 : len(surprisals)], abs=1e-6)
    assert score["loss"] == pytest.approx(sum(surprisals[1:]) / (len(surprisals) - 1))
    several = client.completions.create(model="dropforge", prompt=["a", "b"], n=2, max_tokens=2)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]


class Person(pydantic.BaseModel):
    """What a caller wants to get back."""

    age: int = pydantic.Field(ge=0, le=150)
    tags: list[Literal["a", "b"]] = pydantic.Field(max_length=2)


def in_form(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_answers_keep_to_a_schema_streamed_or_not_alone_or_in_a_crowd(client: openai.OpenAI) -> None:
    schema = Person.model_json_schema()
    asked: Any = {"model": "dropforge", "messages": HELLO, "max_tokens": 150, "response_format": in_form(schema)}
    drawn = client.chat.completions.create(n=3, seed=4, temperature=0.8, **asked)
    whole = [c.message.content or "" for c in drawn.choices if c.finish_reason == "stop"]
    assert whole
    for text in whole:
        Person.model_validate_json(text)
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(n=3, seed=4, temperature=0.8, stream=True, **asked):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == [c.message.content for c in drawn.choices]
    greedy: Any = {**asked, "temperature": 0}
    alone = client.chat.completions.create(**greedy).choices[0].message.content
    with ThreadPoolExecutor(6) as pool:
        crowd = list(pool.map(lambda _: client.chat.completions.create(**greedy).choices[0].message.content, range(6)))
    assert crowd == [alone] * 6


def test_the_clients_own_parsing_works_and_a_bad_schema_names_its_field(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="dropforge", messages=HELLO, response_format=Person, seed=4, temperature=0.8, max_tokens=150
    )
    assert isinstance(answer.choices[0].message.parsed, Person)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            model="dropforge", messages=HELLO, response_format=in_form({"type": "array", "uniqueItems": True})
        )
    assert bad.value.param == "response_format.json_schema.schema"
    assert bad.value.response.headers["x-should-retry"] == "false"
    either = client.chat.completions.create(
        model="dropforge", messages=HELLO, response_format={"type": "json_object"}, seed=4, max_tokens=150
    ).choices[0]
    assert either.finish_reason == "length" or isinstance(json.loads(either.message.content or ""), dict)


def test_models_are_listed_and_can_be_asked_by_id(client: openai.OpenAI, serving: str) -> None:
    names = [m.id for m in client.models.list().data]
    assert names[0] == "dropforge"
    other = next(n for n in names[1:] if n != serving)
    assert client.models.retrieve(other).id == other
    answer = client.chat.completions.create(messages=HELLO, **{**FIXED, "model": other})
    assert answer.system_fingerprint == other


def test_errors_arrive_as_the_clients_own_exceptions(client: openai.OpenAI, server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(messages=HELLO, **{**FIXED, "model": "gpt-9"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(messages=HELLO, **{**FIXED, "temperature": 9})
    assert bad.value.param == "temperature"
    assert bad.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(messages=[{"role": "user", "content": "x y " * 5000}], **FIXED)
    assert long.value.code == "context_length_exceeded"
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_curl_works_as_documented(server: ServerProcess, serving: str) -> None:
    body = json.dumps({**FIXED, "messages": HELLO})
    argv = ["curl", "-sS", "-i", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    argv += ["-H", "X-API-Key: sk-answers", "-H", "X-Request-ID: mine-1", "-d", body]
    head, _, doc = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.partition("\n\n")
    assert f"X-Dropforge-Checkpoint: {serving}" in head
    assert "X-Request-Id: mine-1" in head
    assert json.loads(doc)["system_fingerprint"] == serving


def test_prompts_and_keys_are_in_no_log_no_metric_no_view_and_no_process_list(
    client: openai.OpenAI, server: ServerProcess
) -> None:
    canary: Any = [{"role": "user", "content": "CANARY-7fe1"}]
    client.chat.completions.create(messages=canary, **FIXED)
    client.completions.create(model="dropforge", prompt="CANARY-7fe1", max_tokens=1)
    server.post("/v1/score", {"text": "CANARY-7fe1"}, headers={"X-API-Key": "sk-answers"})
    answers = []
    for wrong in ({"temperature": 9}, {"model": "gpt-9"}):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(messages=canary, **{**FIXED, **wrong})
        answers.append(caught.value.response.text)
    for key in ("CANARY-key", "sk-admin-not"):
        answers.append(server.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).text)
    views = ("/metrics", "/slots", "/v1/checkpoints", "/v1/models", "/openapi.json", "/ready")
    answers += [server.get(path, headers={"Authorization": "Bearer sk-answers"}).text for path in views]
    files = [p for folder in (server.workspace.logs_dir, server.workspace.root / "status") for p in folder.rglob("*")]
    written = [p.read_text() for p in files if p.is_file()]
    command = Path(f"/proc/{server.popen.pid}/cmdline").read_text()
    found = "".join([server.log(), command, *written, *answers])
    assert [s for s in ("CANARY-7fe1", "CANARY-key", "sk-answers", "sk-admin") if s in found] == []
