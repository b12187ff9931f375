"""A finished run on simulated heads: a store, a book, a real stack run, predictions and metrics, in one folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from books import head_record, simulate

from fercache import run_log
from fercache.config import StackConfig
from fercache.oof import Provenance
from fercache.stacking import stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS

ODD = ("<script>alert(1)</script>", "quo\"te's & <b>bold</b>", "Ünïcödé 表情, $x$ `y` |z|")
STORE = "simulated-0123456789ab.zarr"


def finish(home: Path, *, groups: int = 12, validation: int = 3, frames: int = 90) -> Path:
    """Return the path of the predictions of a run made in `home`, whose cache is ``home/cache``."""
    book = simulate(groups=groups, validation=validation, frames=frames)
    names = (*ODD, *book.trials[len(ODD):])
    book = replace(book, trials=names, provenance=Provenance(store=STORE, heads=tuple(
        head_record(head, int(fold)) for head in book.heads for fold in np.unique(book.fold[book.fold >= 0]))))
    cache = home / "cache"
    book.save(cache / "logits" / book.dataset / f"{book.fingerprint[:12]}.h5")
    result = stack.run_stack(book, StackConfig(threads=1, bootstrap=100), cache)
    result.save(home / "preds.csv")
    store = EmbeddingStore.create(cache / "features" / book.dataset / STORE,
                                  {"backbone": "casia-webface", "taps": ["x"], "faces": "mtcnn"}, {"x": (2,)})
    for i, name in enumerate(names):
        rows = book.rows(i)
        put(store, name, book.time_s[rows], book.valid[rows])
    run_log.record_run(cache, book.dataset, "extract", STORE, 50.0, frames=len(book.label))
    run_log.record_run(cache, book.dataset, "extract", STORE, 0.5, frames=0)
    run_log.record_run(cache, book.dataset, "extract", "another.zarr", 7.0, frames=9)
    return home / "preds.csv"


def put(store: EmbeddingStore, name: str, time_s: np.ndarray, valid: np.ndarray,
        box: tuple[float, ...] = (8, 8, 40, 40)) -> None:
    """Commit a clip whose face is always in `box`."""
    made = {"device": "cpu", "machine": "x", "versions": {"torch": "2"}}
    boxes = np.where(valid[:, None], np.array(box, float), np.nan)
    clock = np.column_stack([np.arange(1, len(time_s) + 1), time_s, valid, boxes, np.where(valid, .99, np.nan),
                             np.where(valid, 0, -1)])
    assert clock.shape[1] == len(FRAME_COLUMNS)
    with store.writer(name, source={"size": 1}, provenance=made) as writer:
        assert writer is not None
        writer.set_frame_table(clock.astype(np.float64))
        writer.write(0, {tap: np.zeros((len(time_s), *shape), np.float16) for tap, shape in store.taps.items()})
        writer.commit()
