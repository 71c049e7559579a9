"""OpenAI's moderation keys: their names and order.

Knows nothing else, so that a policy can be read without what makes the moderation form.
"""

__all__ = ["OPENAI", "OPENAI_KEYS"]

OPENAI = "openai"  # the taxonomy's name in `maps_to`
OPENAI_KEYS = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
