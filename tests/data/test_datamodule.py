import hashlib
import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from leukocls.common.errors import LeukoclsError
from leukocls.data.augment import Augmentation, mask_boxes
from leukocls.data.datamodule import CellDataModule, Cells
from leukocls.data.index import Index
from leukocls.data.random import ORDER_STREAM, generator
from leukocls.data.rules import PublishedRules
from leukocls.data.splits import Split

TRAIN, PRELIM, SIZE = 22, 11, 24
PAPER = Augmentation(0.5, 0.5, 180, 0.2)
ALL_STEPS = Augmentation(
    dihedral=True, rotation=10, zoom=1.5, warp=0.2, lighting=0.15, holes=5, mixup=0.4,
    affine_p=0.75, lighting_p=0.75, interpolation="bilinear", padding="reflection",
)  # fmt: skip
FEEDING = {"batch_size": 4, "eval_batch_size": 4, "residence": "mmap", "workers": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Images of noise as a memory map: nearly every change of pixels changes a hash."""
    path = tmp_path_factory.mktemp("store") / "images.npy"
    shape = (TRAIN + PRELIM, SIZE, SIZE, 3)
    np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return np.load(path, mmap_mode="r")


def feed(
    store,
    rank=0,
    ranks=1,
    train=range(TRAIN),
    seed=3,
    augment=PAPER,
    every=2,
    boxes=None,
    **feeding,
):
    """A data module and the little of a Trainer that it looks at; one cell of `every` is HEM."""
    label = (np.arange(len(store)) % every > 0).astype(np.int64)
    index = Index(Path(), "tcia", pd.DataFrame({"label": label}), (), None, PublishedRules())
    rows = {"train": np.array(train), "prelim": np.arange(TRAIN, TRAIN + PRELIM)}
    split = Split("challenge", rows, "prelim")
    module = CellDataModule(index, store, split, augment, seed=seed, **(FEEDING | feeding))
    module.boxes = None if boxes is None else torch.from_numpy(boxes)
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=-1, batch_progress=progress))
    module.trainer = SimpleNamespace(
        training=True, current_epoch=0, global_rank=rank, world_size=ranks, fit_loop=loop
    )
    return module


def epochs(module, count=2):
    """The augmented training batches of each epoch, as Lightning asks for them."""
    loader = module.train_dataloader()
    for epoch in range(count):
        module.trainer.current_epoch = epoch
        yield [transferred(module, batch) for batch in loader]


def transferred(module, batch):
    """The batch as Lightning gets it, which counts it then."""
    found = module.on_after_batch_transfer(batch, 0)
    module.trainer.fit_loop.epoch_loop.total_batch_idx += 1
    return found


def same(batches, others):
    """Whether two lists of batches are equal in every name and number."""
    return len(batches) == len(others) and all(
        one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        for one, two in zip(batches, others, strict=True)
    )


def pixels(module, count=2):
    """Hash of what the network would see, by (epoch, row)."""
    return {
        (epoch, int(row)): hashlib.sha256(image.numpy().tobytes()).hexdigest()
        for epoch, batches in enumerate(epochs(module, count))
        for batch in batches
        for row, image in zip(batch["row"], batch["image"], strict=True)
    }


def rows(batches):
    return [batch["row"].tolist() for batch in batches]


def evaluated(module):
    module.trainer.training = False
    return [module.on_after_batch_transfer(b, 0) for b in module.val_dataloader()[0]]


# Training


@pytest.mark.parametrize(
    "feeding",
    [
        {"workers": 2},
        {"residence": "ram"},
        {"residence": "device"},
        {"batch_size": 7},
        {"batch_size": 7, "residence": "device"},
        {"train": range(3, TRAIN, 2)},
        {"sampler": "balanced"},
    ],
    ids=str,
)
def test_pixels_of_a_cell_and_epoch_depend_on_nothing_but_the_seed(store, feeding):
    usual, other = pixels(feed(store)), pixels(feed(store, **feeding))
    # Which cells fall out with the last incomplete batch may differ.
    common = usual.keys() & other.keys()
    assert len(common) >= len(other) - 2 * 2
    assert all(usual[key] == other[key] for key in common)


def test_no_augmentation_repeats_across_cells_epochs_or_seeds(store):
    found = [*pixels(feed(store), 3).values(), *pixels(feed(store, seed=4), 3).values()]
    assert len(set(found)) == len(found) == 2 * 3 * 20


def test_the_order_is_a_permutation_of_the_training_cells_by_seed_and_epoch(store):
    for epoch, batches in enumerate(epochs(feed(store), 3)):
        order = generator(3, epoch, ORDER_STREAM).permutation(np.arange(TRAIN))
        assert np.concatenate(rows(batches)).tolist() == order[:20].tolist()


def test_training_drops_the_last_incomplete_batch_and_another_one_each_epoch(store):
    module = feed(store)
    assert len(module.train_dataloader()) == 5
    seen = [{row for batch in rows(batches) for row in batch} for batches in epochs(module, 12)]
    assert {len(cells) for cells in seen} == {20}
    assert set.union(*seen) == set(range(TRAIN))


def test_two_ranks_train_on_different_cells_in_equally_many_batches(store):
    shards = [next(epochs(feed(store, rank=rank, ranks=2))) for rank in range(2)]
    assert [[len(batch["row"]) for batch in shard] for shard in shards] == [[4, 4], [4, 4]]
    assert len({row for shard in shards for batch in rows(shard) for row in batch}) == 16


def test_lightning_itself_asks_for_another_order_each_epoch(store):
    class Watch(pl.LightningModule):
        automatic_optimization = False
        seen: list[tuple[int, list[int]]]

        def training_step(self, batch, batch_idx):
            self.seen.append((self.trainer.current_epoch, batch["row"].tolist()))

        def configure_optimizers(self):
            return None

    watch, module = Watch(), feed(store)
    watch.seen = []
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, enable_model_summary=False, limit_val_batches=0, **quiet
    )
    trainer.fit(watch, module)
    expected = [
        (epoch, batch)
        for epoch, batches in enumerate(epochs(feed(store)))
        for batch in rows(batches)
    ]
    assert watch.seen == expected


# Oversampling


@pytest.mark.parametrize("every", [2, 4, 5, 11])
def test_a_balanced_epoch_has_as_many_cells_of_either_class(store, every):
    module = feed(store, every=every, sampler="balanced", batch_size=1)
    label = module.index.table["label"].to_numpy()
    majority, minority = (np.flatnonzero(label[:TRAIN] == value) for value in (1, 0))
    whole, rest = divmod(len(majority), len(minority))
    seen = []
    for batches in epochs(module, 4):
        times = np.bincount(np.concatenate(rows(batches)), minlength=TRAIN)
        assert len(batches) == len(module.train_dataloader()) == 2 * len(majority)
        assert (times[majority] == 1).all()
        assert set(times[minority]) <= {whole, whole + 1}
        assert (times[minority] == whole + 1).sum() == rest
        assert all(batch["label"] == label[batch["row"]] for batch in batches)
        seen.append(np.concatenate(rows(batches)).tolist())
    assert len({tuple(order) for order in seen}) == 4
    assert rest == 0 or len({tuple(sorted(order)) for order in seen}) > 1


def test_copies_of_a_cell_differ_and_the_first_is_that_of_the_plain_sampler(store):
    plain = set(pixels(feed(store, every=5, batch_size=1), 1).values())
    balanced = feed(store, every=5, sampler="balanced", batch_size=1)
    found = [
        hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest()
        for batch in next(epochs(balanced))
    ]
    assert len(found) == len(set(found)) == 2 * 17
    assert plain < set(found)


@pytest.mark.parametrize("feeding", [{"residence": "ram"}, {"residence": "device"}])
def test_balanced_mixed_batches_with_boxes_are_the_same_from_anywhere(store, feeding):
    usual = {"every": 5, "sampler": "balanced", "augment": ALL_STEPS, "boxes": whole(store)}
    assert same(next(epochs(feed(store, **usual))), next(epochs(feed(store, **usual, **feeding))))


def test_training_cells_of_one_class_cannot_be_balanced_but_can_be_shuffled(store):
    odd = range(1, TRAIN, 2)
    assert len(feed(store, train=odd).train_dataloader()) == 2
    with pytest.raises(LeukoclsError, match=r"sampler=balanced: .* one class.*; choose"):
        feed(store, train=odd, sampler="balanced")


def test_evaluation_knows_no_balance(store):
    module = feed(store, every=5, sampler="balanced")
    assert np.concatenate(rows(evaluated(module))).tolist() == list(range(TRAIN, TRAIN + PRELIM))


# Boxes


def whole(store):
    """The boxes of images without black pixels, had somebody made each a little smaller."""
    return np.tile(np.float32([-0.9, -0.8, 0.7, 0.6]), (len(store), 1))


@pytest.fixture(scope="module")
def discs():
    """Noisy discs on black, of several places and sizes."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64]
    images = random.integers(1, 256, (TRAIN + PRELIM, 64, 64, 3), dtype=np.uint8)
    for image in images:
        row, column, radius = random.uniform(24, 40), random.uniform(24, 40), random.uniform(8, 20)
        image[(y - row) ** 2 + (x - column) ** 2 > radius**2] = 0
    return images


def test_boxes_are_given_as_they_are_where_nothing_moves(store):
    boxes = whole(store) + np.arange(len(store), dtype=np.float32)[:, None] / 1000
    modules = [feed(store, boxes=boxes, augment=a) for a in (Augmentation(), Augmentation(holes=3))]
    for batches in (*(next(epochs(module)) for module in modules), evaluated(modules[0])):
        for batch in batches:
            assert batch["box"].dtype == torch.float32
            assert np.array_equal(batch["box"], boxes[batch["row"]])
    assert "box" not in next(epochs(feed(store)))[0]


def test_boxes_follow_the_cells_and_not_what_else_is_in_the_pixels(discs):
    plain, misleading = (
        Augmentation(0.5, 0.5, 180, 0.2, padding=padding, **more)
        for padding, more in (("zeros", {}), ("reflection", {"holes": 5, "lighting": 0.2}))
    )
    boxes = np.zeros((len(discs), 4), np.float32)
    seen, hidden = (next(epochs(feed(discs, boxes=boxes, augment=a))) for a in (plain, misleading))
    for one, two in zip(seen, hidden, strict=True):
        # Nearest neighbour and black padding: the pixels themselves tell.
        assert torch.equal(one["box"], mask_boxes((one["image"] > 0).any(1)))
        assert torch.equal(two["box"], one["box"])
        assert not torch.equal(two["box"], mask_boxes((two["image"] > 1e-4).any(1)))


# Mixup


def test_mixup_makes_labels_floats_keeps_boxes_and_leaves_evaluation_alone(discs):
    boxes = np.zeros((len(discs), 4), np.float32)
    plain, mixed = (
        feed(discs, boxes=boxes, augment=Augmentation(rotation=45, mixup=alpha), every=3)
        for alpha in (0, 0.4)
    )
    for step, (one, two) in enumerate(zip(next(epochs(plain)), next(epochs(mixed)), strict=True)):
        image, label = mixed.augmentation.mix(one["image"], one["label"], mixed.seed, step)
        assert torch.equal(two["image"], image)
        assert torch.equal(two["label"], label)
        for name in ("row", "box"):
            assert torch.equal(one[name], two[name])
        assert two["label"].dtype == torch.float32
        assert ((two["label"] - one["label"]).abs() <= 0.5).all()
    assert same(evaluated(plain), evaluated(mixed))
    assert evaluated(mixed)[0]["label"].dtype == torch.int64


def test_a_resumed_fit_mixes_the_same(store, tmp_path):
    class Watch(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(1, 1), []

        def training_step(self, batch, batch_idx):
            self.seen.append(batch)
            return self.layer(batch["image"].mean().reshape(1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(max_epochs, checkpoint=None, accumulate=1):
        watch = Watch()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=max_epochs, accumulate_grad_batches=accumulate,
            limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(watch, feed(store, augment=ALL_STEPS), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        return watch.seen

    straight = fit(3)
    assert same(fit(3, accumulate=2), straight)
    stopped = fit(1)
    resumed = fit(3, tmp_path / "stopped.ckpt")
    assert len(stopped) == 5
    assert same([*stopped, *resumed], straight)
    # Steps are counted from 0.
    module = feed(store, augment=ALL_STEPS)
    assert same([batch for batches in epochs(module, 3) for batch in batches], straight)


# Evaluation


def test_every_evaluated_cell_comes_once_unchanged_and_in_order(store):
    batches = evaluated(feed(store))
    assert [len(batch["row"]) for batch in batches] == [4, 4, 3]
    found = np.concatenate(rows(batches))
    assert found.tolist() == list(range(TRAIN, TRAIN + PRELIM))
    images = torch.cat([batch["image"] for batch in batches])
    assert images.dtype == torch.float32
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), store[found].astype("float32") / 255)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == (found % 2).tolist()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_the_evaluated_cells_without_padding(store, ranks):
    modules = [feed(store, rank=rank, ranks=ranks) for rank in range(ranks)]
    batches = [batch for module in modules for batch in evaluated(module)]
    found = [row for batch in rows(batches) for row in batch]
    assert sorted(found) == list(range(TRAIN, TRAIN + PRELIM))


def test_the_length_of_a_loader_is_that_of_its_batches(store):
    for rank in range(2):
        module = feed(store, rank=rank, ranks=2)
        for loader in (module.train_dataloader(), *module.val_dataloader()):
            assert len(loader) == len(list(loader))


# Refusals, workers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", TRAIN + 1),
        ("eval_batch_size", 0),
        ("workers", -1),
        ("residence", "disk"),
        ("sampler", "oversampled"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(store, name, value):
    with pytest.raises(LeukoclsError, match=rf"(data\.)?{name}={value}: .*choose"):
        feed(store, **{name: value})


def test_a_pickled_memory_map_is_its_file_name(store):
    cells = Cells(store, np.arange(len(store)))
    stream = io.BytesIO()
    pickle.dump(cells, stream)
    assert len(stream.getvalue()) < store.nbytes / 20
    copy = pickle.loads(stream.getvalue())
    assert isinstance(copy.images, np.memmap)
    picked = np.array([5, 1, 3 * len(store) + 2])
    assert copy[picked]["row"].tolist() == [5, 1, 2]
    for name, tensor in copy[picked].items():
        assert torch.equal(tensor, cells[picked][name])


def test_pickled_images_without_a_file_travel_along(store):
    copy = pickle.loads(pickle.dumps(Cells(np.array(store), np.arange(len(store)))))
    assert np.array_equal(copy.images, store)
