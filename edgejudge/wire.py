"""The protobuf wire format: a message's fields, one after another, without a protobuf library.

Takes bytes; gives numbers of fields and what they hold. Does not know what a field means. Imports
nothing of ours.
"""

from collections.abc import Iterator

__all__ = ["fields"]


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and byte strings; fields of a fixed width are skipped. Raises ValueError or
    IndexError for bytes that are no message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("it is cut short")
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
