"""How much of the waiting prompts is read beside running streams."""

from inference.generation import TILE_TOKENS
from inference.pace import Budget, Pace


def known(decode_s: float = 0.01, token_s: float = 0.0002) -> Pace:
    pace = Pace()
    pace.learn(decode_s, decoding=4, read=0)
    pace.learn(decode_s + 100 * token_s, decoding=4, read=100)
    return pace


def test_prompts_are_read_at_full_width_while_nobody_decodes() -> None:
    assert known().budget(512, decoding=0, waiting=1) == Budget(512, 512)


def test_a_prompt_among_streams_adds_no_more_than_a_decode_step_takes() -> None:
    assert known().budget(512, decoding=5, waiting=1) == Budget(50, 50)


def test_before_anything_is_measured_one_tile_is_read() -> None:
    assert Pace().budget(512, decoding=4, waiting=9) == Budget(TILE_TOKENS, TILE_TOKENS)


def test_a_slow_model_reads_one_tile_a_step_all_the_same() -> None:
    assert known(decode_s=0.1, token_s=0.1).budget(512, decoding=5, waiting=1) == Budget(TILE_TOKENS, TILE_TOKENS)


def test_when_many_wait_streams_are_held_up_for_a_quarter_of_a_second_at_most() -> None:
    assert known(token_s=0.001).budget(512, decoding=1, waiting=7) == Budget(TILE_TOKENS, 250)
    assert known(token_s=0.0001).budget(512, decoding=1, waiting=7) == Budget(100, 512)
    assert known(token_s=0.001).budget(512, decoding=8, waiting=2) == Budget(TILE_TOKENS, TILE_TOKENS)


def test_more_streams_take_longer_and_leave_more_time_to_prompts() -> None:
    pace = known()
    pace.learn(0.04, decoding=32, read=0)
    assert pace.budget(512, decoding=30, waiting=1).pieces == 200
    assert pace.budget(512, decoding=5, waiting=1).pieces == 50


def test_the_averages_follow_a_machine_that_gets_slower() -> None:
    pace = known(token_s=0.001)
    for _ in range(30):
        pace.learn(0.1, decoding=4, read=0)
    assert 95 <= pace.budget(512, decoding=5, waiting=1).pieces <= 100
