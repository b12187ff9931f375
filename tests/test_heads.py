"""Heads: shapes, masks, positions in seconds, registration, and that each one learns a learnable task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from fercache.backbones import facenet
from fercache.backbones.taps import TapSlice, row_layout
from fercache.errors import InputError
from fercache.heads.base import build_head
from fercache.heads.frame import FinetuneTail
from fercache.heads.registry import HEADS
from fercache.heads.temporal import positions
from fercache.training.data import FrameDataset
from fercache.training.fit import FitTask, Loss, class_weights, fit
from fercache.training.inference import make_sampler, predict_head

SHAPES = {"block8": (12,), "repeat_1-3x3": (4, 3, 3)}
LAYOUT = row_layout(SHAPES, tuple(SHAPES), "test")
SIZE = LAYOUT[-1].stop
DEFAULTS = {name: spec.settings for name, spec in HEADS.items()}
SMALL = {name: replace(settings, width=32, epochs=8, lr=3e-3, dropout=.1, batch=16 if settings.window_s == 0 else 4,
                       window_s=min(settings.window_s, 1.0))
         for name, settings in DEFAULTS.items()}
OURS = ("frame", "gru", "transformer")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, as in training; with more, small nets on a busy machine mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features(trials: int = 8, frames: int = 90, noise: float = 1.0, seed: int = 0) -> FrameDataset:
    """Return clips whose class lasts 30 frames and shifts noisy features; every tenth frame has no face."""
    rng = np.random.default_rng(seed)
    rows = trials * frames
    label = np.repeat(rng.integers(0, 3, rows // 30), 30).astype(np.int16)
    valid = np.arange(rows) % 10 != 3
    centre = np.random.default_rng(99).normal(size=(3, SIZE))
    x = ((centre[label] + noise * rng.normal(size=(rows, SIZE))) * valid[:, None]).astype(np.float16)
    return FrameDataset(layout=LAYOUT, x=x, offsets=np.arange(0, rows + 1, frames), valid=valid, label=label,
                    index=np.tile(np.arange(1, frames + 1, dtype=np.int32), trials),
                    time_s=np.tile(np.arange(frames) / 30, trials))


def task(head: str, **changed: object) -> FitTask:
    default = FitTask(head=head, settings=SMALL[head], classes=3, train=(0, 1, 2, 3, 4), val_trials=(5,), seed=0,
                      device="cpu")
    return replace(default, **changed)  # type: ignore[arg-type]


def random_windows(windows: int = 2, frames: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(windows, frames, SIZE)
    return x, torch.rand(windows, frames) > .3, torch.arange(frames).expand(windows, frames) / 30


@pytest.mark.parametrize("name", HEADS)
def test_shapes(name: str) -> None:
    head = build_head(name, LAYOUT, 5, SMALL[name]).eval()
    assert head(*random_windows()).shape == (2, 20, 5)
    assert head.classes == 5


@pytest.mark.parametrize("name", HEADS)
def test_frames_without_a_face_change_nothing(name: str) -> None:
    head = build_head(name, LAYOUT, 3, SMALL[name]).eval()
    x, seen, time_s = random_windows()
    other = torch.where(seen[..., None], x, torch.full_like(x, 7))
    assert torch.equal(head(x, seen, time_s)[seen], head(other, seen, time_s)[seen])
    assert torch.isfinite(head(x, torch.zeros_like(seen), time_s)).all(), "a window without any face"


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_temporal_heads_use_neighbours_and_the_frame_head_does_not(name: str) -> None:
    x, seen, time_s = random_windows()
    changed = x.clone()
    changed[:, 10] += 3
    seen[:, 10] = True
    for head, expected in ((build_head(name, LAYOUT, 3, SMALL[name]), True),
                           (build_head("frame", LAYOUT, 3, SMALL["frame"]), False)):
        with torch.inference_mode():
            moved = (head.eval()(x, seen, time_s) - head(changed, seen, time_s)).abs().sum(-1)
        assert bool(moved[:, :10].any()) == expected


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_on_oof_logits_a_temporal_head_starts_as_a_moving_average(name: str) -> None:
    """Before the first step it predicts, up to its bias, the mean of four box averages over frames with a face."""
    torch.manual_seed(0)
    time_s, seen = torch.arange(50)[None] * .1, torch.rand(1, 50) < .7
    log_probs = torch.randn(1, 50, 3).log_softmax(-1) * seen[..., None]
    layout = (TapSlice(tap="oof_logits", start=0, stop=4, shape=(4,)),)
    head = build_head(name, layout, 3, replace(DEFAULTS[name], temporal_input=True)).eval()
    head.standardise.fit(torch.tensor([-1.0, -2.0, -1.5, .2]), torch.tensor([.8, 1.5, 1.1, .3]))
    with torch.inference_mode():
        actual = head(torch.cat([log_probs, torch.rand(1, 50, 1)], -1), seen, time_s) - head.out[-1].bias
    for row in (0, 20, 49):
        in_reach = [[j for j in range(50) if abs(j - row) <= round(10 * half_s) and seen[0, j]]
                    for half_s in (.2, .5, 1.0, 2.0)]
        expected = sum(log_probs[0, rows].mean(0) if rows else torch.zeros(3) for rows in in_reach) / 4
        torch.testing.assert_close(actual[0, row], expected, atol=1e-4, rtol=1e-4)


def test_positions_are_seconds() -> None:
    steps = positions(torch.tensor([[0.0, 1.0, 2.0]]), 16)
    half_steps = positions(torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0]]), 16)
    assert torch.equal(steps[0, 1], half_steps[0, 2]) and torch.equal(steps[0, 2], half_steps[0, 4])


def test_an_unknown_head_is_an_error() -> None:
    with pytest.raises(InputError, match="no head"):
        build_head("lstm", LAYOUT, 3, DEFAULTS["gru"])


@pytest.mark.parametrize("name", [*OURS, "paper-gru"])
def test_learns_a_learnable_task(name: str) -> None:
    dataset = features()
    fitted = fit(task(name), dataset)
    log_probs = predict_head(fitted.head, SMALL[name], dataset, [6, 7], "cpu")
    y_true = dataset.label[dataset.offsets[6]:]
    correct = np.concatenate([log_probs[6], log_probs[7]]).argmax(1) == y_true
    assert correct.mean() > .9, correct.mean()
    assert fitted.validation_f1 > .6, "the validation clip lacks a class, whose F1 counts as 0"


@pytest.mark.parametrize("name", OURS)
def test_the_same_seed_gives_the_same_head(name: str) -> None:
    short = replace(SMALL[name], epochs=2)
    one, two, other = (fit(task(name, settings=short, seed=s), features()).head.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", OURS)
def test_validation_and_held_out_trials_do_not_affect_training(name: str) -> None:
    """Without validation trials, labels and features of other trials do not change the weights."""
    dataset, other = features(), features()
    other.label[other.offsets[5]:] = 0
    other.x[other.offsets[5]:] = 9
    short = replace(SMALL[name], epochs=2)
    one, two = (fit(task(name, val_trials=(), settings=short), f).head.state_dict() for f in (dataset, other))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("name", OURS)
def test_every_frame_gets_a_prediction(name: str) -> None:
    dataset = features(trials=3, frames=70)
    dataset.valid[:70] = False
    head = build_head(name, LAYOUT, 3, SMALL[name])
    predicted = predict_head(head, SMALL[name], dataset, [0, 2], "cpu")
    assert set(predicted) == {0, 2} and all(v.shape == (70, 3) and np.isfinite(v).all() for v in predicted.values())
    assert np.allclose(np.exp(predicted[2]).sum(1), 1, atol=.2)


def test_windows_are_in_seconds() -> None:
    assert make_sampler(features(), [0], replace(DEFAULTS["gru"], window_s=2, step_s=0)).window == 60
    assert make_sampler(features(), [0], DEFAULTS["frame"]).window == 1


def test_class_weights() -> None:
    weight = class_weights(np.array([0] * 9 + [1] + [-1] * 5, np.int16), 3)
    assert weight[2] == 0 and weight[1] / weight[0] == pytest.approx(3)
    assert (weight[0] * 9 + weight[1]) / 10 == pytest.approx(1)


def test_fine_tuned_blocks_are_the_backbones_own_and_keep_their_statistics() -> None:
    """They compute what the library's net computes; training changes their kernels, never their BatchNorm."""
    torch.manual_seed(0)
    net = facenet.InceptionResnetV1().eval()
    layout = row_layout({"mixed_7a-map": (1792, 3, 3), "block8": (12,)}, ("mixed_7a-map", "block8"), "test")
    settings = replace(SMALL["frame"], finetune_tap="mixed_7a-map")
    head = build_head("frame", layout, 3, settings)
    tail = next(m for m in head.modules() if isinstance(m, FinetuneTail))
    tail.load({name: value.numpy() for name, value in net.state_dict().items()})
    maps = torch.rand(2, 1792, 3, 3)
    with torch.inference_mode():
        assert torch.allclose(tail.blocks(maps), net.block8(net.repeat_3(maps)), atol=1e-5)
    head.train()
    before = {name: value.clone() for name, value in tail.state_dict().items()}
    x = torch.cat([maps.reshape(2, 1, -1), torch.randn(2, 1, 12)], -1)
    head(x, torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1)).sum().backward()
    torch.optim.SGD(head.parameters(), 1e-3).step()
    moved = {name for name, value in tail.state_dict().items() if not torch.equal(value, before[name])}
    assert any("conv" in name for name in moved) and not any("running" in name for name in moved)
    with pytest.raises(InputError, match="cannot be fine-tuned"):
        build_head("frame", LAYOUT, 3, replace(settings, finetune_tap="repeat_1-3x3"))


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_a_clip_level_head_predicts_one_distribution(name: str) -> None:
    x, seen, time_s = random_windows()
    head = build_head(name, LAYOUT, 3, replace(SMALL[name], clip_level=True)).eval()
    logits = head(x, seen, time_s)
    assert torch.allclose(logits, logits[:, :1].expand_as(logits))
    other = torch.where(seen[..., None], x, torch.full_like(x, 7))
    assert torch.allclose(logits, head(other, seen, time_s), atol=1e-5)


