import json
import os
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from sklearn import metrics as oracle
from torch import nn
from warm import server

from leukocls.data.augment import Augmentation
from leukocls.data.datamodule import CellDataModule
from leukocls.data.index import Index
from leukocls.data.published import subject_counts
from leukocls.data.rules import PublishedRules
from leukocls.data.splits import Split
from leukocls.data.views import image_views
from leukocls.models.logits import to_logit
from leukocls.training.classifier import CellClassifier
from leukocls.training.losses import CellLoss, pos_weight

SIZE = 16
# 13 and 7 cells are odd, and no multiple of the evaluation batch of 4; final's labels are unknown.
PARTS = {"train": range(8), "prelim": range(8, 21), "final": range(21, 28)}
LABEL = np.array([0, 1] * 4 + [0] * 5 + [1] * 8 + [-1] * 7)
OPTIM = {
    "optimizer": {"_target_": "torch.optim.SGD"},
    "schedule": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.1},
    "lr": 1e-3,
    "weight_decay": 0.0,
}


def network(outputs=1):
    """Small, with BatchNorm; always the same weights."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, outputs),
    )


def classifier(net=None, seed=0, view_count=8, scored=("prelim", "final"), **optim):
    return CellClassifier(
        net or network(),
        OPTIM | optim,
        loss=CellLoss(0.4),
        views=view_count,
        seed=seed,
        scored=list(scored),
    )


def data():
    """Cells of noise, sorted by label within prelim; brightness hints at the label."""
    rng = np.random.default_rng(0)
    images = (
        rng.integers(0, 200, (len(LABEL), SIZE, SIZE, 3)) + 25 * (LABEL == 1)[:, None, None, None]
    )
    index = Index(Path(), "tcia", pd.DataFrame({"label": LABEL}), (), None, PublishedRules())
    split = Split("challenge", {p: np.array(rows) for p, rows in PARTS.items()}, "prelim")
    return CellDataModule(
        index, images.astype(np.uint8), split, Augmentation(0.5, 0.5, 180, 0.2),
        seed=0, batch_size=2, eval_batch_size=4, residence="ram", workers=0,
    )  # fmt: skip


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    ours = {"accelerator": "cpu", "inference_mode": False, "use_distributed_sampler": False}
    return pl.Trainer(**quiet, **ours, **options)


# The loss and the logit


def test_pos_weight_is_that_of_the_published_counts_and_of_the_training_rows_alone():
    counts = subject_counts()
    cells = counts[counts["split"] == "train"].groupby("label")["n_images"].sum()
    label = np.repeat([0, 1, 1], [cells["HEM"], cells["ALL"], 50])
    trained_on = label[:-50]
    assert pos_weight("balanced", "shuffle", trained_on) == 3389 / 7272
    # A balanced sampler has weighted them already.
    assert pos_weight("balanced", "balanced", trained_on) == 1


def test_the_logit_of_two_outputs_is_their_difference():
    output = torch.tensor([[1.0, 3.0], [2.0, -1.0]])
    assert to_logit(output).tolist() == [2, -3]
    assert torch.allclose(torch.sigmoid(to_logit(output)), output.softmax(1)[:, 1])
    assert to_logit(output[:, :1]).tolist() == [1, 2]
    net = network(outputs=2).eval()
    images = torch.rand(3, 3, SIZE, SIZE)
    z = net(images)
    assert torch.equal(classifier(net).eval()(images), z[:, 1] - z[:, 0])


# Evaluation


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_cells_logit_is_the_mean_over_its_views_and_view_0_is_the_image(count):
    module = classifier(view_count=count)
    datamodule = data()
    trainer().validate(module, datamodule, verbose=False)
    scores = module.scores["prelim"]
    images = torch.from_numpy(datamodule.store[scores["row"]]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        each = [module.network.eval()(view)[:, 0].numpy() for view in image_views(images, count)]
        plain = module(images).numpy()
    assert scores["views"].shape == (13, count)
    assert scores["views"].dtype == scores["logit"].dtype == np.float32
    np.testing.assert_allclose(scores["views"], np.stack(each, 1), atol=1e-6)
    np.testing.assert_allclose(scores["views"][:, 0], plain, atol=1e-6)
    np.testing.assert_allclose(scores["logit"], scores["views"].mean(1), atol=1e-6)


def assert_as_sklearn(module):
    """The oracle is scikit-learn on the logits that were collected."""
    scores, row = module.scores["prelim"], module.rows["prelim"]
    label, called = LABEL[scores["row"]], scores["logit"] > 0
    tn, fp, fn, tp = oracle.confusion_matrix(label, called).ravel().tolist()
    assert min(tp + fn, tn + fp, tp + fp, tn + fn) > 0, "both classes, both called"
    assert (row["tp"], row["fp"], row["tn"], row["fn"]) == (tp, fp, tn, fn)
    theirs = {
        "weighted_f1": oracle.f1_score(label, called, average="weighted"),
        "accuracy": oracle.accuracy_score(label, called),
        "sensitivity": oracle.recall_score(label, called),
        "specificity": oracle.recall_score(label, called, pos_label=0),
        "weighted_precision": oracle.precision_score(label, called, average="weighted"),
        "weighted_recall": oracle.recall_score(label, called, average="weighted"),
    }
    assert {name: row[name] for name in theirs} == pytest.approx(theirs, rel=1e-12)
    loss = module.loss(torch.tensor(scores["logit"]), torch.tensor(label)).item()
    assert row["loss"] == pytest.approx(loss, rel=1e-5)


def centred(module):
    """`module` with its bias moved so that the collected logits lie on both sides of 0."""
    trainer().validate(module, data(), verbose=False)
    with torch.no_grad():
        module.network[-1].bias -= float(np.median(module.scores["prelim"]["logit"])) + 1e-4
    return module


def test_metrics_over_sorted_labels_and_an_uneven_last_batch_are_sklearns():
    module = centred(classifier())
    for _ in range(2):
        # Twice: nothing of one evaluation may reach the next.
        trainer().validate(module, data(), verbose=False)
        assert module.scores["prelim"]["row"].tolist() == list(PARTS["prelim"])
        assert_as_sklearn(module)


def test_cells_without_a_label_are_scored_and_counted_nowhere():
    module = classifier()
    trainer().validate(module, data(), verbose=False)
    assert module.scores["final"]["row"].tolist() == list(PARTS["final"])
    assert np.isfinite(module.scores["final"]["logit"]).all()
    assert module.rows["final"] == dict.fromkeys(("tp", "fp", "tn", "fn"))


def test_a_logit_between_0_and_1_calls_the_cell_positive():
    class Half(nn.Module):
        def forward(self, images):
            return images.new_full((len(images), 1), 0.3)

    module = classifier(Half())
    trainer().validate(module, data(), verbose=False)
    assert (module.rows["prelim"]["tp"], module.rows["prelim"]["fp"]) == (8, 5)


# Training


class Draws(nn.Module):
    """Keeps the first number that a dropout of each training step would see."""

    def __init__(self):
        super().__init__()
        self.body, self.drawn = network(), []

    def forward(self, images):
        if self.training:
            self.drawn.append(torch.rand(1).item())
        return self.body(images)


def drawn(seed=0, before=0, **options):
    net = Draws()
    torch.manual_seed(before)
    trainer(max_epochs=2, **options).fit(classifier(net, seed=seed), data())
    return net.drawn


def test_what_is_random_in_the_network_depends_on_seed_and_step_alone():
    usual = drawn()
    assert len(set(usual)) == len(usual) == 8
    assert drawn(before=99, limit_val_batches=0) == usual
    assert not set(drawn(seed=1)) & set(usual)


def test_rates_follow_the_recipe_epoch_by_epoch_under_lightning():
    class Watch(pl.Callback):
        def __init__(self):
            self.rates = []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])

    watch = Watch()
    trainer(max_epochs=6, callbacks=[watch]).fit(classifier(lr=1e-2), data())
    factors = [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert watch.rates == pytest.approx([1e-2 * f for f in factors for _ in range(4)])


def test_the_training_loss_of_an_epoch_is_the_mean_of_its_own_cells():
    class Watch(pl.Callback):
        def __init__(self):
            self.steps, self.epochs = [], []

        def on_train_batch_end(self, trainer, module, outputs, *_):
            self.steps.append(outputs["loss"].item())

        def on_train_epoch_end(self, trainer, module):
            self.epochs.append(module.train_loss.compute().item())

    watch = Watch()
    trainer(max_epochs=2, callbacks=[watch]).fit(classifier(lr=1e-1), data())
    assert watch.epochs == pytest.approx([np.mean(watch.steps[:4]), np.mean(watch.steps[4:])])


# Two processes


class Keep(pl.Callback):
    """Each evaluation's scores and metrics, and the cells that were trained on."""

    def __init__(self):
        self.evaluations, self.trained = [], []

    def on_validation_end(self, trainer, module):
        scores = {
            part: {name: array.tolist() for name, array in found.items()}
            for part, found in module.scores.items()
        }
        self.evaluations.append((scores, dict(module.rows)))

    def on_train_batch_end(self, trainer, module, outputs, batch, *_):
        self.trained += batch["row"].tolist()


