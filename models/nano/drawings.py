"""SVG drawings of the Iconify sets -> one file of square RGBA sprites.

Takes the folder that holds the installed npm packages (node_modules/@iconify-json), gives an .npz
with `rgba` uint8 [N, E, E, 4], `concept` int16 [N] (-1 for a distractor), `artist` and `icon`
names. Does not know pictures or the model. Twemoji and EmojiOne drawings are never read: they are
kept for tests elsewhere.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import cairosvg
import numpy as np
from concepts import ARTISTS, CONCEPTS, DISTRACTORS
from PIL import Image

EDGE = 224  # sprite edge in pixels; larger stickers are scaled up from it


def rasterise(body: str, width: float, height: float, edge: int = EDGE) -> np.ndarray | None:
    """One icon body -> RGBA uint8 [E, E, 4], tightly cropped and centred; None when nothing is
    drawn.
    """
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
    png = cairosvg.svg2png(bytestring=svg.encode(), output_width=edge, output_height=edge)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = edge / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGBA", (edge, edge))
    square.paste(
        image.resize(size, Image.Resampling.LANCZOS), ((edge - size[0]) // 2, (edge - size[1]) // 2)
    )
    return np.asarray(square)


def collect(packages: Path) -> dict[str, Any]:
    """Every wanted icon of every artist; see the file head for the arrays."""
    rgba, concept, artist, icon = [], [], [], []
    wanted = [(name, i) for i, c in enumerate(CONCEPTS) for name in c.icons]
    wanted += [(name, -1) for name in DISTRACTORS]
    for set_name in ARTISTS:
        data = json.loads((packages / set_name / "icons.json").read_text())
        for name, index in wanted:
            entry = data["icons"].get(name)
            if entry is None:
                continue
            width = entry.get("width", data.get("width", 16))
            height = entry.get("height", data.get("height", 16))
            try:
                sprite = rasterise(entry["body"], width, height)
            except (
                MemoryError
            ) as error:  # cairo calls gradients that it cannot invert "out of memory"
                print(f"skipped {set_name}/{name}: {error}")
                continue
            if sprite is None:
                continue
            rgba.append(sprite)
            concept.append(index)
            artist.append(set_name)
            icon.append(name)
    return {
        "rgba": np.stack(rgba),
        "concept": np.array(concept, np.int16),
        "artist": np.array(artist),
        "icon": np.array(icon),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="node_modules/@iconify-json")
    parser.add_argument("--out", type=Path, required=True, help="sprites.npz to write")
    args = parser.parse_args()
    sprites = collect(args.packages)
    np.savez(args.out, **sprites)
    for i, c in enumerate(CONCEPTS):
        artists = sorted(set(sprites["artist"][sprites["concept"] == i]))
        print(
            f"{c.name}: {int((sprites['concept'] == i).sum())} drawings by {len(artists)} artists"
        )
    others = int((sprites["concept"] < 0).sum())
    print(f"{len(sprites['concept'])} sprites, {others} of them distractors")


if __name__ == "__main__":
    main()
