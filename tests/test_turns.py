"""Turns come in the order of asking, one at a time, and waiting has an end."""

import threading
import time
from collections.abc import Callable

import pytest

from edgejudge.errors import InputError
from edgejudge.turns import Stop, Turns


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def waiting(turns: Turns) -> int:
    return len(turns._queue)


def test_first_come_first_served_and_one_at_a_time() -> None:
    turns, order = Turns(50), []
    inside = threading.Semaphore(1)

    def work(n: int) -> None:
        with turns.turn(Stop()):
            assert inside.acquire(blocking=False), "two have the turn"
            order.append(n)
            time.sleep(0.001)
            inside.release()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    with turns.turn(Stop()):
        for n, thread in enumerate(threads):
            thread.start()
            until(lambda n=n: waiting(turns) == n + 2)  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert order == list(range(20)) and waiting(turns) == 0


def test_one_too_many_is_refused_and_the_rest_go_on() -> None:
    turns = Turns(1)
    with turns.turn(Stop()):
        second = threading.Thread(target=lambda: turns.turn(Stop()).__enter__())
        second.start()
        until(lambda: waiting(turns) == 2)
        with pytest.raises(InputError, match="1 others are waiting") as error, turns.turn(Stop()):
            raise AssertionError("it had no turn")
        assert error.value.code == "busy"
        assert waiting(turns) == 2
    second.join(10)
    assert not second.is_alive()


def test_who_gives_up_leaves_the_queue() -> None:
    turns = Turns(5)
    codes: list[str] = []
    called_off = Stop()

    def wait(stop: Stop) -> None:
        try:
            with turns.turn(stop):
                codes.append("had a turn")
        except InputError as error:
            codes.append(error.code)

    with turns.turn(Stop()):
        threads = [threading.Thread(target=wait, args=(s,)) for s in (Stop(0.01), called_off)]
        for thread in threads:
            thread.start()
        until(lambda: codes == ["timeout"])
        called_off.cancel()
        until(lambda: codes == ["timeout", "cancelled"])
        assert waiting(turns) == 1
    with turns.turn(Stop()):
        pass
    with pytest.raises(InputError, match="called off"), turns.turn(called_off):
        raise AssertionError("it had a turn")
    assert waiting(turns) == 0


def test_an_error_ends_the_turn() -> None:
    turns = Turns(1)
    with pytest.raises(KeyError), turns.turn(Stop()):
        raise KeyError
    with turns.turn(Stop(5)):
        pass


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_is_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive number of seconds"):
        Stop(seconds)