def validate_and_fit(rank, port, weights, folder):
    """One of two processes, as `torchrun` would start it: evaluate, train an epoch, evaluate."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    torch.set_num_threads(1)
    keep, module = Keep(), classifier()
    module.network.load_state_dict(torch.load(weights, weights_only=True))
    run = trainer(devices=2, strategy="ddp", callbacks=[keep], max_epochs=1)
    run.validate(module, data(), verbose=False)
    run.fit(module, data())
    (folder / f"{rank}.json").write_text(json.dumps((keep.evaluations, keep.trained)))


def test_two_processes_score_every_cell_once_and_agree_with_one(tmp_path):
    module = centred(classifier())
    torch.save(module.network.state_dict(), tmp_path / "weights.pt")
    trainer().validate(module, data(), verbose=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not forked from here: a process whose threads have computed may hang.
    context, arguments = server(), (port, tmp_path / "weights.pt", tmp_path)
    both = [context.Process(target=validate_and_fit, args=(rank, *arguments)) for rank in (0, 1)]
    try:
        for process in both:
            process.start()
        for process in both:
            process.join(90)
        assert [process.exitcode for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    (evaluations, trained), (others, trained_too) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    # The same weights, the same metrics, and each process knows all of them.
    for (scores, rows), (scores_too, rows_too) in zip(evaluations, others, strict=True):
        assert rows == rows_too
        for part in ("prelim", "final"):
            assert sorted(scores[part]["row"]) == list(PARTS[part])
            assert scores[part] == scores_too[part]
    scores, rows = evaluations[0]
    assert rows["prelim"] == pytest.approx(module.rows["prelim"], rel=1e-5)
    order = np.argsort(scores["prelim"]["row"])
    for name in ("views", "logit"):
        np.testing.assert_allclose(
            np.array(scores["prelim"][name])[order], module.scores["prelim"][name], atol=1e-6
        )
    # Training: different cells, and as many on each.
    assert len(trained) == len(trained_too) == 4
    assert len({*trained, *trained_too}) == 8
    assert len(evaluations) == 2
