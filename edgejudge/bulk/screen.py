"""Files and folders judged into one results file, however often that is interrupted.

Takes a judge, paths and a policy; gives a `Summary`. What is to be judged goes through the judge's
stream, so the next picture is looked up and made ready while one is judged. Knows no file format:
store.py has these, ledger.py what still has to be judged.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

from edgejudge.bulk.identity import identity_of
from edgejudge.bulk.ledger import Asked, Ledger, Summary
from edgejudge.bulk.names import listing, own_files
from edgejudge.bulk.store import open_store

if TYPE_CHECKING:
    from edgejudge.cascade import Cascade, Plans
    from edgejudge.judge import Judge, PolicyLike
    from edgejudge.regions import Region
    from edgejudge.verdict import Verdict

__all__ = ["judge_files", "screen_files"]


def screen_files(
    judge: "Judge | Cascade",
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    policy: "PolicyLike | Plans" = "stickers",
    *,
    out: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
    regions: "Mapping[str, Sequence[Region]] | None" = None,
    each: "Callable[[Verdict], None] | None" = None,
    progress: Callable[[Summary], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    summary: Summary | None = None,
) -> Summary:
    """Judges every file of `paths` and all files in folders among them, once each, and keeps a row
    for each in `out`: FILE.jsonl, FILE.parquet or FILE.sqlite. The same call again, after whatever
    ended the first, keeps the rows that still hold and does the rest; BULK.md has the rules.

    `policy` may be a plan of the judge. `retry_failed` judges files again that could not be judged.
    `regions` is as in Judge.stream. `each` gets the verdict of every row that is written, and
    `progress` the summary so far, from whichever thread, but one call at a time. When `stop`
    says so no further picture is begun: `with CtrlC() as stop` asks the keyboard. `summary` is one
    to fill, for who wants it where an error ends the run.

    Raises what `open_store` raises, and InputError "unwritable" where the disk is full: the rows so
    far stand, as they do after any other error and after KeyboardInterrupt.
    """
    from edgejudge.cascade import Cascade, Plans

    plan: Any = policy if isinstance(policy, Plans) else judge.plan(policy)
    first = judge.first if isinstance(judge, Cascade) else judge
    store = None if out is None else open_store(out, identity_of(judge, plan))
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    files = listing(
        (os.fspath(path) for path in paths), () if out is None else own_files(os.fspath(out))
    )
    with nullcontext() if store is None else store:
        ledger = Ledger(
            store,
            limits=first.limits,
            regions=regions,
            retry_failed=retry_failed,
            summary=summary,
            each=each,
            progress=progress,
        )
        try:
            judge_files(judge, plan, files, ledger, regions, stop, alone=False)
            # Of the same bytes as one that failed, or as one that changed while it was judged.
            judge_files(judge, plan, iter(ledger.left), ledger, regions, stop, alone=True)
        finally:
            ledger.end()
    return ledger.summary


def judge_files(
    judge: Any,
    plan: Any,
    files: Iterator[str],
    ledger: Ledger,
    regions: "Mapping[str, Sequence[Region]] | None",
    stop: Callable[[], bool],
    alone: bool,
) -> None:
    """Judges those of `files` that the ledger asks for; `alone` is for what is left in it."""
    asked: deque[Asked] = deque()

    def wanted() -> Iterator[str]:
        """Read by the stream, perhaps in another thread, ahead of what it gives."""
        for path in files:
            if stop() or ledger.over:
                return
            if (found := ledger.look(path, wait=not alone)) is not None:
                asked.append(found)
                yield path

    with closing(judge.stream(wanted(), plan, regions=regions)) as verdicts:
        for verdict in verdicts:
            ledger.add(asked.popleft(), verdict)
            if stop():
                return
