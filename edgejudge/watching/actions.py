"""What is done about files by what was judged of them: moved into a quarantine, or shown blurred.

Takes texts like `unsafe=quarantine:DIR`; gives `Actions`, which are told of every row of a watched
folder, perhaps twice. A file is touched only while it is the one that was judged. What fails is
told, tried again later, and counted as long as it is not done. Knows no judge.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgejudge.bulk.files import replacing
from edgejudge.errors import InputError
from edgejudge.images import Limits
from edgejudge.watching.blur import blurred
from edgejudge.watching.quarantine import Quarantine, kept_name
from edgejudge.watching.unchanged import Sight, look_again

__all__ = ["Action", "Actions", "read_action"]

_WORDS = ("unsafe", "uncertain", "failed")
_AGAIN_S = 30.0  # between two tries of what failed
_MOST_AGAIN = 10_000  # paths; what fails beyond is tried by the next run


@dataclass(frozen=True, slots=True)
class Action:
    """`kind` is quarantine or blur."""

    outcome: str
    kind: str
    folder: str


def read_action(text: str) -> Action | None:
    """Of a text like `unsafe=quarantine:DIR`; None for `unsafe=report`, which is done anyway.
    Raises InputError "action".
    """
    word, _, how = text.partition("=")
    kind, _, folder = how.partition(":")
    if word in _WORDS and how == "report":
        return None
    if word == "failed" and kind == "blur":
        raise InputError("action", f"'{text}': what could not be judged cannot be blurred either")
    if word in _WORDS and kind in ("quarantine", "blur") and folder:
        return Action(word, kind, folder)
    raise InputError(
        "action",
        f"'{text}' is no OUTCOME=ACTION: the outcome is unsafe, uncertain or failed, and the "
        "action report, quarantine:DIR or blur:DIR",
    )


class Actions:
    """Use as a context. `quarantined` and `blurred` count files, `repairs` are sentences."""

    def __init__(
        self, actions: Sequence[Action], limits: Limits, told: Callable[[str], None]
    ) -> None:
        """Folders are made where they are missing. Raises InputError "in_use" and "unwritable".
        `told` is called with a sentence about everything that is done, or fails.
        """
        self.quarantined = 0
        self.blurred = 0
        self.repairs: list[str] = []
        self._limits, self._told = limits, told
        self._quarantines: dict[str, Quarantine] = {}
        self._of: dict[str, list[Action]] = {}
        self._again: dict[str, tuple[str, bytes | None]] = {}
        self._again_s = 0.0
        self._beyond = 0
        try:
            # A quarantine takes the file away, so it comes last.
            for action in sorted(actions, key=lambda each: each.kind):
                self._of.setdefault(action.outcome, []).append(action)
                self._open(action)
        except BaseException:
            self._close()
            raise

    def _open(self, action: Action) -> None:
        folder = os.path.realpath(action.folder)
        if action.kind == "quarantine":
            if folder not in self._quarantines:
                self._quarantines[folder] = Quarantine(action.folder)
                self.repairs += self._quarantines[folder].repairs
            return
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            why = error.strerror or str(error)
            raise InputError(
                "unwritable", f"{action.folder} is no place for files: {why}"
            ) from None

    @property
    def undone(self) -> int:
        """Files about which something failed that was asked for."""
        return len(self._again) + self._beyond

    def acts_on(self, outcome: str) -> bool:
        return outcome in self._of

    def act(self, path: str, outcome: str, content: bytes | None) -> None:
        """`content` is what the row of the path is about."""
        if self._done(path, outcome, content):
            self._again.pop(path, None)
        elif path in self._again or len(self._again) < _MOST_AGAIN:
            self._again_s = self._again_s or time.monotonic() + _AGAIN_S
            self._again[path] = outcome, content
        else:
            self._beyond += 1

    def again(self) -> None:
        """What failed, if that is long enough ago."""
        if not self._again or time.monotonic() < self._again_s:
            return
        self._again_s = 0.0
        for path, (outcome, content) in [*self._again.items()]:
            self.act(path, outcome, content)

    def _done(self, path: str, outcome: str, content: bytes | None) -> bool:
        """True for a file that is gone or another one by now, too: that one is judged by itself."""
        try:
            sight = look_again(path, content, self._limits)
        except OSError as error:
            self._fails(path, outcome, error)
            return False
        if sight is None:
            return True
        if stat.S_ISDIR(sight.status.st_mode):
            self._fails(path, outcome, OSError(errno.EISDIR, "it is a folder, which stays"))
            return False
        done = True
        for action in self._of[outcome]:
            try:
                if action.kind == "blur":
                    self._blur(path, sight, action)
                else:
                    done = self._take(path, sight, action) and done
            except (OSError, InputError, MemoryError) as error:
                self._fails(path, action.kind, error)
                done = False
        return done

    def _take(self, path: str, sight: Sight, action: Action) -> bool:
        quarantine = self._quarantines[os.path.realpath(action.folder)]
        target = quarantine.take(path, sight, action.outcome)
        if target is None:
            return not os.path.lexists(path)
        self.quarantined += 1
        self._told(f"{path} is {action.outcome}: moved to {target}")
        return True

    def _blur(self, path: str, sight: Sight, action: Action) -> None:
        name = kept_name(path, sight.sha256)
        target = os.path.join(os.path.realpath(action.folder), f"{name}.blurred.png")
        if os.path.lexists(target):  # of the same bytes, and whole since it was renamed
            return
        made = blurred(sight.data, self._limits)
        with replacing(target) as part, open(part, "wb") as stream:
            stream.write(made)
        self.blurred += 1
        self._told(f"{path} is {action.outcome}: a blurred copy is {target}")

    def _fails(self, path: str, what: str, error: Exception) -> None:
        if path in self._again:  # it was told
            return
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self._told(f"warning: {path}: {what} failed: {why}; it is tried again")

    def _close(self) -> None:
        for quarantine in self._quarantines.values():
            quarantine.close()

    def __enter__(self) -> "Actions":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
