"""From which cosine two stretches of a clip are one person: the measurement behind `people.JOIN` and `JOIN_NEAR`.

    python tests/bench/bench_people.py --videos FOLDER [--small]

Real clips are detected and linked; each piece is cut into parts of five looks, as stage one looks at one. Nobody
labels anything: two parts of one piece are one person; two pieces that are in one picture at once, and pieces of two
clips, are two (SAME names the clips that show one man).
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from fercache import media
from fercache.backbones import weights
from fercache.backbones.backbone import Backbone
from fercache.config import ExtractConfig
from fercache.extraction.clip import DETECT_BLOCK
from fercache.faces import interpolation
from fercache.faces.crops import crop_face
from fercache.faces.detector import Detector
from fercache.faces.identity import JOIN, JOIN_NEAR, mean_vector
from fercache.faces.tracklets import Tracklets, link_tracklets

ROOT = Path(__file__).resolve().parents[2]
SAME = ("face_noface.mov", "noface_face.mov", "single_face.mp4")
LOOKS, LEAST, MOST_PARTS = 5, 10, 6
SIZES = (0, 40, 48, 64, 10_000)
ASKED = (.3, .35, JOIN_NEAR, .45, .5, .55, .6, .65, JOIN, .75)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Five looks at a face: the man of SAME or the clip, its piece, the mean side in pixels, the vector."""

    clip: str
    piece: int
    size: float
    vector: np.ndarray


def linked(path: Path) -> Tracklets:
    """Return the pieces of a clip."""
    detector, cuts, found = Detector(), interpolation.ShotBoundaryDetector(), []
    frames = (frame.image for frame in media.open_source(path, "video").frames())
    while block := list(islice(frames, DETECT_BLOCK)):
        for row, image in enumerate(block, len(found)):
            cuts.see(row, image)
        found += interpolation.interpolate_faces(block, detector.detect, ExtractConfig().detect_every)
    return link_tracklets(found, cuts.rows)


def parts_of(path: Path, pieces: Tracklets, net: Backbone) -> list[Part]:
    """Return the parts of each piece of at least LEAST faces."""
    chosen = {}
    for number in np.flatnonzero(pieces.sizes() >= LEAST):
        mine = np.flatnonzero(pieces.tracklet == number)
        many = min(MOST_PARTS, len(mine) // LOOKS)
        spread = mine[np.linspace(0, len(mine) - 1, many * LOOKS).round().astype(int)]
        chosen |= {(int(number), i): part for i, part in enumerate(np.array_split(spread, many))}
    rows = sorted({int(pieces.frame[i]) for part in chosen.values() for i in part})
    images = {f.index - 1: f.image for f in media.open_source(path, "video").pick(rows)} if rows else {}
    made = []
    for (number, _), part in chosen.items():
        crops = [crop_face(images[int(pieces.frame[i])], pieces.faces[i]) for i in part]
        sides = np.sqrt((pieces.faces[part, 2:4] - pieces.faces[part, :2]).prod(1))
        made.append(Part(clip=SAME[0] if path.name in SAME else path.name, piece=number, size=float(sides.mean()),
                         vector=mean_vector(net.embed32(np.stack(crops))["embedding"])))
    return made


def pairs(clips: list[tuple[Tracklets, list[Part]]]) -> np.ndarray:
    """Return (K, 3) of pairs of parts whose truth is known: cosine, smaller size, 1 for one person."""
    flat = [(place, part) for place, (_, parts) in enumerate(clips) for part in parts]
    together = [pieces.together() for pieces, _ in clips]
    found = []
    for i, (place, one) in enumerate(flat):
        for other_place, other in flat[:i]:
            same = place == other_place and one.piece == other.piece
            apart = one.clip != other.clip or (place == other_place and together[place][one.piece, other.piece])
            if same or apart:
                found.append((one.vector @ other.vector, min(one.size, other.size), same))
    return np.array(found, float)


def table(known: np.ndarray) -> None:
    """Print percentiles, and what each threshold would miss and mistake, by the size of the smaller face."""
    print("smaller face      pairs of one person: number, percentiles 0 1 5 50 | of two: number, 50 95 99 100")
    for low, high in [*pairwise(SIZES), (SIZES[1], SIZES[-1])]:
        rows = known[(known[:, 1] >= low) & (known[:, 1] < high)]
        one, two = rows[rows[:, 2] == 1, 0], rows[rows[:, 2] == 0, 0]
        if len(one) and len(two):
            print(f"{low:5} to {high:6} px {len(one):6}  {np.percentile(one, [0, 1, 5, 50]).round(3)} | {len(two):6}  "
                  f"{np.percentile(two, [50, 95, 99, 100]).round(3)}")
            print("   missed / mistaken at " + ", ".join(
                f"{asked:g}: {(one < asked).mean():.3f}/{(two >= asked).mean():.4f}" for asked in ASKED))


def main() -> None:
    """Print the table over all clips; `--small` takes the three smallest files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="a folder of clips")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if not args.videos:  # `make bench` runs every file without flags
        print("nothing measured: give a folder of clips with --videos")
        return
    logging.disable(logging.WARNING)
    net = Backbone.load(weights.ensure_weights("casia-webface", ROOT / "cache/weights"), ("embedding",))
    paths = sorted(args.videos.iterdir(), key=lambda path: path.stat().st_size)[:3 if args.small else None]
    clips = []
    for path in paths:
        pieces = linked(path)
        clips.append((pieces, parts_of(path, pieces, net)))
        print(f"{path.name}: {pieces.count} pieces, {len(clips[-1][1])} parts", flush=True)
    table(pairs(clips))


if __name__ == "__main__":
    main()
