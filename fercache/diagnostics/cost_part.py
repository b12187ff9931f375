"""What extraction will cost: bytes by the store's own layout, time by a measured rate or a stated assumption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from fercache import rates_part
from fercache.config import ExtractConfig
from fercache.data.frame_table import FrameClock
from fercache.errors import InputError
from fercache.faces import augmentation
from fercache.store.layout import CLOCK, Grid


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What stage one will take.

    Attributes
    ----------
    clips, frames : that are counted; `unknown` clips state no length and are in no figure.
    bytes_a_frame, bytes : of the taps and the clock; the padding of each clip's last chunk is in `bytes`. None where
        the CNN's outputs are not known without opening it.
    seconds : None where no rate is known; `basis` says where it comes from, or why there is none.
    """

    faces: str
    clips: int
    frames: int
    unknown: int
    bytes_a_frame: int | None
    bytes: int | None
    seconds: float | None
    basis: str


def estimate(clocks: Sequence[FrameClock], faces: str, config: ExtractConfig, cache: Path, rate: float) -> Cost:
    """Return the cost of extracting these trials with the settings of `config`.

    Parameters
    ----------
    rate : frames a second to assume, 0 to use what was measured here.
    """
    lengths = [clock.stored for clock in clocks if clock.stored]
    shapes = _shapes(config)
    row = None if shapes is None else 2 * sum(map(prod, shapes)) + 8 * len(CLOCK)
    total = None if shapes is None else sum(_bytes(frames, shapes) for frames in lengths)
    seconds, basis = _time(sum(lengths), faces, config, cache, rate)
    return Cost(faces=faces, clips=len(lengths), frames=sum(lengths), unknown=len(clocks) - len(lengths),
                bytes_a_frame=row, bytes=total, seconds=seconds, basis=basis)


def _shapes(config: ExtractConfig) -> list[tuple[int, ...]] | None:
    """Return the shapes of what is stored of a frame, taps and views; None for a model with taps of its own."""
    from fercache.backbones.taps import tap_shapes  # torch: seconds that the rest of a check does not need

    try:
        return list(augmentation.stored(tap_shapes(config.taps), config.views).values())
    except InputError:
        if config.weights.startswith("onnx:"):
            return None
        raise


def _bytes(frames: int, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the bytes of one clip's chunks."""
    grids = [*(Grid((frames, *shape), "float16") for shape in shapes), Grid((frames, len(CLOCK)), "float64")]
    return sum(grid.count * grid.chunk_bytes for grid in grids)


def _time(frames: int, faces: str, config: ExtractConfig, cache: Path, rate: float) -> tuple[float | None, str]:
    if rate > 0:
        return frames / rate, f"assuming {rate:g} frames/s (--rate)"
    measured = rates_part.latest(cache, faces, config.weights, config.views) if faces else None
    if measured is None:
        return None, ("no rate was measured in this cache yet: the first `fercache extract` of "
                      f"{rates_part.FEWEST_FRAMES} frames or more does, or assume one with --rate")
    return frames / measured.per_second, (
        f"at {measured.per_second:.1f} frames/s, measured here over {measured.frames:,} frames ({measured.faces}, "
        f"{measured.backbone}, {measured.precision}, {measured.device}, {measured.threads} threads)")
