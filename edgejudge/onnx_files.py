"""What a model file asks of an engine beside its operators, read without a library for it.

Takes a serialized model; refuses one that points into files that are not its own, or wants code or
settings that an engine would take from the model. Walks the protobuf wire format along the fields
that can lead there and skips the rest. Imports nothing of ours but the errors, wire and printable.
"""

from collections.abc import Collection, Iterator

from edgejudge.errors import BundleError
from edgejudge.printable import brief
from edgejudge.wire import fields

__all__ = ["check_model", "external_locations"]

# message -> field number -> message in that field; the numbers are those of onnx.proto
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "metadata", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "entry"},
}
# message -> field number -> what the text in that field is
_TEXTS: dict[str, dict[int, str]] = {
    "node": {4: "operator", 7: "domain"},
    "metadata": {1: "metadata"},
}
_MOST_NESTED = 64
_MOST_TEXT = 4096  # bytes of a name
# Of ONNX and of ONNX Runtime itself; those of any other come from a library.
_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
# Why an operator of these domains is not wanted: what a bundle computes ends, and is all in it.
_REFUSED = {
    "EPContext": "what a provider compiled is kept outside a bundle, by the machine that made it",
    **dict.fromkeys(("ATen", "PythonOp", "PythonOpGrad"), "it calls code outside the model"),
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), "a loop may never end"),
    **dict.fromkeys(
        ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"), "a loop may never end"
    ),
}
# ONNX Runtime reads settings of a session from there where its environment says so.
_SETTINGS = "ort_config"

_Fact = tuple[str, str]  # what it is, and its text


def check_model(model: memoryview, name: str, files: Collection[str]) -> None:
    """Raises BundleError, which calls the file `name`, for bytes that are not a model, and for one
    that points outside `files`, or asks for what is refused.
    """
    for kind, text in _facts(model, name):
        problem = None
        if kind == "location" and text not in files:
            problem = f"points into '{brief(text)}', which is none of its weight files"
        elif kind == "domain" and text not in _DOMAINS:
            problem = f"has operators of '{brief(text)}', which come from a library"
        elif kind == "operator" and text in _REFUSED:
            problem = f"has the operator {text}: {_REFUSED[text]}"
        elif kind == "function":
            problem = "defines functions, which no bundle of ours does"
        elif kind == "metadata" and text == _SETTINGS:
            problem = f"carries settings of a session in '{_SETTINGS}'"
        if problem is not None:
            raise BundleError(f"{name}: {problem}; do not use this bundle")


def external_locations(model: bytes, name: str) -> set[str]:
    """Of its tensors, wherever in the model they stand. Raises BundleError for bytes that are not a
    model.
    """
    return {text for kind, text in _facts(memoryview(model), name) if kind == "location"}


def _facts(model: memoryview, name: str) -> Iterator[_Fact]:
    try:
        yield from _walk(model, "model", 0)
    except (IndexError, ValueError) as error:
        raise BundleError(
            f"{name}: not a readable ONNX graph ({error}); export the bundle again"
        ) from None


def _walk(data: memoryview, message: str, depth: int) -> Iterator[_Fact]:
    if depth > _MOST_NESTED:
        raise ValueError("its graphs are nested too deeply")
    if message == "entry":
        # A number in place of a text is not read by an engine, and takes no text's place.
        texts = {n: _text(value) for n, value in fields(data) if isinstance(value, memoryview)}
        if texts.get(1) == "location":
            yield "location", texts.get(2, "")
        return
    if message == "function":
        yield "function", ""
    inner, texts_of = _PATHS.get(message, {}), _TEXTS.get(message, {})
    for number, value in fields(data):
        if not isinstance(value, memoryview):
            continue
        if number in inner:
            yield from _walk(value, inner[number], depth + 1)
        elif number in texts_of:
            yield texts_of[number], _text(value)


def _text(value: memoryview) -> str:
    if len(value) > _MOST_TEXT:
        raise ValueError("a name is too long")
    return bytes(value).decode()
