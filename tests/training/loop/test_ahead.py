import threading

import pytest

from segue.training.loop.ahead import Ahead


def test_the_next_step_is_made_while_this_one_is_used() -> None:
    begun = {step: threading.Event() for step in range(3)}

    def make(step: int) -> int:
        begun[step].set()
        return 10 * step

    ahead = Ahead(make)
    assert ahead(0) == 0
    assert begun[1].wait(5)
    assert not begun[2].is_set()
    assert ahead(1) == 10


def test_each_step_is_made_once_however_often_it_is_asked_for() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    ahead = Ahead(make)
    assert [ahead(step) for step in (0, 1, 1, 2)] == [0, 1, 1, 2]
    assert made[:3] == [0, 1, 2]


def test_any_step_may_come_first() -> None:
    ahead = Ahead(lambda step: -step)
    assert [ahead(7), ahead(2), ahead(3)] == [-7, -2, -3]


def test_what_goes_wrong_is_raised_at_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("no draw for 1")
        return step

    ahead = Ahead(make)
    assert ahead(0) == 0
    with pytest.raises(ValueError, match="no draw for 1"):
        ahead(1)
