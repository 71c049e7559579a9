"""A device's thread: order, results, errors, and what becomes of a call that never ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge.errors import ProviderError
from edgejudge.runtime.worker import DeviceHung, Worker


def test_results_errors_and_one_thread() -> None:
    worker = Worker("npu", 10)
    before = threading.active_count()
    assert worker.call(lambda: 3) == 3
    names = {worker.call(lambda: threading.current_thread().name) for _ in range(5)}
    assert names == {"npu"} and threading.active_count() == before + 1
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)
    with pytest.raises(SystemExit):
        worker.call(lambda: sys.exit(3))
    assert worker.call(lambda: "still there") == "still there" and not worker.abandoned


def test_nothing_starts_before_the_first_call() -> None:
    before = threading.active_count()
    worker = Worker("npu", 10)
    assert threading.active_count() == before and not worker.abandoned


def test_a_deadline_that_is_none() -> None:
    with pytest.raises(ValueError, match="deadline_s must be above 0"):
        Worker("npu", 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.integers(), st.just("fail")), max_size=20))
def test_order_and_results(asked: list[int | str]) -> None:
    worker = Worker("npu", 10)
    done: list[int | str] = []

    def work(what: int | str) -> int | str:
        done.append(what)
        if what == "fail":
            raise KeyError(what)
        return what

    for what in asked:
        if what == "fail":
            with pytest.raises(KeyError):
                worker.call(lambda: work("fail"))
        else:
            assert worker.call(lambda what=what: work(what)) == what
    assert done == asked


def test_many_callers_get_their_own_results_one_at_a_time() -> None:
    worker = Worker("npu", 10)
    inside = 0
    most = 0

    def work(number: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1
        return number * number

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: worker.call(lambda: work(n)), range(200)))
    assert found == [n * n for n in range(200)] and most == 1


def test_waiting_for_others_is_not_being_late() -> None:
    worker = Worker("npu", 0.4)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: worker.call(lambda: time.sleep(0.15) or n), range(6)))
    assert found == list(range(6)) and not worker.abandoned


def test_a_call_may_be_given_several_deadlines() -> None:
    """It alone: the next one has one again."""
    worker = Worker("coreml:CPU_AND_NE", 0.1)
    assert worker.call(lambda: time.sleep(0.4) or 7, deadlines=50) == 7
    with pytest.raises(DeviceHung, match=r"has not answered within 0.1 s"):
        worker.call(lambda: time.sleep(1))


def test_a_hung_device_is_abandoned() -> None:
    worker = Worker("npu:QNNExecutionProvider", 0.2)
    release = threading.Event()
    late: list[int] = []
    begun = time.monotonic()
    with pytest.raises(DeviceHung, match=r"^npu:QNN.* has not answered within 0.2 s") as raised:
        worker.call(lambda: release.wait() and late.append(1))
    assert 0.2 <= time.monotonic() - begun < 2
    assert isinstance(raised.value, ProviderError) and worker.abandoned
    begun = time.monotonic()
    with pytest.raises(DeviceHung):
        worker.call(lambda: late.append(2))
    assert time.monotonic() - begun < 0.1
    release.set()
    assert worker._thread is not None
    worker._thread.join(5)
    assert not worker._thread.is_alive() and late == [1], "what comes late is dropped"
    with pytest.raises(DeviceHung):
        worker.call(lambda: late.append(3))
    assert late == [1]


def test_who_waits_behind_a_hung_call_is_told_too() -> None:
    worker = Worker("npu", 0.3)
    release = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(worker.call, release.wait) for _ in range(4)]
        errors = [future.exception(timeout=5) for future in waiting]
    assert all(isinstance(error, DeviceHung) for error in errors)
    release.set()


def test_an_interrupted_call_that_waited_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("npu", 10)
    release = threading.Event()
    ran: list[int] = []

    def interrupt() -> float:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(worker.call, release.wait)
        while worker._line.since is None:
            time.sleep(0.001)
        with monkeypatch.context() as patched:
            patched.setattr(worker, "_patience", interrupt)
            with pytest.raises(KeyboardInterrupt):
                worker.call(lambda: ran.append(1))
        release.set()
        assert running.result(5) is True
    worker.call(lambda: ran.append(2))
    assert ran == [2]


def test_the_thread_ends_with_its_worker() -> None:
    worker = Worker("npu", 10)
    worker.call(lambda: None)
    thread = worker._thread
    assert thread is not None and thread.is_alive()
    del worker
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


HANGS = """
import time
from edgejudge.runtime.worker import DeviceHung, Worker
worker = Worker("npu", 0.3)
try:
    worker.call(lambda: time.sleep(1e6))
except DeviceHung:
    print("hung", flush=True)
"""


def test_a_hung_device_does_not_keep_the_program() -> None:
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hung\n", "")
    assert time.monotonic() - begun < 30


INTERRUPTED = """
import time
from edgejudge.runtime.worker import Worker
worker = Worker("npu", 1e6)
ran = []
print("ready", flush=True)
try:
    worker.call(lambda: time.sleep(1.5))
except KeyboardInterrupt:
    worker.call(lambda: ran.append(1))
    print("interrupted", ran, worker.abandoned, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send to one process")
def test_ctrl_c_comes_through() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted [1] False\n"
    assert process.returncode == 0
