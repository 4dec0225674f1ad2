import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from reference_values import Reference, student, teacher
from torch import nn

from synq.config.calibration import Calibration
from synq.config.finetune import Finetune
from synq.errors import ConfigError, DivergenceError, ModelError
from synq.finetuning import objective, training
from synq.finetuning.average import Average
from synq.finetuning.batches import Images
from synq.finetuning.objective import Objective
from synq.finetuning.rates import optimizer_for
from synq.finetuning.training import Epochs, Progress, finetune
from synq.models.features import feature_blocks
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize, weight_quantizers
from synq.quantization.quantizers import Recipe
from synq.runtime import process
from synq.runtime.process import generator_for
from synq.runtime.team import Team

REFERENCE = Reference("step")
WIDTHS = (3, 4, 8)
# W8A8 losses are tiny differences of nearly equal networks.
LOSS_TOLERANCE = {3: 1e-4, 4: 1e-4, 8: 2e-2}
SHAPE = (3, 32, 32)
RELEASED = Finetune(feature_weight=1000.0, cam_weight=50.0, ce_weight=0.5, perturbation=0.01)


def step(bits, settings, labels=None):
    """Losses and the student after one backward of the reference batch."""
    network = student(REFERENCE, bits)
    labels = REFERENCE["labels"] if labels is None else labels
    with Objective(teacher(), network, settings, SHAPE) as whole:
        terms = whole.backward(REFERENCE["images"], labels)
    return terms, float(terms["total"]), network


@pytest.fixture
def reference_signs(monkeypatch):
    """The image gradient's signs as the reference has them.

    Where a gradient is nearly zero its sign is the luck of the rounding, which differs between
    versions of torch; the losses at x' can be compared to the digit at the same x' alone.
    """

    def use(bits):
        sign = REFERENCE[f"w{bits}a{bits}/image_grad_sign"].float()
        monkeypatch.setattr(objective, "perturbed_images", lambda x, _, epsilon: x + epsilon * sign)

    return use


