"""Core ML packages of a bundle, as Xcode and Core ML want them, and how to call them from Swift.

Takes a bundle with programs of the `coreml` target; writes folders `NAME.mlpackage`, whose files
are links to the bundle's where the file system has links, `Judge.swift`, in which every name and
shape comes from the manifest, and `report.json`, what edgejudge.coreml_report says of the programs.
Runs nothing.
"""

import json
from pathlib import Path

from edgejudge.bundle import Bundle, to_json
from edgejudge.coreml_report import programs, report
from edgejudge.errors import InputError
from edgejudge.printable import printable
from edgejudge.runtime.mlpackage import package_name, write_package

__all__ = ["swift", "write_packages"]


def write_packages(bundle: Bundle, out: Path) -> list[Path]:
    """One folder for each program; gives their paths. Raises BundleError for a bundle without any,
    or with one that is not what the manifest says, and InputError for a folder that cannot be
    written to.
    """
    said = json.dumps(to_json(report(bundle)), indent=2) + "\n"
    graphs = [records[0] for records in programs(bundle)]
    made = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for graph in graphs:
            folder = out / package_name(graph)
            if folder.exists():
                raise InputError("out", f"{folder}: is there already; name another folder")
            write_package(bundle, graph, folder)
            made.append(folder)
        (out / "Judge.swift").write_text(swift(bundle))
        (out / "report.json").write_text(said)
    except OSError as error:
        raise InputError(
            "out", f"{out}: cannot be written ({error.strerror}); name another folder"
        ) from None
    return made


_SWIFT = """// Made by `edgejudge coreml` for the bundle {name}, fingerprint {short}.
// Names and shapes are those of its manifest. What to feed is in the bundle: embeddings, token ids,
// policies with their thresholds; `edgejudge` in Python does the same with ONNX Runtime.
import CoreML

{sizes}
// Takes long, and is done once for each package: move what it gives out of its temporary folder.
@available(iOS 18.0, macOS 15.0, *)
func compile(_ package: URL) async throws -> URL {{
    return try await MLModel.compileModel(at: package)
}}

// A function of what was compiled. report.json says what is known to leave the Neural Engine.
@available(iOS 18.0, macOS 15.0, *)
func load(
    _ compiled: URL, function: String, units: MLComputeUnits = .all
) async throws -> MLModel {{
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units
    configuration.functionName = function
    return try await MLModel.load(contentsOf: compiled, configuration: configuration)
}}

// Keys and values stay in `state`, one of `model.makeState()` for all functions of a package, whose
// calls come one after another. A question is forked from a picture by writing from the same
// `begin` again, with a mask that hides what lies behind the picture.
@available(iOS 18.0, macOS 15.0, *)
func pass(
    _ model: MLModel, _ state: MLState,
    {parameters}
) throws -> MLMultiArray {{
    let inputs = try MLDictionaryFeatureProvider(dictionary: [
{feeds}
    ])
    let outputs = try model.prediction(from: inputs, using: state)
    return outputs.featureValue(for: "{output}")!.multiArrayValue!
}}
"""


def swift(bundle: Bundle) -> str:
    """A file that loads the programs and runs a pass of a decoder part."""
    graphs = [g for g in bundle.manifest.graphs if g.target == "coreml"]
    decoder = next(g for g in graphs if g.stage == "decoder")
    names = [tensor.name for tensor in decoder.inputs]
    sizes = []
    for graph in graphs:
        shapes = ", ".join(f"{t.name} {' x '.join(t.shape)} {t.dtype}" for t in graph.inputs)
        gives = ", ".join(f"{t.name} {' x '.join(t.shape)}" for t in graph.outputs)
        sizes.append(f"// {package_name(graph)}, {graph.function}: {shapes} -> {gives}\n")
    return _SWIFT.format(
        name=printable(bundle.manifest.name),  # a line of its own would be code
        short=bundle.fingerprint[:12],
        sizes="".join(sizes),
        parameters=", ".join(f"{_camel(n)}: MLMultiArray" for n in names),
        feeds=",\n".join(f'        "{n}": {_camel(n)}' for n in names),
        output=decoder.outputs[0].name,
    )


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
