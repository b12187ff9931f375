"""All heads x folds from one copy of the features: what is trained is kept at once, and what is kept is not redone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from math import isfinite
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from fercache import durable, folds
from fercache.config import TrainConfig
from fercache.cores import resolve_device, use_threads
from fercache.datasets import Dataset, Trial
from fercache.errors import FercacheError
from fercache.heads import DEFAULTS, Head, HeadSettings, build
from fercache.progress import Meter, meter
from fercache.store import Readable
from fercache.train_heads import WATCH_SHARE
from fercache.train_heads.fit import Task, fit, predict
from fercache.windows import Features, preload

log = logging.getLogger(__name__)

FEW_GROUPS_EPOCHS = 0.5
"""Share of the usual epochs that is run where too few groups leave nothing to choose the epoch by."""


class Training:
    """The heads of one data set: folds decided, features in RAM, each head of each fold trained or found.

    Attributes
    ----------
    fold : (N,) int16, the fold that holds each trial out, -1 in none.
    records : what is said of each head in its JSON.
    trained : heads trained by this run; the others were found.
    """

    def __init__(self, dataset: Dataset, trials: Sequence[Trial], store: Readable, config: TrainConfig,
                 folder: Path) -> None:
        self.dataset, self.trials, self.store, self.config, self.folder = dataset, trials, store, config, folder
        self.records: list[dict[str, Any]] = []
        self.trained = 0
        self.device = resolve_device(config.device)
        self.threads = use_threads(config.threads)
        torch.use_deterministic_algorithms(True, warn_only=self.device != "cpu")
        self.features: Features = preload(store, trials, config.taps)
        training = np.array([t.split == "train" for t in trials])
        counts = self.features.counts(len(dataset.classes)) * training[:, None]
        groups = [t.group if t.split == "train" else "" for t in trials]
        self.fold = np.where(training, folds.assign(groups, counts, config.folds, config.seed), -1).astype(np.int16)
        self.k = int(self.fold.max()) + 1
        learnt = {t.group for t, f in zip(trials, self.fold, strict=True) if f >= 0}
        self.epochs_fixed = len(learnt) < folds.MIN_GROUPS_TO_CHOOSE

    def run(self) -> dict[str, NDArray[np.float32]]:
        """Return head -> (R, C) log-probabilities: out of fold where a fold holds the trial, else the folds' mean."""
        self._fit_all()
        return {head: self._head(head) for head in self.config.heads}

    def _fit_all(self) -> None:
        """Train the heads that the folder does not hold: on CPU side by side in processes, one thread each.

        Notes
        -----
        Forked workers share the features, which only the parent has read; one thread each makes the result independent
        of the number of cores, and is two to three times the rate of many threads on the small matrices of a head.
        """
        jobs = [(head, k) for head in self.config.heads for k in range(self.k) if not self._path(head, k).is_file()]
        self.trained = len(jobs)
        if not jobs:
            return
        with meter("train heads", len(jobs), "fits") as bar:
            if self.device != "cpu":
                for head, k in jobs:
                    self._keep(head, k)
                    bar.advance()
                return
            torch.set_num_threads(1)
            self._fit_side_by_side(jobs, bar)
            torch.set_num_threads(self.threads)

    def _fit_side_by_side(self, jobs: list[tuple[str, int]], bar: Meter) -> None:
        """Train the heads in forked processes.

        Raises
        ------
        FercacheError
            A worker was killed, for want of memory most likely; what it had finished stays.
        """
        workers = ProcessPoolExecutor(min(self.threads, len(jobs)), get_context("fork"))
        try:
            waiting = {workers.submit(self._keep, head, k): head for head, k in jobs}
            for done in as_completed(waiting):
                done.result()
                bar.note(waiting[done])
                bar.advance()
        except BrokenProcessPool as error:
            raise FercacheError("a training process was killed", hint="there may be too little memory: choose fewer "
                                "taps or --threads 1, and run again; finished heads are kept") from error
        finally:
            workers.shutdown(cancel_futures=True)

    def _head(self, head: str) -> NDArray[np.float32]:
        said = np.zeros((len(self.features.label), len(self.dataset.classes)), np.float32)
        rest = np.flatnonzero(self.fold < 0).tolist()
        for k in range(self.k):
            fitted = self._fold(head, k)
            for trial, values in predict(fitted, self.settings(head), self.features,
                                         [*np.flatnonzero(self.fold == k).tolist(), *rest], self.device).items():
                rows = slice(int(self.features.offsets[trial]), int(self.features.offsets[trial + 1]))
                said[rows] += values / (self.k if self.fold[trial] < 0 else 1)
        return said

    def settings(self, head: str) -> HeadSettings:
        """Return the head's settings; fewer epochs where none can be chosen."""
        usual = DEFAULTS[head]
        return replace(usual, epochs=max(1, round(usual.epochs * FEW_GROUPS_EPOCHS))) if self.epochs_fixed else usual

    def _path(self, head: str, k: int) -> Path:
        """Return the JSON that says a head is there."""
        return self.folder / f"{head}-fold{k}.json"

    def _fold(self, head: str, k: int) -> Head:
        """Return the head of that fold from the folder."""
        path = self._path(head, k)
        self.records.append(durable.read_json(path))
        net = build(head, self.features.layout, len(self.dataset.classes), self.settings(head))
        net.load_state_dict(load_file(path.with_suffix(".safetensors")))
        return net.to(self.device).eval()

    def task(self, head: str, k: int) -> Task:
        """Return what is trained for a fold: the trials of the other folds, a part of their groups watched."""
        inside = np.flatnonzero((self.fold >= 0) & (self.fold != k)).tolist()
        seed = self.config.seed * 1000 + k
        watch = set() if self.epochs_fixed else folds.inner([self.trials[i].group for i in inside], WATCH_SHARE, seed)
        return Task(head=head, settings=self.settings(head), classes=len(self.dataset.classes), seed=seed,
                    train=tuple(i for i in inside if self.trials[i].group not in watch),
                    watch=tuple(i for i in inside if self.trials[i].group in watch), device=self.device)

    def _keep(self, head: str, k: int) -> None:
        """Train one head; write its weights, then the JSON that makes them count."""
        task, path = self.task(head, k), self._path(head, k)
        fitted = fit(task, self.features)
        with durable.replacing(path.with_suffix(".safetensors")) as temporary:
            save_file({n: v.detach().cpu().contiguous() for n, v in fitted.head.state_dict().items()}, temporary)
        said = {"head": head, "fold": k, "seed": task.seed, "epoch": fitted.epoch,
                "watched_macro_f1": fitted.watched_f1 if isfinite(fitted.watched_f1) else None,
                "classes": list(self.dataset.classes), "settings": asdict(task.settings),
                "taps": [asdict(part) for part in self.features.layout], "frame_s": self.features.frame_s(),
                "trained_on": sorted({self.trials[i].group for i in task.train}),
                "watched": sorted({self.trials[i].group for i in task.watch}),
                "store": self.store.settings, "store_digest": self.store.digest()}
        durable.write_json(path, said)
