"""A folder whose files are judged as they appear, and what is done about those that are not safe.

`watch_folder` goes on until it is told to stop. It is screening over a results file, as of
edgejudge.bulk, with another source of paths. Imported when first asked for, as there.
"""

from typing import TYPE_CHECKING

from edgejudge.lazy import lazily

if TYPE_CHECKING:
    from edgejudge.watching.actions import Action, read_action
    from edgejudge.watching.watch import Watched, watch_folder

__all__ = ["Action", "Watched", "read_action", "watch_folder"]

_HOMES = {
    "Action": "actions",
    "Watched": "watch",
    "read_action": "actions",
    "watch_folder": "watch",
}

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
