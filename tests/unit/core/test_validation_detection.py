"""Which spec a file obeys when its sidecar does not say: by pattern, by its rows, or nobody knows."""

from pathlib import Path

from core.formats.bytes_in import CHUNK_BYTES
from gate_kit import Gates, chat, lines


def test_rows_that_fit_two_specs_need_a_name(tmp_path: Path, tokenizer: Path) -> None:
    farm = Gates(tmp_path / "root", tokenizer, inbox={"detect_specs": ["chat_sft_v1", "binary_v1"]})
    metadata = {"skill": "binary", "level": 1, "op": "add", "operands": [1, 2], "result": 3}
    _, verdict = farm.drop(lines([chat() | {"metadata": metadata}]))
    assert verdict["code"] == "spec_unknown"
    assert "binary_v1" in verdict["message"] and "chat_sft_v1" in verdict["message"]


def test_a_file_whose_first_rows_are_of_another_spec_is_judged_by_the_spec_of_most(gates: Gates) -> None:
    first, most = [chat(n) for n in range(1_200)], [{"text": f"plain {n}"} for n in range(12_000)]
    assert sum(len(lines([row])) for row in first) > CHUNK_BYTES
    _, verdict = gates.drop(lines([*first, *most]))
    assert (verdict["code"], verdict["line"], verdict["rows"]) == ("spec_mismatch", 1, 13_200)
    assert "completion_v1" in verdict["message"] and "1199 more errors" in verdict["message"]


def test_a_file_of_two_specs_that_neither_nine_in_ten_rows_fit_is_refused_as_unknown(gates: Gates) -> None:
    first, most = [chat(n) for n in range(1_200)], [{"text": f"plain {n}"} for n in range(4_000)]
    _, verdict = gates.drop(lines([*first, *most]))
    assert verdict["code"] == "spec_unknown"
    assert "fewer than 90 % of the rows fit completion_v1" in verdict["message"]


def test_where_rows_may_be_set_aside_the_spec_of_most_rows_counts_not_that_of_the_first(
    tmp_path: Path, tokenizer: Path
) -> None:
    farm = Gates(tmp_path / "root", tokenizer, validation={"bad_rows": "set_aside", "bad_rows_limit": 0.2})
    first, most = [chat(n) for n in range(3_000)], [{"text": f"plain {n}"} for n in range(40_000)]
    folder, verdict = farm.drop(lines([*first, *most]))
    assert (verdict["state"], verdict["spec"], verdict["rows_set_aside"]) == ("queued", "completion_v1", 3_000)
    (aside,) = folder.glob("*.rejected.jsonl")
    assert aside.read_text().count('"messages"') == 3_000 and "plain" not in aside.read_text()


def test_a_pattern_over_names_chooses_the_spec_and_the_sidecar_beats_it(tmp_path: Path, tokenizer: Path) -> None:
    farm = Gates(tmp_path / "root", tokenizer, inbox={"spec_by_pattern": {"pc*.jsonl": "prompt_completion_v1"}})
    row = {"prompt": "q", "completion": "a"}
    assert farm.drop(lines([row]), name="pc1.jsonl")[1]["spec"] == "prompt_completion_v1"
    assert farm.drop(lines([chat()]), {"spec": "chat_sft_v1"}, name="pc2.jsonl")[1]["spec"] == "chat_sft_v1"
    assert farm.drop(lines([chat()]), name="pc3.jsonl")[1]["code"] == "spec_mismatch"