def test_losses_weight_classes_and_frames_as_documented() -> None:
    label = np.array([0] * 9 + [1], np.int16)
    logits, target = torch.zeros(1, 2, 2), torch.tensor([[0, 1]])
    plain, balanced = (Loss(kind, label, 2, 0.0, "cpu") for kind in ("plain", "balanced"))
    assert plain(logits, target) == pytest.approx(np.log(2))
    assert balanced.weight[1] / balanced.weight[0] == pytest.approx(9)
    adjusted = Loss("adjusted", label, 2, 0.0, "cpu")
    assert adjusted(logits, target[:, :1].repeat(1, 2)) == pytest.approx(-np.log(.9), abs=1e-5)
    focal = Loss("focal", label, 2, 0.0, "cpu")
    sure, unsure = torch.tensor([[[9., 0.]]]), torch.tensor([[[.1, 0.]]])
    weighted = Loss("weighted", label, 2, 0.0, "cpu")
    ratio = (focal(x, target[:, :1]) / weighted(x, target[:, :1]) for x in (sure, unsure))
    assert next(ratio) < 1e-6 < next(ratio)
    unknown = torch.full((1, 2), -1)
    assert all(loss(logits, unknown) == 0 for loss in (plain, balanced, adjusted, focal))
    mixed = plain(torch.tensor([[[3., 0.]]]), torch.tensor([[0]]), (torch.tensor([[1]]), torch.tensor([.75])))
    assert mixed == pytest.approx(.75 * np.log(1 + np.exp(-3)) + .25 * (3 + np.log(1 + np.exp(-3))), abs=1e-5)


def test_registered_rules_match_the_nets() -> None:
    """Every head whose prediction depends on later frames is registered as such, and no other."""
    for name in HEADS:
        head = build_head(name, LAYOUT, 3, replace(SMALL[name], temporal_input=False)).eval()
        x, seen, time_s = random_windows()
        later = x.clone()
        later[:, 11:] += 3
        with torch.inference_mode():
            changed = not torch.allclose(head(x, seen, time_s)[:, :10], head(later, seen, time_s)[:, :10], atol=1e-6)
        assert changed == HEADS[name].lookahead, name
