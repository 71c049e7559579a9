"""Text of strangers, made fit for a terminal or a message: one line that steers nothing and ends.

Takes any text; gives it with every character that is not printed as its escape. Imports nothing of
ours.
"""

__all__ = ["brief", "one_line", "printable"]

_MOST_CHARS = 80
_MOST_TOLD = 300  # characters of what others' libraries say


def printable(text: str) -> str:
    """Without what could steer a terminal, begin a line or turn the reading direction."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def brief(text: str, most: int = _MOST_CHARS) -> str:
    """The same, cut at `most` characters."""
    cut = text if len(text) <= most else text[: max(most - 3, 0)] + "..."
    return printable(cut)


def one_line(error: Exception) -> str:
    """What an error of another library says, whose sentences may lie on any of its lines."""
    return " ".join(str(error).split())[:_MOST_TOLD] or type(error).__name__
