"""How wrong a batch is, with the classes' shares taken into account in one of several ways."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FOCUS = 2.0
"""Exponent of the focal loss (Lin et al. 2017)."""
POWER = {"weighted": 0.5, "balanced": 1.0, "focal": 0.5}


class Loss:
    """The loss over the labelled frames of a batch, on the shares of the classes among the training labels.

    Parameters
    ----------
    kind : plain; weighted, balanced (class weights, the share to the power of -1/2 or -1); focal (weighted, and a frame
        that is said right counts little); adjusted (the logarithm of the share is added to the logits while training:
        Menon et al. 2021, arXiv 2007.07314).
    label : (R,) the training labels, -1 unknown.
    """

    def __init__(self, kind: str, label: NDArray[np.int16], classes: int, smoothing: float, device: str) -> None:
        self.kind, self.smoothing = kind, smoothing
        count = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
        share = np.where(count > 0, count, np.nan) / max(count.sum(), 1)
        offset = np.nan_to_num(np.log(share), nan=-20.0) if kind == "adjusted" else np.zeros(classes)
        self.offset = torch.from_numpy(offset).float().to(device)
        self.weight = class_weights(label, classes, POWER.get(kind, 0.0)).to(device)

    def __call__(self, logits: Tensor, label: Tensor, second: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the loss; 0 where nothing is labelled.

        Parameters
        ----------
        second : of mixed windows, the labels of the other window, and the share of the first one, ``(B,)``.
        """
        if second is None:
            return self._mean(logits, label, None)
        other, share = second
        share = share[:, None].expand(label.shape)
        return self._mean(logits, label, share) + self._mean(logits, other, 1 - share)

    def _mean(self, logits: Tensor, label: Tensor, share: Tensor | None) -> Tensor:
        known = label >= 0
        if not known.any():
            return logits.sum() * 0
        said, truth = logits[known] + self.offset, label[known]
        loss = F.cross_entropy(said, truth, self.weight, label_smoothing=self.smoothing, reduction="none")
        if self.kind == "focal":
            loss = loss * (1 - said.softmax(-1).gather(1, truth[:, None])[:, 0]) ** FOCUS
        if share is not None:
            loss = loss * share[known]
        return loss.sum() / self.weight[truth].sum().clamp_min(1e-12)


def class_weights(label: NDArray[np.int16], classes: int, power: float = 0.5) -> Tensor:
    """Return ``(C,)`` weights, the class's share to the power of ``-power``; 0 for a class that is not there.

    Notes
    -----
    Their mean over the labels is 1.
    """
    count = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
    weight = np.where(count > 0, np.maximum(count, 1) ** -power, 0)
    return torch.from_numpy(weight / max((weight * count).sum() / max(count.sum(), 1), 1e-12)).float()
