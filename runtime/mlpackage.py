"""One Core ML program of a bundle as the folder that Core ML and Xcode want around its files.

Takes a bundle and the record of one of the program's functions; writes `NAME.mlpackage`, whose
files are links to the bundle's where the file system has links. Runs nothing.
"""

import json
import os
import shutil
import uuid
from pathlib import Path

from edgejudge.bundle import Bundle, GraphRecord

__all__ = ["package_name", "write_package"]

_ITEMS = (  # description, name and path, in the order of a graph's files
    ("CoreML Model Specification", "model.mlmodel", "com.apple.CoreML/model.mlmodel"),
    ("CoreML Model Weights", "weights", "com.apple.CoreML/weights"),
)


def package_name(graph: GraphRecord) -> str:
    return graph.file.removesuffix(".mlmodel") + ".mlpackage"


def write_package(bundle: Bundle, graph: GraphRecord, folder: Path) -> None:
    """To `folder`, which is new. Raises OSError where it cannot be written, and BundleError for
    files that are not what the manifest says.
    """
    bundle.graph_file(graph)  # checks all of its files
    inside = folder / "Data" / "com.apple.CoreML"
    (inside / "weights").mkdir(parents=True)
    _linked(bundle.path / graph.file, inside / "model.mlmodel")
    for name in graph.weight_files:
        _linked(bundle.path / name, inside / "weights" / "weight.bin")
    entries = {}
    for what, name, path in _ITEMS:
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{bundle.fingerprint}/{graph.file}/{name}"))
        entries[key.upper()] = {
            "author": "com.apple.CoreML",
            "description": what,
            "name": name,
            "path": path,
        }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": next(iter(entries)),
    }
    (folder / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
