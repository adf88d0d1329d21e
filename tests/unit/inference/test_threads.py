"""Which number of threads is used follows what is faster, and tries are rare where they do not pay."""

from inference.engine.threads import ThreadChoice


class Machine:
    """Steps that take what the number of threads says."""

    def __init__(self, seconds: dict[int, float], most: int = 2) -> None:
        self.seconds = seconds
        self.used: list[int] = []
        self.choice = ThreadChoice(most, self.used.append)

    def steps(self, count: int, decoding: int = 4, reading: bool = False) -> list[int]:
        for _ in range(count):
            self.choice.before(decoding, reading)
            self.choice.after(decoding, reading, self.seconds[self.used[-1]])
        return self.used[-count:]


def test_all_threads_stay_in_use_while_they_are_faster() -> None:
    used = Machine({1: 0.01, 2: 0.006}).steps(500)
    assert 0 < used.count(1) <= 12
    assert used[-1] == 2


def test_one_thread_takes_over_soon_when_the_cores_are_held_by_others() -> None:
    machine = Machine({1: 0.03, 2: 0.4})
    assert machine.steps(8).count(2) <= 5
    machine = Machine({1: 0.01, 2: 0.006})
    machine.steps(300)
    machine.seconds = {1: 0.03, 2: 0.4}
    assert machine.steps(8).count(2) <= 4


def test_a_busy_machine_is_not_tried_ever_more_often() -> None:
    machine = Machine({1: 0.03, 2: 0.4})
    machine.steps(30)
    assert machine.steps(2000).count(2) <= 7


def test_all_threads_come_back_when_the_machine_is_quiet_again() -> None:
    machine = Machine({1: 0.03, 2: 0.4})
    machine.steps(3000)
    machine.seconds = {1: 0.03, 2: 0.015}
    machine.steps(1100)
    assert machine.choice.count == 2


def test_one_slow_step_decides_nothing() -> None:
    machine = Machine({1: 0.01, 2: 0.006})
    machine.steps(20)
    machine.choice.before(4, False)
    machine.choice.after(4, False, 5.0)
    assert machine.steps(8)[-3:] == [2, 2, 2]
    assert machine.choice.count == 2


def test_disturbed_steps_between_good_ones_do_not_give_the_threads_up() -> None:
    machine = Machine({1: 0.017, 2: 0.012})
    slow = [True, True, False, False, False] * 100  # requests that come and go hold a core in two steps of five
    for disturbed in slow:
        machine.seconds[2] = 0.03 if disturbed else 0.012
        machine.steps(1)
        assert machine.choice.count == 2


def test_steps_that_read_prompts_or_have_other_widths_are_no_comparison() -> None:
    machine = Machine({1: 0.01, 2: 0.4})
    assert machine.steps(100, reading=True) == [2] * 100
    for _ in range(100):
        assert machine.steps(1, decoding=3) + machine.steps(1, decoding=5) == [2, 2]


def test_a_small_model_never_leaves_its_one_thread() -> None:
    assert Machine({1: 0.01}, most=1).steps(200) == [1] * 200
