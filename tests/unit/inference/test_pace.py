"""How much of the waiting prompts is read beside running streams."""

from inference.generation import TILE_TOKENS
from inference.pace import Pace


def known(decode_s: float = 0.01, token_s: float = 0.0002) -> Pace:
    pace = Pace()
    pace.learn(decode_s, decoding=4, read=0)
    pace.learn(decode_s + 100 * token_s, decoding=4, read=100)
    return pace


def test_prompts_are_read_at_full_width_while_nobody_decodes() -> None:
    assert known().budget(512, decoding=0, reading=1) == 512


def test_a_prompt_among_streams_adds_no_more_than_a_decode_step_takes() -> None:
    assert known().budget(512, decoding=4, reading=1) == 50


def test_before_anything_is_measured_one_tile_is_read() -> None:
    assert Pace().budget(512, decoding=4, reading=9) == TILE_TOKENS


def test_a_slow_model_reads_one_tile_a_step_all_the_same() -> None:
    assert known(decode_s=0.1, token_s=0.1).budget(512, decoding=4, reading=1) == TILE_TOKENS


def test_when_more_wait_than_decode_the_few_are_held_up_for_a_quarter_of_a_second() -> None:
    assert known(token_s=0.001).budget(512, decoding=1, reading=7) == 250
    assert known(token_s=0.0001).budget(512, decoding=1, reading=7) == 512
    assert known(token_s=0.001).budget(512, decoding=7, reading=7) == TILE_TOKENS


def test_the_averages_follow_a_machine_that_gets_slower() -> None:
    pace = known()
    for _ in range(30):
        pace.learn(0.05, decoding=4, read=0)
    assert 0.045 < pace.decode_s < 0.0501
