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

from leukocls.data.augment import ORDER_STREAM, Augmentation, generator
from leukocls.data.datamodule import CellDataModule, Cells
from leukocls.data.index import Index
from leukocls.data.splits import Split
from leukocls.errors import LeukoclsError

TRAIN, PRELIM, SIZE = 22, 11, 24
PAPER = Augmentation(0.5, 0.5, 180, 0.2)
FEEDING = {"batch_size": 4, "eval_batch_size": 4, "residence": "mmap", "workers": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Images of noise as a memory map: nearly every change of pixels changes a hash."""
    path = tmp_path_factory.mktemp("store") / "images.npy"
    shape = (TRAIN + PRELIM, SIZE, SIZE, 3)
    np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return np.load(path, mmap_mode="r")


def feed(store, rank=0, ranks=1, train=range(TRAIN), seed=3, **feeding):
    """A data module and the little of a Trainer that it looks at."""
    label = np.arange(len(store)) % 2
    index = Index(Path(), "tcia", pd.DataFrame({"label": label}), (), None, None)
    rows = {"train": np.array(train), "prelim": np.arange(TRAIN, TRAIN + PRELIM)}
    split = Split("challenge", rows, "prelim")
    module = CellDataModule(index, store, split, PAPER, seed=seed, **(FEEDING | feeding))
    module.trainer = SimpleNamespace(
        training=True, current_epoch=0, global_rank=rank, world_size=ranks
    )
    return module


def epochs(module, count=2):
    """The augmented training batches of each epoch, as Lightning asks for them."""
    loader = module.train_dataloader()
    for epoch in range(count):
        module.trainer.current_epoch = epoch
        loader.sampler.set_epoch(epoch)
        yield [module.on_after_batch_transfer(batch, 0) for batch in loader]


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
    ],
)
def test_values_that_cannot_be_are_refused_by_name(store, name, value):
    with pytest.raises(LeukoclsError, match=rf"data\.{name}={value}: .*choose"):
        feed(store, **{name: value})


def test_a_pickled_memory_map_is_its_file_name(store):
    cells = Cells(store, np.arange(len(store)))
    stream = io.BytesIO()
    pickle.dump(cells, stream)
    assert len(stream.getvalue()) < store.nbytes / 20
    copy = pickle.loads(stream.getvalue())
    assert isinstance(copy.images, np.memmap)
    picked = np.array([5, 1])
    for name, tensor in copy[picked].items():
        assert torch.equal(tensor, cells[picked][name])


def test_pickled_images_without_a_file_travel_along(store):
    copy = pickle.loads(pickle.dumps(Cells(np.array(store), np.arange(len(store)))))
    assert np.array_equal(copy.images, store)
