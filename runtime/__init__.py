"""Bundle -> numbers: sessions, KV, prefix sharing, packed questions and the engine over them.

Takes an opened bundle and pixels or token ids; gives label logits and where and how long they ran.
Does not know policies, verdicts, checkpoints or image files.
"""

from edgejudge.runtime.engine import Engine, Prefix
from edgejudge.runtime.settings import Settings
from edgejudge.runtime.trace import Span, Trace

__all__ = ["Engine", "Prefix", "Settings", "Span", "Trace"]
