"""Many pictures into one file of verdicts that survives kills, full disks and changed minds.

`screen_files` judges files and folders and keeps a row for each in JSON lines, Parquet or SQLite;
the same call goes on where an earlier one ended. `open_store` is that file by itself. Both are
imported when first asked for, so that the command line can import names from here for nothing.
"""

from typing import TYPE_CHECKING

from edgejudge.lazy import lazily

if TYPE_CHECKING:
    from edgejudge.bulk.identity import Identity, identity_of
    from edgejudge.bulk.interrupt import CtrlC
    from edgejudge.bulk.ledger import Asked, Ledger, Summary
    from edgejudge.bulk.screen import screen_files
    from edgejudge.bulk.store import Found, Store, open_store, read_rows

__all__ = [
    "Asked",
    "CtrlC",
    "Found",
    "Identity",
    "Ledger",
    "Store",
    "Summary",
    "identity_of",
    "open_store",
    "read_rows",
    "screen_files",
]

_HOMES = {
    "Asked": "ledger",
    "CtrlC": "interrupt",
    "Found": "store",
    "Identity": "identity",
    "Ledger": "ledger",
    "Store": "store",
    "Summary": "ledger",
    "identity_of": "identity",
    "open_store": "store",
    "read_rows": "store",
    "screen_files": "screen",
}

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
