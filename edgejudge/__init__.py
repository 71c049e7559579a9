"""edgejudge: an image judge that runs on the device.

Gives `Judge`, what it takes and answers, and the errors; each is imported when first asked for, so
that `import edgejudge` itself costs next to nothing. Knows nothing of models or graphs.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgejudge.lazy import lazily

# In a checkout export/, models/ and runtime/ sit beside this folder; in a wheel they sit inside it.
if not Path(__path__[0], "export").exists():
    __path__.append(str(Path(__path__[0]).parent))

# ONNX Runtime reports to Microsoft from 1.29 on unless this stands before it is imported, and keeps
# a database of reports in the user's cache folder. A user who has set it has decided already.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edgejudge.answering.rubrics import Checklist, Rubric
    from edgejudge.calibration import Calibration
    from edgejudge.errors import (
        BundleError,
        EdgeJudgeError,
        ExportError,
        InputError,
        PolicyError,
        ProviderError,
    )
    from edgejudge.judge import Judge
    from edgejudge.policy import Policy
    from edgejudge.regions import Region
    from edgejudge.verdict import Verdict

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "Calibration",
    "Checklist",
    "EdgeJudgeError",
    "ExportError",
    "InputError",
    "Judge",
    "Policy",
    "PolicyError",
    "ProviderError",
    "Region",
    "Rubric",
    "Tracing",
    "Verdict",
    "__version__",
]

_HOMES = {
    **dict.fromkeys(
        (
            "BundleError",
            "EdgeJudgeError",
            "ExportError",
            "InputError",
            "PolicyError",
            "ProviderError",
        ),
        "errors",
    ),
    "Calibration": "calibration",
    "Checklist": "answering.rubrics",
    "Judge": "judge",
    "Policy": "policy",
    "Region": "regions",
    "Rubric": "answering.rubrics",
    "Tracing": "tracing",
    "Verdict": "verdict",
}

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