@pytest.mark.parametrize("bits", WIDTHS)
def test_losses_of_a_step_are_those_of_the_reference(bits, reference_signs):
    reference_signs(bits)
    key = f"w{bits}a{bits}"
    terms, total, _ = step(bits, RELEASED)
    close = {"rel": LOSS_TOLERANCE[bits]}
    masked = float((REFERENCE[f"{key}/easy_mask"] == 0).sum()) * math.log(10) / 16
    assert 0 < float(REFERENCE[f"{key}/easy_mask"].sum()) < 16
    number = lambda name: REFERENCE.number(f"{key}/{name}")  # noqa: E731
    assert float(terms["distillation"]) == pytest.approx(number("loss_kl"), **close)
    assert float(terms["cross_entropy"]) / 0.5 == pytest.approx(number("loss_ce") - masked, **close)
    assert float(terms["features"]) == pytest.approx(number("loss_fa"), **close)
    assert float(terms["cam"]) / 50 == pytest.approx(number("loss_cam"), **close)
    perturbed = (
        number("loss_kl_perturbed")
        + 0.5 * (number("loss_ce_perturbed") - masked)
        + number("loss_fa_perturbed")
    )
    assert float(terms["perturbed"]) == pytest.approx(perturbed, **close)
    assert total == pytest.approx(number("loss_total") - masked, **close)


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradient_of_every_parameter_is_that_of_the_reference(bits, reference_signs):
    reference_signs(bits)
    _, _, network = step(bits, RELEASED)
    ours = torch.stack([parameter.grad.norm() for parameter in network.parameters()])
    theirs = REFERENCE[f"w{bits}a{bits}/param_grad_l2"]
    assert len(ours) == len(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-3 if bits < 8 else 2e-2, atol=0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_image_gradient_is_that_of_the_reference(bits, monkeypatch):
    key = f"w{bits}a{bits}"
    taken = []
    grad = torch.autograd.grad

    def spy(outputs, inputs, **options):
        result = grad(outputs, inputs, **options)
        if torch.is_tensor(inputs) and inputs.shape == REFERENCE["images"].shape:
            taken.append(result[0])
        return result

    monkeypatch.setattr(torch.autograd, "grad", spy)
    step(bits, RELEASED)
    (gradient,) = taken
    signs = (gradient.sign() == REFERENCE[f"{key}/image_grad_sign"]).float().mean()
    assert float(signs) > {3: 0.9999, 4: 0.999, 8: 0.9}[bits]
    norms = gradient.flatten(1).norm(dim=1)
    relative = {3: 1e-3, 4: 1e-2, 8: 0.2}[bits]
    torch.testing.assert_close(norms, REFERENCE[f"{key}/image_grad_l2"], rtol=relative, atol=1e-4)


@pytest.mark.parametrize("bits", WIDTHS)
def test_logits_and_difficulty_are_those_of_the_reference(bits):
    from synq.models.judgement import difficulty

    key = f"w{bits}a{bits}"
    with torch.no_grad():
        full, low = teacher()(REFERENCE["images"]), student(REFERENCE, bits)(REFERENCE["images"])
    torch.testing.assert_close(full, REFERENCE[f"{key}/teacher_logits"], rtol=1e-5, atol=1e-5)
    close = (low - REFERENCE[f"{key}/student_logits"]).abs() < (1e-4 if bits < 8 else 2e-2)
    assert float(close.float().mean()) > 0.98
    ours = difficulty(full, REFERENCE["labels"])
    torch.testing.assert_close(ours, REFERENCE[f"{key}/difficulty"], rtol=1e-5, atol=1e-6)


def test_a_step_costs_ten_forwards_and_leaves_no_hook():
    forwards = {"teacher": 0, "student": 0}

    def count(name, *_):
        forwards[name] += 1

    full, low = copy.deepcopy(teacher()), student(REFERENCE, 4)
    with Objective(full, low, RELEASED, SHAPE) as objective:
        for name, model in (("teacher", full), ("student", low)):
            model.register_forward_hook(partial(count, name))
        hooks = sum(len(module._forward_hooks) for module in full.modules())
        for _ in range(3):
            objective.backward(REFERENCE["images"], REFERENCE["labels"])
        assert sum(len(module._forward_hooks) for module in full.modules()) == hooks
    assert forwards == {"teacher": 6, "student": 6}
    assert sum(len(module._forward_hooks) for module in full.modules()) == 1
    assert not any(parameter.grad is not None for parameter in full.parameters())


SWITCHES = [
    {"cam": "off"},
    {"cam": "gradcam++"},
    {"cam_class": "label"},
    {"cam_class": "teacher"},
    {"cam_weight": 500.0},
    {"feature_weight": 0.0},
    {"perturbation": 0.0},
    {"perturbation": 0.05},
    {"perturbation_weight": 0.1},
    {"perturbed_features": False},
    {"hard_labels": "all"},
    {"hard_labels": "none"},
    {"difficulty_threshold": 0.05},
    {"temperature": 4.0},
    {"distillation_weight": 1.0},
    {"ce_weight": 5.0},
    {"block_weight": 1.0},
    {"activation_weight": 1.0},
]


@pytest.mark.parametrize("change", SWITCHES, ids=str)
def test_every_switch_of_the_objective_acts_on_the_gradient(change):
    base = {"feature_weight": 1000.0, "perturbation": 0.01}
    _, _, one = step(3, Finetune(**base))
    _, _, other = step(3, Finetune(**{**base, **change}))
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    changed = [not torch.equal(a.grad, b.grad) for a, b in pairs]
    assert any(changed)


def test_masks_order_the_cross_entropy():
    entropy = {
        which: float(step(3, Finetune(hard_labels=which))[0]["cross_entropy"])
        for which in ("none", "easy", "all")
    }
    assert entropy["none"] == 0 < entropy["easy"] < entropy["all"]


def test_maps_without_a_perturbation_are_the_same_maps():
    """The graph of the teacher's map then begins at the map; its value must not change."""
    with_image, _, _ = step(3, Finetune(perturbation=0.01))
    without, _, _ = step(3, Finetune())
    torch.testing.assert_close(with_image["cam"], without["cam"], rtol=1e-5, atol=0)


def test_where_every_activation_is_kept_there_is_nothing_to_match():
    network = quantize(copy.deepcopy(teacher()), Recipe(3, 32), SHAPE)
    with pytest.raises(ConfigError, match="every activation is kept in full precision"):
        Objective(teacher(), network, Finetune(activation_weight=1.0), SHAPE)


def test_a_model_without_residual_branches_refuses_feature_alignment():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(ModelError, match="feature_weight: 0"):
        feature_blocks(plain, (3, 8, 8))


class Shards:
    """The reference batch, twice, in the place of a shard set."""

    labels = REFERENCE["labels"].repeat(2)
    image_shape = SHAPE

    def images(self, indices):
        return REFERENCE["images"].repeat(2, 1, 1, 1)[indices]


def fine_tuned(settings, epochs_done=0, network=None, state=None):
    network = network or student(REFERENCE, 3)
    images = Images(Shards(), settings, torch.device("cpu"))
    states = [
        (reached, copy.deepcopy(network.state_dict()))
        for reached in finetune(
            teacher(), network, images, settings, 5, state or Progress(epochs_done)
        )
    ]
    return states, network


SHORT = Finetune(epochs=2, batch_size=8, learning_rate=1e-6, holdout=0.5)


def test_fine_tuning_lowers_the_held_out_loss():
    states, _ = fine_tuned(SHORT)
    held_out = [entry["held_out"] for entry in states[-1][0].history]
    assert len(held_out) == 3
    assert held_out[-1] < 0.8 * held_out[0]


def test_fine_tuning_twice_gives_the_same_bits():
    (_, first), (_, second) = fine_tuned(SHORT), fine_tuned(SHORT)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def learned():
    """The reference network with learned steps, calibrated on the reference images."""
    recipe = Recipe(3, 3, weights="learned", activations="learned")
    network = quantize(copy.deepcopy(teacher()), recipe).eval()
    calibrate(network, [REFERENCE["images"]], Calibration())
    return network


ADAM = replace(
    SHORT,
    optimizer="adam",
    schedule="cosine",
    learning_rate=1e-4,
    passes=2,
    block_weight=1.0,
    cam="off",
)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (SHORT, lambda: student(REFERENCE, 3)),
        (ADAM, learned),
        (replace(ADAM, average=0.9), learned),
    ],
    ids=["sgd", "adam", "averaged"],
)
def test_a_resumed_run_is_the_uninterrupted_one(settings, make):
    states, whole = fine_tuned(settings, network=make())
    reached, weights = states[1]
    network = make()
    network.load_state_dict(weights)
    resumed, _ = fine_tuned(settings, network=network, state=reached)
    assert [entry["epoch"] for entry in resumed[-1][0].history] == [0, 1, 2]
    for one, other in zip(whole.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"lowpass": "off"},
        {"lowpass": "before"},
        {"lowpass_sigma": 1.5},
        {"crop_min": 1.0},
        {"flip": 0.0},
        {"lr_milestones": (0,)},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"passes": 2},
        {"optimizer": "adam"},
        {"schedule": "cosine"},
        {"rates": "grid"},
        {"rates": "squared"},
        {"jitter": 0.2},
        {"average": 0.9},
    ],
    ids=str,
)
def test_every_switch_of_the_training_acts_on_the_student(change):
    short = replace(SHORT, epochs=1)
    _, one = fine_tuned(short)
    _, other = fine_tuned(replace(short, **change))
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_learned_scales_are_trained_at_their_own_rate_and_without_decay():
    before = {name: p.detach().clone() for name, p in learned().named_parameters()}
    scales = [name for name in before if name.endswith("log_scale")]
    assert len(scales) == 22 + 19
    rates = [1e-9, 1e-2]
    moved = []
    for rate in rates:
        settings = replace(ADAM, epochs=1, scale_learning_rate=rate, weight_decay=0.0)
        _, network = fine_tuned(settings, network=learned())
        after = dict(network.named_parameters())
        moved.append(max(float((after[n].detach() - before[n]).abs().max()) for n in scales))
    assert moved[0] < 1e-7
    assert moved[1] > 1e-3
    network = learned()
    groups = optimizer_for(network, replace(ADAM, weight_decay=0.3), network).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_gradients_of_weights_are_scaled_where_that_is_asked_for():
    settings = replace(ADAM, epochs=1)
    scaled = replace(settings, gradient_scaling=0.5)
    networks = {}
    for name, own in (("plain", settings), ("scaled", scaled), ("again", scaled)):
        _, networks[name] = fine_tuned(own, network=learned())
    states = {name: network.state_dict() for name, network in networks.items()}
    assert states["plain"].keys() == states["scaled"].keys()
    assert all(torch.equal(states["again"][key], value) for key, value in states["scaled"].items())
    assert any(not torch.equal(states["plain"][key], v) for key, v in states["scaled"].items())
    # The student of a training without it that follows has none.
    _, after = fine_tuned(settings, network=networks["scaled"])
    grids = [layer.weight_quantizer for layer in weight_quantizers(after).values()]
    assert [grid.scaling for grid in grids] == [0.0] * len(grids)
    with pytest.raises(ConfigError, match=r"gradient_scaling.*weights: learned"):
        fine_tuned(scaled)


