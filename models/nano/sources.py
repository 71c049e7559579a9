"""Downloads source archives from the package index that pip is set to, without building anything.

`pip download` asks a source archive for its metadata, which runs its build: minutes and compilers
for OpenCV, of which we want the sample photographs. Takes NAME==VERSION; gives the .tar.gz, checked
against the index's sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urldefrag, urljoin

_PIP_CONFIG = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]


def index_url() -> str:
    found = os.environ.get("PIP_INDEX_URL")
    if not found:
        found = subprocess.run(_PIP_CONFIG, capture_output=True, text=True).stdout.strip()
    return (found or "https://pypi.org/simple").rstrip("/")


def fetch(wanted: str, out: Path) -> Path:
    """The archive of `NAME==VERSION` in `out`; one that is there is left alone."""
    name, version = wanted.split("==")
    page = f"{index_url()}/{re.sub('[-_.]+', '-', name).lower()}/"
    with urllib.request.urlopen(page) as answer:
        links = re.findall(r'href="([^"]+)"', answer.read().decode())
    ending = re.compile(rf"{re.sub('[-_.]+', '[-_.]', name)}-{re.escape(version)}\.tar\.gz", re.I)
    for link in links:
        url, fragment = urldefrag(urljoin(page, link))
        file: Path = out / url.rsplit("/", 1)[-1]
        if not ending.fullmatch(file.name):
            continue
        if not file.exists():
            with urllib.request.urlopen(url) as answer:
                data = answer.read()
            if fragment != f"sha256={hashlib.sha256(data).hexdigest()}":
                raise SystemExit(f"{url} is not what its index promised: {fragment}")
            file.write_bytes(data)
        return file
    raise SystemExit(f"{page} has no source archive of {wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="+", metavar="NAME==VERSION")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(json.dumps([fetch(each, args.out).name for each in args.packages]))


if __name__ == "__main__":
    main()
