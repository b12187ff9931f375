"""The heads' laws: shapes, masks that hide, positions in seconds, and that each learns what can be learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from fercache.backbones import facenet
from fercache.backbones.taps import TapSlice, side_by_side
from fercache.errors import InputError
from fercache.heads import HEADS, build_head, classes_of
from fercache.heads.base import DEFAULTS
from fercache.heads.frame import FinetuneTail
from fercache.heads.temporal import positions
from fercache.training.data import FrameDataset
from fercache.training.fit import FitTask, Loss, class_weights, fit
from fercache.training.inference import predict_head, window_frames

SHAPES = {"block8": (12,), "repeat_1-3x3": (4, 3, 3)}
LAYOUT = side_by_side(SHAPES, tuple(SHAPES), "test")
SIZE = LAYOUT[-1].stop
SMALL = {name: replace(settings, width=32, epochs=8, lr=3e-3, dropout=.1, batch=16 if settings.window_s == 0 else 4,
                       window_s=min(settings.window_s, 1.0))
         for name, settings in DEFAULTS.items()}


OURS = ("frame", "gru", "transformer")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As training runs; with more, small nets on a busy machine mostly wait."""
    many = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(many)


def features(trials: int = 8, frames: int = 90, noise: float = 1.0, seed: int = 0) -> FrameDataset:
    """Clips whose class, held for 30 frames, shifts the features under noise; every tenth frame has no face."""
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
    usual = FitTask(head=head, settings=SMALL[head], classes=3, train=(0, 1, 2, 3, 4), val_trials=(5,), seed=0,
                    device="cpu")
    return replace(usual, **changed)  # type: ignore[arg-type]


def given(windows: int = 2, frames: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(windows, frames, SIZE)
    return x, torch.rand(windows, frames) > .3, torch.arange(frames).expand(windows, frames) / 30


@pytest.mark.parametrize("name", HEADS)
def test_shapes(name: str) -> None:
    head = build_head(name, LAYOUT, 5, SMALL[name]).eval()
    assert head(*given()).shape == (2, 20, 5)
    assert classes_of(head) == 5


@pytest.mark.parametrize("name", HEADS)
def test_what_was_not_seen_changes_nothing(name: str) -> None:
    head = build_head(name, LAYOUT, 3, SMALL[name]).eval()
    x, seen, time_s = given()
    other = torch.where(seen[..., None], x, torch.full_like(x, 7))
    assert torch.equal(head(x, seen, time_s)[seen], head(other, seen, time_s)[seen])
    assert torch.isfinite(head(x, torch.zeros_like(seen), time_s)).all(), "a window without any face"


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_temporal_heads_look_around_and_the_frame_head_does_not(name: str) -> None:
    x, seen, time_s = given()
    changed = x.clone()
    changed[:, 10] += 3
    seen[:, 10] = True
    for head, expected in ((build_head(name, LAYOUT, 3, SMALL[name]), True),
                           (build_head("frame", LAYOUT, 3, SMALL["frame"]),
                                                                         False)):
        with torch.inference_mode():
            moved = (head.eval()(x, seen, time_s) - head(changed, seen, time_s)).abs().sum(-1)
        assert bool(moved[:, :10].any()) == expected


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_over_evidence_a_temporal_head_begins_as_a_moving_mean(name: str) -> None:
    """Before the first step it says, up to its bias, the mean of four box means over the frames with a face."""
    torch.manual_seed(0)
    time_s, seen = torch.arange(50)[None] * .1, torch.rand(1, 50) < .7
    said = torch.randn(1, 50, 3).log_softmax(-1) * seen[..., None]
    layout = (TapSlice(tap="evidence", start=0, stop=4, shape=(4,)),)
    head = build_head(name, layout, 3, replace(DEFAULTS[name], temporal_input=True)).eval()
    head.standardise.fit(torch.tensor([-1.0, -2.0, -1.5, .2]), torch.tensor([.8, 1.5, 1.1, .3]))
    with torch.inference_mode():
        found = head(torch.cat([said, torch.rand(1, 50, 1)], -1), seen, time_s) - head.out[-1].bias
    for row in (0, 20, 49):
        near = [[j for j in range(50) if abs(j - row) <= round(10 * half_s) and seen[0, j]]
                for half_s in (.2, .5, 1.0, 2.0)]
        want = sum(said[0, rows].mean(0) if rows else torch.zeros(3) for rows in near) / 4
        torch.testing.assert_close(found[0, row], want, atol=1e-4, rtol=1e-4)


def test_positions_are_seconds() -> None:
    at = positions(torch.tensor([[0.0, 1.0, 2.0]]), 16)
    again = positions(torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0]]), 16)
    assert torch.equal(at[0, 1], again[0, 2]) and torch.equal(at[0, 2], again[0, 4])


def test_an_unknown_head_is_told() -> None:
    with pytest.raises(InputError, match="no head"):
        build_head("lstm", LAYOUT, 3, DEFAULTS["gru"])