def test_a_cosine_ends_at_nothing():
    network = learned()
    images = Images(Shards(), ADAM, torch.device("cpu"))
    seen = []
    with Objective(teacher(), network, ADAM, SHAPE) as objective:
        epochs = Epochs(objective, optimizer_for(network, ADAM, network), images, 0)
        for epoch in (1, 2):
            epochs.run(epoch, None)
            seen.append(epochs.optimizer.param_groups[0]["lr"])
    # The last of four steps of each epoch: 3/8 and 7/8 of the way.
    wanted = [ADAM.learning_rate * (1 + math.cos(math.pi * share)) / 2 for share in (3 / 8, 7 / 8)]
    assert seen == pytest.approx(wanted)


def test_an_average_keeps_its_share_at_each_step():
    parameter = nn.Parameter(torch.tensor([1.0, -1.0]))
    average = Average({"p": parameter}, 0.3)
    mean, seen = [1.0, -1.0], [1.0, -1.0]
    for step in range(1, 6):
        parameter.data += step
        average.follow()
        seen = [value + step for value in seen]
        kept = min(0.3, (1 + step) / (10 + step))
        mean = [kept * old + (1 - kept) * new for old, new in zip(mean, seen, strict=True)]
    assert average.values["p"].tolist() == pytest.approx(mean)
    average.show()
    assert parameter.tolist() == pytest.approx(mean)
    average.hide()
    assert parameter.tolist() == seen


