"""Which files an ONNX graph points into, read without an ONNX library.

Takes a serialized model; gives the external-data locations of its tensors, wherever in the model
they stand. Walks the protobuf wire format along the fields that can lead to a tensor and skips the
rest. Imports nothing of ours but the errors and wire.
"""

from collections.abc import Iterator

from edgejudge.errors import BundleError
from edgejudge.wire import fields

__all__ = ["external_locations"]

# message -> field number -> message in that field
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "entry"},
}
_MOST_NESTED = 64


def external_locations(model: bytes, name: str) -> set[str]:
    """Raises BundleError, which calls the file `name`, for bytes that are not a model."""
    try:
        return set(_locations(memoryview(model), "model", 0))
    except (IndexError, ValueError) as error:
        raise BundleError(
            f"{name}: not a readable ONNX graph ({error}); export the bundle again"
        ) from None


def _locations(data: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _MOST_NESTED:
        raise ValueError("its graphs are nested too deeply")
    if message == "entry":
        strings = {n: v for n, v in fields(data) if isinstance(v, memoryview)}
        texts = {number: bytes(value).decode() for number, value in strings.items()}
        if texts.get(1) == "location":
            yield texts.get(2, "")
        return
    inner = _PATHS[message]
    for number, value in fields(data):
        if number in inner and isinstance(value, memoryview):
            yield from _locations(value, inner[number], depth + 1)
