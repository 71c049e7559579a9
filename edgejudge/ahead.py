"""Work on the next item while the last one is used.

Takes an iterable and what to do with each item; gives the results in order. Does not know what the
items are.
"""

import atexit
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["one_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(
    items: Iterator[T], work: Callable[[T], R], give_up: Callable[[], None] = lambda: None
) -> Iterator[R]:
    """`work` of each item, in another thread and one item ahead of what was taken; begins when the
    first is asked for. An error of either is raised where its result would have come. `give_up`
    makes work end that might go on for long; it is called when Ctrl-C ends the wait for a result.
    """
    wanted = threading.Semaphore(1)
    working = threading.Lock()
    results: SimpleQueue[tuple[R] | BaseException | None] = SimpleQueue()
    over = False

    def run() -> None:
        try:
            while wanted.acquire() and not over:
                try:
                    item = next(items)
                except StopIteration:
                    results.put(None)
                    return
                with working:
                    if over:
                        return
                    results.put((work(item),))
        except BaseException as error:  # to be raised by who takes the result
            results.put(error)

    def end() -> None:
        """Waits for work that has begun, since a program that ends in the middle of it crashes;
        not for the next item, which may be one that a camera never takes.
        """
        nonlocal over
        over = True
        wanted.release()
        with working:
            pass

    threading.Thread(target=run, name="edgejudge-ahead", daemon=True).start()
    atexit.register(end)
    try:
        while (result := results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            wanted.release()
            yield result[0]
    except KeyboardInterrupt:
        give_up()
        raise
    finally:
        atexit.unregister(end)
        end()