def test_averages_are_what_an_epoch_gives_and_not_what_is_trained_on():
    settings = replace(ADAM, average=0.9, passes=1)
    averaged, shown = fine_tuned(settings, network=learned())
    plain, _ = fine_tuned(replace(settings, average=0.0), network=learned())
    losses = [
        [s.history[-1]["distillation"] for s, _ in states[1:]] for states in (averaged, plain)
    ]
    assert losses[0] == losses[1]
    kept = averaged[1][0].optimizer["output.weight/trained"]
    assert torch.equal(kept, plain[1][1]["output.weight"])
    assert not torch.equal(kept, averaged[1][1]["output.weight"])
    assert torch.equal(shown.output.weight.detach(), averaged[-1][1]["output.weight"])


def test_divergence_says_what_to_lower():
    settings = Finetune(epochs=3, batch_size=8, learning_rate=1e6)
    with pytest.raises(DivergenceError, match=r"lower finetune\.learning_rate"):
        fine_tuned(settings)


def diverging(monkeypatch, times, epoch=2):
    """In ``epoch`` of each of so many first trainings the loss is not finite."""
    plain, left = training.Epochs.run, [times]

    def run(self, number, part):
        record, within = plain(self, number, part)
        if number == epoch and left[0]:
            left[0] -= 1
            raise DivergenceError("lower finetune.learning_rate")
        return record, within

    monkeypatch.setattr(training.Epochs, "run", run)