@pytest.mark.parametrize("name", [*OURS, "paper-gru"])
def test_learns_what_can_be_learnt(name: str) -> None:
    seen = features()
    fitted = fit(task(name), seen)
    said = predict_head(fitted.head, SMALL[name], seen, [6, 7], "cpu")
    truth = seen.label[seen.offsets[6]:]
    hits = np.concatenate([said[6], said[7]]).argmax(1) == truth
    assert hits.mean() > .9, hits.mean()
    assert fitted.validation_f1 > .6, "the watched clip lacks a class, whose F1 counts as 0"


@pytest.mark.parametrize("name", OURS)
def test_the_same_seed_gives_the_same_head(name: str) -> None:
    short = replace(SMALL[name], epochs=2)
    one, two, other = (fit(task(name, settings=short, seed=s), features()).head.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", OURS)
def test_watched_and_held_out_trials_teach_nothing(name: str) -> None:
    """Without watching, labels and features of other trials do not touch what is learnt."""
    seen, other = features(), features()
    other.label[other.offsets[5]:] = 0
    other.x[other.offsets[5]:] = 9
    short = replace(SMALL[name], epochs=2)
    one, two = (fit(task(name, watch=(), settings=short), f).head.state_dict() for f in (seen, other))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("name", OURS)
def test_every_frame_gets_a_prediction(name: str) -> None:
    seen = features(trials=3, frames=70)
    seen.valid[:70] = False
    head = build_head(name, LAYOUT, 3, SMALL[name])
    said = predict_head(head, SMALL[name], seen, [0, 2], "cpu")
    assert set(said) == {0, 2} and all(v.shape == (70, 3) and np.isfinite(v).all() for v in said.values())
    assert np.allclose(np.exp(said[2]).sum(1), 1, atol=.2)


def test_windows_are_in_seconds() -> None:
    assert window_frames(replace(DEFAULTS["gru"], window_s=2), features()) == 60
    assert window_frames(DEFAULTS["frame"], features()) == 1


def test_class_weights() -> None:
    weight = class_weights(np.array([0] * 9 + [1] + [-1] * 5, np.int16), 3)
    assert weight[2] == 0 and weight[1] / weight[0] == pytest.approx(3)
    assert (weight[0] * 9 + weight[1]) / 10 == pytest.approx(1)


def test_a_tail_is_the_backbones_own_blocks_and_keeps_its_statistics() -> None:
    """On a map it gives what the library's net gives; training moves its kernels, never its BatchNorm."""
    torch.manual_seed(0)
    net = facenet.InceptionResnetV1().eval()
    layout = side_by_side({"mixed_7a-map": (1792, 3, 3), "block8": (12,)}, ("mixed_7a-map", "block8"), "test")
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
    with pytest.raises(InputError, match="no tail begins"):
        build_head("frame", LAYOUT, 3, replace(settings, finetune_tap="repeat_1-3x3"))


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_a_clip_level_head_says_one_thing(name: str) -> None:
    x, seen, time_s = given()
    head = build_head(name, LAYOUT, 3, replace(SMALL[name], clip_level=True)).eval()
    said = head(x, seen, time_s)
    assert torch.allclose(said, said[:, :1].expand_as(said))
    other = torch.where(seen[..., None], x, torch.full_like(x, 7))
    assert torch.allclose(said, head(other, seen, time_s), atol=1e-5)


def test_losses_hold_what_they_promise() -> None:
    label = np.array([0] * 9 + [1], np.int16)
    logits, truth = torch.zeros(1, 2, 2), torch.tensor([[0, 1]])
    plain, balanced = (Loss(kind, label, 2, 0.0, "cpu") for kind in ("plain", "balanced"))
    assert plain(logits, truth) == pytest.approx(np.log(2))
    assert balanced.weight[1] / balanced.weight[0] == pytest.approx(9)
    adjusted = Loss("adjusted", label, 2, 0.0, "cpu")
    assert adjusted(logits, truth[:, :1].repeat(1, 2)) == pytest.approx(-np.log(.9), abs=1e-5)
    focal = Loss("focal", label, 2, 0.0, "cpu")
    sure, unsure = torch.tensor([[[9., 0.]]]), torch.tensor([[[.1, 0.]]])
    weighted = Loss("weighted", label, 2, 0.0, "cpu")
    ratio = (focal(said, truth[:, :1]) / weighted(said, truth[:, :1]) for said in (sure, unsure))
    assert next(ratio) < 1e-6 < next(ratio)
    unknown = torch.full((1, 2), -1)
    assert all(loss(logits, unknown) == 0 for loss in (plain, balanced, adjusted, focal))
    mixed = plain(torch.tensor([[[3., 0.]]]), torch.tensor([[0]]), (torch.tensor([[1]]), torch.tensor([.75])))
    assert mixed == pytest.approx(.75 * np.log(1 + np.exp(-3)) + .25 * (3 + np.log(1 + np.exp(-3))), abs=1e-5)
