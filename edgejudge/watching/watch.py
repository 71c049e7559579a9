"""A folder judged as its files come, into a results file that survives whatever ends the run.

Takes a judge, a folder and what to do about files; gives `Watched` when it is told to stop. Each
look at the folder is one run of the screening loop of edgejudge.bulk over the files that are due;
the results file says what is done, also by earlier runs. A row is on the disk before anything is
done about its file, so that a kill at any point leaves the next run what it needs to go on.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgejudge.bulk.identity import identity_of
from edgejudge.bulk.ledger import Asked, Ledger, Summary
from edgejudge.bulk.names import own_files
from edgejudge.bulk.rows import content_key
from edgejudge.bulk.screen import judge_files
from edgejudge.bulk.store import Found, Store, check_out, open_store
from edgejudge.errors import InputError
from edgejudge.images import Limits
from edgejudge.report import outcome
from edgejudge.verdict import Verdict
from edgejudge.watching.actions import Action, Actions
from edgejudge.watching.tree import Tree, inside

if TYPE_CHECKING:
    from edgejudge.cascade import Cascade, Plans
    from edgejudge.judge import Judge, PolicyLike

__all__ = ["EVERY_S", "SETTLE_S", "Watched", "check_folders", "watch_folder"]

SETTLE_S = 2.0
EVERY_S = 1.0
_SLICE_S = 0.1  # of a pause, after which it is asked whether to stop


@dataclass(slots=True)
class Watched:
    """Of one run. `vanished` files were gone before they were judged and have no row; `waiting`
    ones were not judged when it ended, or not again since they changed; about `undone` ones
    something failed that was asked for.
    """

    screened: Summary = field(default_factory=Summary)
    vanished: int = 0
    waiting: int = 0
    quarantined: int = 0
    blurred: int = 0
    undone: int = 0


def check_folders(
    folder: str, out: str, actions: Sequence[Action] = (), left_out: Sequence[str] = ()
) -> None:
    """Before anything is done. Raises InputError for what is no folder, and for files that would be
    kept where they are judged again; and what check_out raises.
    """
    if not os.path.isdir(folder):
        raise InputError("folder", f"{folder} is no folder; give one to watch")
    try:
        os.listdir(folder)
    except OSError as error:
        raise InputError("folder", f"{folder} cannot be read: {error.strerror}") from None
    check_out(out)
    for path in left_out:
        if inside(path, folder):
            raise InputError("folder", f"nothing of {folder} would be left without {path}")
        if not inside(folder, path):
            raise InputError("folder", f"{path} is not in {folder}: nothing is left out by it")
    taking = [action.outcome for action in actions if action.kind == "quarantine"]
    if len(taking) > len(set(taking)):
        raise InputError("action", "a file can be moved once; give one quarantine for an outcome")
    for action in actions:
        place = os.path.realpath(action.folder)
        if os.path.lexists(place) and not os.path.isdir(place):
            raise InputError("unwritable", f"{action.folder} is no folder; give one for the files")
        if not os.path.isdir(os.path.dirname(place)):
            raise InputError(
                "unwritable", f"{action.folder} cannot be made: there is no folder for it"
            )
        if inside(folder, action.folder) and not any(
            inside(each, action.folder) for each in left_out
        ):
            raise InputError(
                "action",
                f"{action.folder} lies in {folder}, where its files would be judged again; give a "
                "folder elsewhere, or leave it out by --except, which also leaves out what others "
                "put there",
            )


def watch_folder(
    judge: "Judge | Cascade",
    folder: str | os.PathLike[str],
    policy: "PolicyLike | Plans" = "stickers",
    *,
    out: str | os.PathLike[str],
    actions: Sequence[Action] = (),
    left_out: Sequence[str] = (),
    settle_s: float = SETTLE_S,
    every_s: float = EVERY_S,
    once: bool = False,
    retry_failed: bool = False,
    each: Callable[[Verdict], None] | None = None,
    told: Callable[[str], None] = lambda sentence: None,
    stop: Callable[[], bool] = lambda: False,
    watched: Watched | None = None,
) -> Watched:
    """Judges every file below `folder`, those that are there and those that come or change, and
    keeps a row for each in `out`, as screen_files does with the same rules; BULK.md has them.

    A file is judged when it was the same for `settle_s` seconds; the folder is looked at every
    `every_s` seconds, or less often where a look takes long. `actions` are of read_action; what
    lies in the folders `left_out` is not looked at. With `once` it ends when what is there is
    judged, and else when `stop` says so: `with CtrlC() as stop` asks the keyboard. `each` gets the
    verdict of every row that is written, and `told` a sentence about everything that is done to a
    file or fails. `watched` is one to fill, for who wants it where an error ends the run.

    Raises what check_folders and open_store raise, InputError "in_use" where another watcher has a
    quarantine, and "unwritable" where the results file cannot be written: what is done stands.
    """
    from edgejudge.cascade import Cascade, Plans

    plan: Any = policy if isinstance(policy, Plans) else judge.plan(policy)
    limits = judge.first.limits if isinstance(judge, Cascade) else judge.limits
    path, file = os.fspath(folder), os.fspath(out)
    check_folders(path, file, actions, left_out)
    watched = Watched() if watched is None else watched
    with open_store(out, identity_of(judge, plan)) as store, Actions(actions, limits, told) as acts:
        watched.screened.repairs += acts.repairs
        tree = Tree(path, settle_s, own_files(file), left_out)
        ledger = _Ledger(store, limits, retry_failed, watched, acts, each)

        for sentence in watched.screened.repairs:
            told(f"warning: {sentence}")

        def look() -> None:
            before = watched.screened.written
            judge_files(judge, plan, tree.due(), ledger, None, stop, alone=False)
            if stop():  # a thread may still be looking at the next file
                return
            # Of the same bytes as one that failed, or as one that changed while it was judged.
            left, ledger.left = ledger.left, []
            judge_files(judge, plan, iter(left), ledger, None, stop, alone=True)
            acts.again()
            if watched.screened.written > before:
                store.sync()

        try:
            _look_on(look, tree, every_s, settle_s, once, told, stop)
        finally:
            ledger.end()
            watched.waiting = tree.waiting + tree.given - watched.screened.done - watched.vanished
            watched.quarantined, watched.blurred = acts.quarantined, acts.blurred
            watched.undone = acts.undone
    return watched


def _look_on(
    look: Callable[[], None],
    tree: Tree,
    every_s: float,
    settle_s: float,
    once: bool,
    told: Callable[[str], None],
    stop: Callable[[], bool],
) -> None:
    was_there = True
    while True:
        look()
        if not tree.is_there and once:
            raise InputError("folder", f"{tree.folder} is gone or cannot be read")
        if was_there != tree.is_there:
            was_there = tree.is_there
            what = "is there again" if was_there else "is gone or cannot be read; waiting for it"
            told(f"warning: {tree.folder} {what}")
        if stop() or (once and (tree.looks > 1 or not tree.waiting)):
            return
        until_s = time.monotonic() + (settle_s if once else tree.pause_s(every_s))
        while not stop() and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _SLICE_S))
        if stop():
            return


class _Ledger(Ledger):
    """Acts on every row, those that were kept included: a kill may have come between the two."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        retry_failed: bool,
        watched: Watched,
        actions: Actions,
        each: Callable[[Verdict], None] | None,
    ) -> None:
        super().__init__(
            store,
            limits=limits,
            retry_failed=retry_failed,
            summary=watched.screened,
            each=self._judged,
        )
        self._rows, self._watched = store, watched
        self._actions, self._then = actions, each

    def add(self, asked: Asked, verdict: Verdict) -> None:
        error = verdict.error
        if error is None or error.code != "missing" or os.path.lexists(asked.path):
            super().add(asked, verdict)
            return
        with self._lock:  # nothing is there that a row could be about
            self._watched.vanished += 1
            if asked.content is not None:
                self.left += [path for path, _ in self._waiting.pop(asked.content, [])]

    def _keep(self, path: str, before: Found) -> None:
        super()._keep(path, before)
        self._act(path, before.outcome, before.content)

    def _judged(self, verdict: Verdict) -> None:
        if self._then is not None:
            self._then(verdict)
        assert verdict.path is not None
        self._act(verdict.path, outcome(verdict), content_key(verdict.sha256, None))

    def _act(self, path: str, word: str, content: bytes | None) -> None:
        if self._actions.acts_on(word):
            self._rows.sync()
            self._actions.act(path, word, content)