@pytest.mark.parametrize(
    ("settings", "make", "times"),
    [
        (SHORT, lambda: student(REFERENCE, 3), 2),
        (ADAM, learned, 1),
        (replace(ADAM, average=0.9), learned, 1),
    ],
    ids=["SGD twice", "Adam", "averaged"],
)
def test_a_training_that_diverges_begins_anew_at_a_tenth(monkeypatch, settings, make, times):
    slow = replace(
        settings,
        learning_rate=training.RESTART_FACTOR**times * settings.learning_rate,
        scale_learning_rate=training.RESTART_FACTOR**times * settings.scale_learning_rate,
    )
    wanted, gentle = fine_tuned(slow, network=make())
    diverging(monkeypatch, times)
    states, network = fine_tuned(settings, network=make())
    assert [state.epoch for state, _ in states] == [0, 1] * times + [0, 1, 2]
    assert [state.restarts for state, _ in states[-3:]] == [times] * 3
    assert states[0][0].restarts == 0
    assert states[-1][0].history[1:] == wanted[-1][0].history[1:]
    for one, other in zip(gentle.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_training_that_diverges_begins_anew_from_what_it_is_given(monkeypatch):
    ((_, calibrated), (state, _)), network = fine_tuned(replace(SHORT, epochs=1))
    images = Images(Shards(), SHORT, torch.device("cpu"))
    words = (teacher(), network, images, SHORT, 5, state)
    diverging(monkeypatch, 2)
    with pytest.raises(DivergenceError):
        list(finetune(*words))
    *_, last = finetune(*words, calibrated=lambda: calibrated)
    assert (last.epoch, last.restarts) == (2, 1)


def test_a_held_out_loss_that_is_not_finite_is_a_divergence(monkeypatch):
    losses = iter([1.0, math.inf, math.nan, math.inf])
    monkeypatch.setattr(training, "held_out_loss", lambda *_: next(losses))
    with pytest.raises(DivergenceError, match="held-out images is not finite after epoch 1"):
        fine_tuned(SHORT)


@pytest.mark.parametrize(
    ("settings", "stop_after"),
    [(SHORT, 1), (SHORT, 3), (replace(SHORT, average=0.9), 3)],
    ids=["first", "second", "averaged"],
)
def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_student(settings, stop_after):
    """Steps are those of both epochs, two each."""
    _, whole = fine_tuned(settings)
    network = student(REFERENCE, 3)
    images = Images(Shards(), settings, torch.device("cpu"))
    calls = iter(range(1, 100))

    def stopped():
        return next(calls) >= (stop_after + 1) // 2

    parts = list(finetune(teacher(), network, images, settings, 5, Progress(), stopped=stopped))
    reached = parts[-1]
    assert reached.part is not None
    assert (reached.epoch, reached.part.steps) == (stop_after // 2, 1)
    resumed, _ = fine_tuned(settings, network=network, state=reached)
    histories = [state.history for state, _ in (fine_tuned(settings)[0][-1], resumed[-1])]
    assert histories[0] == histories[1]
    for one, other in zip(whole.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_bfloat16_is_near_float32_and_leaves_the_parameters_in_it(monkeypatch):
    monkeypatch.setattr(process, "has_bfloat16", lambda device: True)  # emulated where it is not
    _, total, one = step(4, RELEASED)
    near, other_total, other = step(4, replace(RELEASED, precision="bfloat16"))
    assert other_total == pytest.approx(total, rel=0.2)
    assert total != other_total
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
    assert all(term.dtype == torch.float32 for term in near.values())
    ours = torch.cat([parameter.grad.flatten() for parameter in one.parameters()])
    theirs = torch.cat([parameter.grad.flatten() for parameter in other.parameters()])
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.9


def test_batches_are_read_in_order_and_shared_without_a_change():
    settings = replace(SHORT, holdout=0.0)
    images = Images(Shards(), settings, torch.device("cpu"))
    rows = [torch.tensor([3, 1, 2]), torch.tensor([7]), torch.tensor([0, 5])]
    whole = list(images.batches(rows, generator_for(1)))
    shares = [list(images.batches(rows, generator_for(1), Team(rank, 2))) for rank in (0, 1)]
    for both, (pixels, labels), chosen in zip(zip(*shares, strict=True), whole, rows, strict=True):
        assert torch.equal(labels, Shards.labels[chosen])
        assert torch.equal(torch.cat([part for _, part in both]), labels)
        together = torch.cat([part for part, _ in both])
        torch.testing.assert_close(together, pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 5])
def test_the_gradient_of_a_batch_is_the_mean_of_its_parts(parts):
    """What several processes rely on; quantization is per tensor, but its ranges are constants."""

    def gradient(count):
        network, total = student(REFERENCE, 3), 0
        with Objective(teacher(), network, RELEASED, SHAPE) as whole:
            for rows in torch.arange(16).chunk(count):
                network.zero_grad(set_to_none=True)
                whole.backward(REFERENCE["images"][rows], REFERENCE["labels"][rows])
                own = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
                total = total + own * (len(rows) / 16)
        return total

    one, other = gradient(1), gradient(parts)
    assert float((one - other).norm()) < 1e-4 * float(one.norm())
