import functools
import hashlib
import json
import os
import signal
import struct
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leukocls import synth
from leukocls.common.errors import LeukoclsError
from leukocls.data.index import build_index
from leukocls.data.published import published_counts
from leukocls.synthetic import tree as tree_module
from leukocls.synthetic.render import CYTOPLASM, NUCLEUS, Cell, render_mask
from leukocls.synthetic.spec import SHIFTS
from leukocls.synthetic.tree import SyntheticSpec, draw_cells, render, truth, write_tree

SPEC = SyntheticSpec(
    train_subjects_all=3,
    train_subjects_hem=3,
    prelim_subjects_all=2,
    prelim_subjects_hem=2,
    cells_per_subject=5,
    final_cells=4,
)
MASKED = replace(SPEC, duplicates=7, label_noise=0.2)
# Six thousand cells of three hundred subjects, without pixels; fifteen thousand below.
MANY = SyntheticSpec(
    train_subjects_all=130,
    train_subjects_hem=130,
    prelim_subjects_all=20,
    prelim_subjects_hem=20,
    cells_per_subject=20,
)
EXCHANGEABLE = replace(
    MANY,
    cells_per_subject=50,
    icc_severity=0.0,
    icc_size=0.0,
    sd_nuisance_stain=0.0,
    sd_nuisance_texture=0.0,
    sd_nuisance_focus=0.0,
    sd_field=0.0,
)
NUISANCE = [f"subject_{kind}" for kind in ("stain", "texture", "focus")]
FIELD = [f"field_{kind}" for kind in ("stain", "texture", "focus")]
# What a cell looks like, given who and where it is.
LOOKS = [
    *("size", "width", "height", "aspect", "slant", "offset_x", "offset_y", "roughness", "notch"),
    *("nucleus_fraction", "nucleoli", "chromatin_px", "chromatin_contrast", "drift", "grain"),
    *("focus", "stain_red", "stain_green", "stain_blue", "piece", "piece_angle", "piece_shade"),
    *("cut_depth", "cut_angle", "outside"),
]
KAGGLE = "C-NMC_Leukemia"
PRELIM = f"{KAGGLE}/validation_data/C-NMC_test_prelim_phase_data"


def digests(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "tree", SPEC, workers=1)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "masked", MASKED, masks=True, workers=1)


@functools.cache
def table_of(spec):
    return truth(draw_cells(spec), spec)


def icc(values, label, group):
    """Intra-class correlation within classes by one-way analysis of variance."""
    centred = values - values.groupby(label).transform("mean")
    groups = centred.groupby(group)
    sizes, total = groups.size(), len(centred)
    within = ((centred - groups.transform("mean")) ** 2).sum() / (total - len(sizes))
    free = len(sizes) - label.nunique()
    between = (groups.mean() ** 2 * sizes).sum() / free
    between = (between - within) / ((total - (sizes**2).sum() / total) / free)
    return between / (between + within)


def aside_from_severity(table):
    """Residuals of what a cell looks like on a polynomial of its severity."""
    powers = np.vander(table["severity"] / 3, 8)
    looks = table[LOOKS].to_numpy(float)
    return looks - powers @ np.linalg.lstsq(powers, looks, rcond=None)[0]


def box(image):
    """Width and height of what is not black."""
    inside = image.any(-1)
    return tuple(int(np.ptp(inside.any(axis).nonzero()[0])) + 1 for axis in (0, 1))


def looks(image):
    """What pixels say of the cell, without any model."""
    inside = image.any(-1)
    middle = np.log(image[190:260, 190:260, 1].clip(1).astype(float))
    fine, middling, coarse = (ndimage.gaussian_filter(middle, sigma) for sigma in (1.5, 3, 6))
    return {
        "green": np.log(image[inside].mean(0)[1]),
        "sharpness": np.log((fine - middling).std() / (middling - coarse).std()),
        "grain": np.log(np.abs(np.diff(middle, 2)).mean()),
        "area": np.log(inside.sum()),
    }


def reaches_outside(image):
    inside = image.any(-1)
    return bool(inside.sum() > inside[75:375, 75:375].sum())


@pytest.fixture(scope="module")
def images():
    """Cells and their pixels, drawn as the default spec draws them."""
    cells = draw_cells(replace(SyntheticSpec(), cells_per_subject=2))
    with ThreadPoolExecutor(2) as pool:
        return list(zip(cells, pool.map(render, cells), strict=True))


def test_same_bytes_from_one_and_two_workers(masked, tmp_path):
    again = write_tree(tmp_path / "again", MASKED, masks=True, workers=2)
    assert digests(again) == digests(masked)
    assert os.listdir(tmp_path) == ["again"]


def test_another_seed_is_another_tree(tree):
    other = draw_cells(replace(SPEC, seed=1))
    assert {cell.severity for cell in other}.isdisjoint(c.severity for c in draw_cells(SPEC))


# Bytes of the file and of its header, side in px: what the genuine files have.
@pytest.mark.parametrize(
    ("part", "size", "offset", "side"),
    [
        ("training_data", 608_454, 54, 450),
        ("validation_data", 608_538, 138, 450),
        ("testing_data", 1_080_054, 54, 600),
    ],
)
def test_files_have_the_genuine_format(tree, part, size, offset, side):
    paths = list((tree / KAGGLE / part).rglob("*.bmp"))
    assert paths
    for path in paths:
        data = path.read_bytes()
        stride = -(-3 * side // 4) * 4
        magic, stated, _, start, header = struct.unpack_from("<2sIIII", data)
        shape = struct.unpack_from("<iiHHII", data, 18)
        assert (len(data), magic, stated, start, header) == (size, b"BM", size, offset, offset - 14)
        assert shape == (side, side, 1, 24, 0, stride * side)
        rows = np.frombuffer(data, np.uint8, offset=offset).reshape(side, stride)
        bottom_up_bgr = rows[::-1, : 3 * side].reshape(side, side, 3)[..., ::-1]
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("BMP", "RGB")
            assert np.array_equal(np.asarray(image), bottom_up_bgr)
        assert not rows[:, 3 * side :].any()


def test_the_index_reads_it_as_it_reads_genuine_data(tree):
    index = build_index(tree)
    table = index.table
    assert index.synthetic
    assert index.incomplete() == ""
    assert index.absent == ()
    assert sum(index.counts().values()) == len(table) == 54
    train = table[table["part"] == "train"]
    assert set(zip(train["fold"], train["label"], strict=True)) == {
        (fold, label) for fold in range(3) for label in (0, 1)
    }
    prelim = table[table["part"] == "prelim"]
    assert set(prelim["label"]) == {0, 1}
    assert set(train["subject"]).isdisjoint(prelim["subject"])
    # Genuine subjects end at 78 and H50; their known duplicates are merged by name.
    assert {int(subject.lstrip("H")) > 100 for subject in table["subject"] if subject} == {True}


def test_label_file_agrees_with_the_cells(tree):
    lines = (tree / f"{PRELIM}_labels.csv").read_bytes().decode("ascii").split("\r\n")
    cells = [cell for cell in draw_cells(SPEC) if cell.part == "prelim"]
    rows = [f"{cell.name},{i}.bmp,{cell.label}" for i, cell in enumerate(cells, start=1)]
    assert lines == ["Patient_ID,new_names,labels", *rows, ""]
    with Image.open(tree / PRELIM / "7.bmp") as image:
        assert np.array_equal(np.asarray(image), render(cells[6]))
    subjects = [cell.subject for cell in cells]
    assert sorted(subjects) != subjects


def test_final_cells_are_centred_in_a_larger_black_frame(tree):
    cells = [cell for cell in draw_cells(SPEC) if cell.part == "final"]
    for number, cell in enumerate(cells, start=1):
        folder = tree / KAGGLE / "testing_data" / "C-NMC_test_final_phase_data"
        with Image.open(folder / f"{number}.bmp") as image:
            assert np.array_equal(
                np.asarray(image), np.pad(render(cell), ((75, 75), (75, 75), (0, 0)))
            )


def test_one_cell_on_exact_zero(images):
    for cell, image in images:
        inside = image.any(-1)
        assert image[inside].min() >= 1, cell
        assert ndimage.label(inside)[1] == 1, cell


def test_what_is_attached_leaves_no_crumbs():
    cells = draw_cells(replace(SPEC, p_background=1.0, cells_per_subject=6))
    assert {ndimage.label(render(cell).any(-1))[1] for cell in cells} == {1}


def test_the_box_is_the_one_that_was_drawn(images):
    for cell, image in images:
        assert np.abs(np.subtract(box(image), cell.sides)).max() <= 1, cell
        assert reaches_outside(image) == cell.outside, cell
        assert cell.size == pytest.approx(np.mean(cell.sides), abs=0.5)


# --- the instrument: no pixel is needed


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"size_mean_all": 200.0, "size_mean_hem": 190.0, "size_sd_all": 38.0, "size_sd_hem": 22.0},
    ],
)
def test_sizes_have_the_moments_asked_for(change):
    spec = replace(MANY, icc_size=0.0, **change)
    size = table_of(spec).groupby("true_class")["size"]
    for label, name in ((0, "hem"), (1, "all")):
        # Subject effects give the mean a standard error of .3 px.
        assert size.mean()[label] == pytest.approx(getattr(spec, f"size_mean_{name}"), abs=1.5)
        assert size.std()[label] == pytest.approx(getattr(spec, f"size_sd_{name}"), rel=0.04)


def test_defaults_are_the_genuine_sizes():
    spec = SyntheticSpec()
    assert (spec.size_mean_hem, spec.size_mean_all, spec.p_outside_300) == (184, 221, 0.067)


def test_classes_that_overlap_differ_less_in_size_than_asked():
    gaps = []
    for auroc in (0.5, 0.65, SyntheticSpec().auroc_bayes):
        size = table_of(replace(EXCHANGEABLE, auroc_bayes=auroc)).groupby("true_class")["size"]
        gaps.append(size.mean()[1] - size.mean()[0])
        assert size.mean().mean() == pytest.approx(202.5, abs=1.5)
    assert gaps[0] == pytest.approx(0, abs=2)
    assert gaps[0] < gaps[1] - 5 < gaps[2] - 10
    assert gaps[2] == pytest.approx(37, abs=2)


# With subject effects, d has a standard error of √(4 icc / 300) and more.
@pytest.mark.parametrize(("share", "tolerance"), [(0.0, 0.01), (0.3, 0.04)])
@pytest.mark.parametrize("asked", [0.5, 0.65, 0.8, 0.9, 0.99])
def test_bayes_auroc_is_recovered(asked, share, tolerance):
    table = table_of(replace(MANY, auroc_bayes=asked, icc_severity=share))
    # At .5 the posterior is the prior's.
    score = table["logit_bayes"] if asked > 0.5 else table["severity"]
    assert roc_auc_score(table["true_class"], score) == pytest.approx(asked, abs=tolerance)


def test_logit_bayes_is_calibrated():
    table = table_of(replace(EXCHANGEABLE, auroc_bayes=0.8))
    expected = 1 / (1 + np.exp(-table["logit_bayes"]))
    bins = pd.cut(expected, np.linspace(0, 1, 11))
    counts = table.groupby(bins, observed=True)["true_class"]
    error = np.sqrt(expected.groupby(bins, observed=True).mean().mul(0.25) / counts.size())
    assert ((counts.mean() - expected.groupby(bins, observed=True).mean()).abs() < 0.05).all()
    assert error.max() < 0.02


@pytest.mark.parametrize("asked", [0.65, 0.9])
def test_no_model_of_all_that_is_drawn_beats_the_bayes_logit(asked):
    """Latents and sizes of a cell: an image cannot hold more. Scored on other subjects.

    Subjects are alike here, for a model that can tell them apart learns them instead of the class.
    """
    table = table_of(replace(EXCHANGEABLE, auroc_bayes=asked))
    known = table.select_dtypes("number").drop(columns=["label", "true_class", "logit_bayes"])
    known = known.drop(columns=["fold", "image"])
    subjects = table["subject"].unique()
    trained = table["subject"].isin(subjects[::2]).to_numpy()
    y = table["true_class"].to_numpy()
    bayes = roc_auc_score(y[~trained], table["logit_bayes"][~trained])
    trees = HistGradientBoostingClassifier(random_state=0, max_iter=60)
    linear = make_pipeline(StandardScaler(), LogisticRegression())
    for model in (trees, linear):
        model.fit(known[trained], y[trained])
        found = roc_auc_score(y[~trained], model.decision_function(known[~trained]))
        assert found <= bayes + 0.005
        # It has seen the severity among them, so that the bound is reached, too.
        assert found > bayes - 0.03


@pytest.mark.parametrize(("asked", "tolerance"), [(0.0, 0.01), (0.1, 0.03), (0.4, 0.07)])
def test_icc_of_severity_is_recovered(asked, tolerance):
    table = table_of(replace(MANY, icc_severity=asked))
    found = icc(table["severity"], table["true_class"], table["subject"])
    assert found == pytest.approx(asked, abs=tolerance)
    assert table.groupby("true_class")["severity"].var().mean() == pytest.approx(1, abs=0.1)


def test_subjects_differ_in_size_by_their_severity_and_by_a_share_of_the_rest():
    sizes = {"size_mean_all": 221.0, "size_mean_hem": 188.0, "size_sd_all": 25.0}
    spec = replace(MANY, **sizes, size_sd_hem=25.0, auroc_bayes=0.965, icc_severity=0.5, icc_size=0)

    def found(spec: SyntheticSpec) -> float:
        table = table_of(spec)
        return icc(table["width"] + table["height"], table["true_class"], table["subject"])

    # The share of size variance that is severity's, (33 px / d)² / 25², times its own ICC.
    severity = (33 / spec.separation / 25) ** 2
    assert found(spec) == pytest.approx(severity * 0.5, abs=0.04)
    assert abs(found(replace(spec, icc_severity=0.0))) < 0.01
    own = found(replace(spec, icc_severity=0.0, icc_size=0.4))
    assert own == pytest.approx((1 - severity) * 0.4, abs=0.04)


def test_without_nuisance_cells_are_exchangeable():
    table = table_of(EXCHANGEABLE)
    assert not table[NUISANCE + FIELD].to_numpy().any()
    field = table["subject"] + "_" + table["image"].astype(str)
    for group in (table["subject"], field):
        for name in LOOKS:
            # 300 subjects of 50 cells give a standard error of .002, 5,000 fields of 3 one of .01.
            assert abs(icc(table[name].astype(float), table["true_class"], group)) < 0.03, name


def test_nuisance_has_the_spread_asked_for():
    spec = replace(
        MANY,
        cells_per_subject=50,
        sd_nuisance_stain=0.3,
        sd_nuisance_texture=0.2,
        sd_nuisance_focus=0.1,
        sd_field=0.25,
    )
    table = table_of(spec)
    by_subject = table.groupby("subject")[NUISANCE]
    assert not by_subject.std().to_numpy().any()
    assert by_subject.first().std().to_numpy() == pytest.approx([0.3, 0.2, 0.1], rel=0.15)
    by_field = table.groupby(["subject", "image"])[FIELD]
    assert by_field.first().std().to_numpy() == pytest.approx([0.25] * 3, rel=0.05)
    assert by_field.size().mean() == pytest.approx(3, abs=0.2)
    assert icc(table["stain_green"], table["label"], table["subject"]) > 0.4


def test_nuisance_is_added_to_the_same_cells():
    plain, stained = (table_of(replace(MANY, sd_nuisance_stain=sd)) for sd in (0.0, 0.3))
    other = ["stain_red", "stain_green", "stain_blue", "subject_stain"]
    pd.testing.assert_frame_equal(plain.drop(columns=other), stained.drop(columns=other))
    assert (plain["stain_green"] != stained["stain_green"]).all()


def test_class_acts_through_severity_only():
    table = table_of(replace(EXCHANGEABLE, auroc_bayes=0.8))
    rest = aside_from_severity(table)
    correlation = np.corrcoef(rest.T, table["true_class"])[-1, :-1]
    assert dict(zip(LOOKS, np.abs(correlation) * np.sqrt(len(table)), strict=True)) == (
        pytest.approx(dict.fromkeys(LOOKS, 0.0), abs=4)
    )


def test_severity_shows_in_what_a_haematologist_names():
    table = table_of(EXCHANGEABLE)
    for name in ("size", "nucleus_fraction", "nucleoli", "chromatin_px", "roughness"):
        assert abs(np.corrcoef(table[name], table["severity"])[0, 1]) > 0.2, name


def test_nothing_separates_classes_of_auroc_one_half():
    table = table_of(replace(EXCHANGEABLE, auroc_bayes=0.5))
    # The standard error of an AUROC is .005.
    for name in [*LOOKS, "severity"]:
        assert roc_auc_score(table["true_class"], table[name]) == pytest.approx(0.5, abs=0.02), name
    assert not table["logit_bayes"].any()


@pytest.mark.parametrize("asked", [-0.5, 0.0, 0.8])
def test_class_nuisance_correlation_is_recovered(asked):
    spec = replace(MANY, class_nuisance_correlation=asked)
    subjects = table_of(spec).groupby("subject")[["label", *NUISANCE, "subject_severity"]].first()
    # 300 subjects give a standard error of (1 − ρ²) / √300 < .06.
    found = subjects.corr()["label"]
    assert found["subject_stain"] == pytest.approx(asked, abs=0.15 * (1.1 - asked**2))
    assert found.drop(["label", "subject_stain"]).abs().max() < 0.2
    assert subjects["subject_stain"].std() == pytest.approx(spec.sd_nuisance_stain, rel=0.15)


def test_fold_shift_moves_stain_and_focus_from_part_to_part():
    still, moved = (table_of(replace(MANY, fold_shift=shift)) for shift in (0.0, 1.5))
    part = moved["part"].where(moved["fold"] < 0, "fold_" + moved["fold"].astype(str))
    wanted = 1.5 * part.map(SHIFTS)
    for name, sd in (("stain", MANY.sd_nuisance_stain), ("focus", MANY.sd_nuisance_focus)):
        change = moved[f"subject_{name}"] - still[f"subject_{name}"]
        assert change.to_numpy() == pytest.approx((sd * wanted).to_numpy())
    assert (moved["subject_texture"] == still["subject_texture"]).all()
    assert SHIFTS["prelim"] - np.mean([SHIFTS[f"fold_{k}"] for k in range(3)]) == 1


@pytest.mark.parametrize("asked", [0.0, 0.25, 1.0])
def test_cuts_and_attached_pieces_have_their_share(asked):
    table = table_of(replace(MANY, p_cut=asked, p_background=asked))
    for flag in ("cut", "background"):
        assert table[flag].mean() == pytest.approx(asked, abs=0.015)


@pytest.mark.parametrize("background", [0.0, 0.3])
@pytest.mark.parametrize("asked", [0.0, 0.067, 0.5])
def test_the_share_outside_the_central_square_is_the_one_asked_for(asked, background):
    spec = replace(MANY, p_outside_300=asked, p_background=background)
    cells = draw_cells(spec)
    table = truth(cells, spec)
    too_large = (table["size"] > 298).mean()
    assert table["outside"].mean() == pytest.approx(max(asked, too_large), abs=0.005)
    assert too_large < 0.005
    chosen = [cell for cell in cells if cell.outside][:12] + cells[:12]
    assert [reaches_outside(render(cell)) for cell in chosen] == [c.outside for c in chosen]


def test_cells_larger_than_the_central_square_are_outside_whatever_the_share():
    spec = replace(SPEC, size_mean_all=290.0, p_outside_300=0.0, cells_per_subject=12)
    cells = draw_cells(spec)
    assert [cell.outside for cell in cells] == [cell.size > 298 for cell in cells]
    large = [cell for cell in cells if cell.size > 298]
    assert len(large) > 5
    assert all(reaches_outside(render(cell)) for cell in large)


def test_a_noisy_cell_has_the_other_class_under_a_consistent_name():
    table = table_of(replace(EXCHANGEABLE, label_noise=0.2))
    assert table["noisy"].mean() == pytest.approx(0.2, abs=0.015)
    assert (table["noisy"] == (table["label"] != table["true_class"])).all()
    by_truth = table.groupby(["true_class", "noisy"])["severity"].mean()
    half = replace(EXCHANGEABLE).separation / 2
    assert by_truth.to_numpy() == pytest.approx([-half, -half, half, half], abs=0.1)
    stated = table["name"].str.contains("_all").astype(int)
    assert (stated == table["label"]).all()
    assert (table["subject"].str.startswith("H") == (table["label"] == 0)).all()


def test_full_scale_has_the_published_structure():
    started = time.monotonic()
    spec = SyntheticSpec(scale="full", duplicates=106)
    cells = draw_cells(spec)
    assert time.monotonic() - started < 3
    table = truth(cells, spec)
    part = table["part"].where(table["fold"] < 0, "fold_" + table["fold"].astype(str))
    assert part.value_counts().to_dict() == published_counts()
    with resources.files("leukocls.data").joinpath("cnmc_subject_counts.csv").open() as stream:
        published = pd.read_csv(stream)
    published["part"] = published["split"].where(
        published["fold"].isna(), "fold_" + published["fold"].astype("Int64").astype(str)
    )
    published["label"] = (published["label"] == "ALL").astype(int)
    wanted = published.groupby(["part", "label"])["n_images"].apply(sorted).to_dict()
    sizes = table.assign(part=part).groupby(["part", "label", "subject"]).size()
    found = sizes.groupby(["part", "label"]).apply(sorted).to_dict()
    assert {key: found[key] for key in wanted} == wanted
    assert table["name"].is_unique
    assert table["subject"].str.lstrip("H").astype(int).min() == 101
    assert (table["duplicate_of"] != "").sum() == 106


# --- what is written beside the images


def test_truth_lies_beside_the_manifest_and_joins_the_index(masked):
    table = pd.read_parquet(masked / "truth.parquet")
    index = build_index(masked).table
    pd.testing.assert_frame_equal(table, table_of(MASKED))
    joined = table.set_index("file").loc[index["file"]].reset_index()
    for column in ("cell", "part", "fold", "file"):
        assert joined[column].tolist() == index[column].tolist(), column
    known = (index["part"] != "final").to_numpy()
    for column in ("subject", "label", "image"):
        assert joined[column][known].tolist() == index[column][known].tolist(), column
    assert (joined["name"] == joined["cell"]).equals(joined["part"] == "train")
    assert table["logit_bayes"].to_numpy() == pytest.approx(
        (MASKED.separation * table["severity"]).to_numpy()
    )
    hidden = {"seed", "stream"}
    assert {option.name for option in fields(Cell)} - hidden <= set(table.columns)
    assert not table.isna().any(axis=None)
    assert table["noisy"].any()


def test_planted_duplicates_are_the_only_identical_images(masked):
    manifest = json.loads((masked / "synthetic.json").read_text())
    of_digest = defaultdict(list)
    for path, digest in digests(masked).items():
        if path.endswith(".bmp"):
            of_digest[digest].append(path)
    shared = sorted(sorted(paths) for paths in of_digest.values() if len(paths) > 1)
    assert shared == sorted(sorted(pair) for pair in manifest["duplicates"])
    assert len(shared) == 7
    table = build_index(masked).table.set_index("file")
    for one, other in manifest["duplicates"]:
        a, b = table.loc[one], table.loc[other]
        assert (a["part"], b["part"]) == ("train", "train")
        assert a["fold"] != b["fold"]
        assert a["subject"] != b["subject"]
        assert a["label"] == b["label"]
    plain = json.loads((write_tree(masked, MASKED, masks=True) / "synthetic.json").read_text())
    assert plain["counts"] == build_index(masked).counts()
    rows = pd.read_parquet(masked / "truth.parquet").set_index("name")
    copies = rows[rows["duplicate_of"] != ""]
    sources = rows.loc[copies["duplicate_of"]]
    assert copies["severity"].tolist() == sources["severity"].tolist()


def test_manifest_counts_the_cells_of_each_subject(masked):
    manifest = json.loads((masked / "synthetic.json").read_text())
    table = build_index(masked).table
    for part in ("fold_0", "fold_1", "fold_2", "prelim"):
        chosen = table["part"] == part
        if part != "prelim":
            chosen = (table["part"] == "train") & (table["fold"] == int(part[-1]))
        assert manifest["subjects"][part] == table[chosen]["subject"].value_counts().to_dict()
    assert sorted(manifest["subjects"]) == ["fold_0", "fold_1", "fold_2", "prelim"]
    assert (manifest["mark"], manifest["generator"], manifest["masks"]) == ("SYNTHETIC", 3, True)
    assert manifest["spec"] == asdict(MASKED)


@pytest.mark.parametrize(
    ("change", "best"),
    [({}, 0.94), ({"class_nuisance_correlation": 0.5}, None), ({"label_noise": 0.1}, None)],
)
def test_best_possible_auroc_is_that_of_the_manifest_where_nothing_else_tells_the_class(
    tmp_path, change, best
):
    spec = replace(SPEC, cells_per_subject=1, **change)
    assert build_index(write_tree(tmp_path / "tree", spec)).rules.best_auroc() == best


def test_masks_cover_cell_and_nucleus(masked):
    table = pd.read_parquet(masked / "truth.parquet")
    for row in table.itertuples():
        with Image.open((masked / "masks" / row.file).with_suffix(".png")) as picture:
            assert (picture.format, picture.mode) == ("PNG", "L")
            mask = np.asarray(picture)
        with Image.open(masked / row.file) as picture:
            inside = np.asarray(picture).any(-1)
        assert mask.shape == inside.shape
        assert set(np.unique(mask)) == {0, CYTOPLASM, NUCLEUS}
        # What is attached is no part of the cell.
        assert inside[mask > 0].all()
        assert row.background or (mask > 0).sum() == inside.sum()
        if row.background and row.piece > 0.1:
            assert inside.sum() > (mask > 0).sum()
    assert len(list((masked / "masks").rglob("*.png"))) == len(table)


def test_nucleus_by_cell_is_that_of_the_mask():
    spec = replace(SyntheticSpec(), p_cut=0.0)
    whole = sorted(draw_cells(spec)[:90], key=lambda cell: cell.nucleus_fraction)
    ratio = [np.sqrt((m == NUCLEUS).sum() / (m > 0).sum()) for m in map(render_mask, whole)]
    stated = [cell.nucleus_fraction for cell in whole]
    assert np.corrcoef(ratio, stated)[0, 1] > 0.8
    assert ratio == pytest.approx(stated, abs=0.04)


def test_masks_that_are_missing_are_another_tree(tree, masked, tmp_path):
    with pytest.raises(LeukoclsError, match="another spec"):
        write_tree(tree, SPEC, masks=True)
    root = write_tree(tmp_path / "tree", SPEC, masks=True)
    next((root / "masks").rglob("7.png")).unlink()
    with pytest.raises(LeukoclsError, match="53 masks of 54"):
        write_tree(root, SPEC, masks=True)


# --- pixels


@pytest.mark.slow
def test_pixels_of_exchangeable_cells_tell_no_subject_and_no_class():
    spec = replace(
        EXCHANGEABLE,
        auroc_bayes=0.5,
        train_subjects_all=6,
        train_subjects_hem=6,
        prelim_subjects_all=1,
        prelim_subjects_hem=1,
        cells_per_subject=16,
    )
    table = table_of(spec)
    seen = pd.DataFrame([looks(render(cell)) for cell in draw_cells(spec)])
    for name in seen:
        # Standard errors: .02 over 18 subjects of 13 cells, and .04.
        assert abs(icc(seen[name], table["true_class"], table["subject"])) < 0.08, name
        assert roc_auc_score(table["true_class"], seen[name]) == pytest.approx(0.5, abs=0.12), name
    different = replace(spec, sd_nuisance_stain=0.3, sd_nuisance_texture=0.6, sd_nuisance_focus=0.6)
    seen = pd.DataFrame([looks(render(cell)) for cell in draw_cells(different)])
    for name, least in {"green": 0.5, "grain": 0.5, "sharpness": 0.3}.items():
        assert icc(seen[name], table["true_class"], table["subject"]) > least, name


def test_effects_reach_the_pixels(images):
    cell = images[0][0]
    blurred = [looks(render(replace(cell, focus=focus)))["sharpness"] for focus in (0.5, 1.5, 3)]
    assert blurred[0] > blurred[1] > blurred[2]
    grain = [looks(render(replace(cell, grain=grain)))["grain"] for grain in (0.01, 0.05)]
    assert grain[0] < grain[1] - 0.5
    green = [looks(render(replace(cell, stain_green=gain)))["green"] for gain in (-0.3, 0.3)]
    assert green[1] - green[0] == pytest.approx(0.6, abs=0.05)


def test_a_cut_is_a_straight_edge(images):
    whole = replace(images[0][0], piece=0.0, cut_depth=0.0, cut_angle=0.0)
    edges = []
    for depth in (0.0, 0.2):
        inside = render(replace(whole, cut_depth=depth)).any(-1)
        edges.append(inside[:, inside.any(0).nonzero()[0][-1]].sum())
    # The chord of .2 of the radius is 1.2 radii long.
    assert edges[0] < 0.3 * whole.size / 2 < 0.8 * whole.size / 2 < edges[1]


def test_the_darkest_stain_leaves_no_hole(images):
    cell, image = images[0]
    dark = render(replace(cell, stain_red=-6.0, stain_green=-6.0, stain_blue=-6.0))
    assert np.array_equal(dark.any(-1), image.any(-1))
    assert dark.max() < 5


def test_rendering_is_fast():
    cells = draw_cells(SyntheticSpec())[:30]
    started = time.thread_time()
    for cell in cells:
        render(cell)
    # 5 ms when the machine is quiet.
    assert (time.thread_time() - started) / len(cells) < 0.03


# --- trees that are there, or should not be


def test_a_complete_tree_is_left_alone(tree):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert write_tree(tree, SPEC) == tree
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


def test_what_is_there_is_refused_and_kept(tree, tmp_path):
    with pytest.raises(LeukoclsError, match=f"{tree}: .*another spec.*remove"):
        write_tree(tree, replace(SPEC, seed=1))
    foreign = tmp_path / "photos" / "cat.bmp"
    foreign.parent.mkdir()
    foreign.write_bytes(b"miaow")
    with pytest.raises(LeukoclsError, match=r"photos: .*synthetic\.json.*another directory"):
        write_tree(foreign.parent, SPEC)
    assert foreign.read_bytes() == b"miaow"
    assert os.listdir(tmp_path) == ["photos"]


def test_a_tree_that_lost_a_file_is_refused(tmp_path):
    root = write_tree(tmp_path / "tree", SPEC)
    (root / PRELIM / "1.bmp").unlink()
    with pytest.raises(LeukoclsError, match="53 images of 54"):
        write_tree(root, SPEC)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tree_module, "encode_bmp", full)
    with pytest.raises(OSError, match="No space left"):
        write_tree(tmp_path / "tree", SPEC)
    assert os.listdir(tmp_path) == []


def test_killed_write_leaves_no_tree_and_can_be_repeated(tmp_path, command):
    root = tmp_path / "tree"
    process = command("synth", root)
    assert process.until(lambda: len(list(tmp_path.rglob("*.bmp"))) >= 5), process.err
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.rglob("*.bmp"))
    assert not root.exists()
    assert not list(tmp_path.rglob("synthetic.json"))
    assert build_index(write_tree(root, SPEC)).incomplete() == ""


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"train_subjects_hem": 2}, "at least 3"),
        ({"cells_per_subject": 0}, "at least 1"),
        ({"cells_per_subject": 2.5}, "a whole number"),
        ({"auroc_bayes": 0.4}, r"at least 0\.5 and at most 0\.999"),
        ({"auroc_bayes": 1.0}, r"at most 0\.999"),
        ({"auroc_bayes": float("nan")}, "a number"),
        ({"auroc_bayes": "high"}, "a number"),
        ({"icc_severity": 1.0}, r"at most 0\.99"),
        ({"sd_nuisance_focus": -0.1}, "at least 0"),
        ({"class_nuisance_correlation": 1.0}, r"at most 0\.99"),
        ({"p_cut": 1.5}, "at most 1"),
        ({"label_noise": 0.6}, r"at most 0\.5"),
        ({"scale": "huge"}, "demo or full"),
        ({"duplicates": -1}, "at least 0"),
        ({"final_cells": 30, "scale": "full"}, "scale=demo"),
    ],
)
def test_impossible_spec_is_refused(change, allowed):
    name, value = next(iter(change.items()))
    with pytest.raises(LeukoclsError, match=f"^{name}={value}: not allowed.*{allowed}"):
        SyntheticSpec(**change)


def test_more_duplicates_than_cells_are_refused():
    with pytest.raises(LeukoclsError, match=r"duplicates=500: give at most \d+ "):
        draw_cells(replace(SPEC, duplicates=500))


def test_configuration_lists_every_option_with_its_default():
    from omegaconf import OmegaConf

    path = ROOT / "conf" / "data" / "synthetic.yaml"
    listed = OmegaConf.to_container(OmegaConf.load(path)["synthetic"])
    assert listed == asdict(SyntheticSpec())
    assert SyntheticSpec(**listed) == SyntheticSpec()


def test_verb_prints_where_what_and_that_it_is_synthetic(tree, capsys):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in vars(SPEC).items()]
    assert synth.main([str(tree), *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["root"], document["mark"]) == (str(tree), "SYNTHETIC")
    assert document["spec"] == vars(SPEC)
    assert document["counts"]["prelim"] == 20
    assert synth.main([str(tree), *flags]) == 0
    out = capsys.readouterr().out
    assert str(tree) in out
    assert "54 cells" in out
    assert "truth.parquet" in out
    assert "SYNTHETIC" in out


def test_verb_writes_masks_when_asked(masked, capsys):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in vars(MASKED).items()]
    assert synth.main([str(masked), *flags, "--masks"]) == 0
    assert "masks in masks" in capsys.readouterr().out


def test_verb_names_the_option_that_is_not_allowed(tmp_path, capsys):
    with pytest.raises(LeukoclsError, match=r"p_cut=2\.0"):
        synth.main([str(tmp_path / "tree"), "--p-cut", "2"])
    with pytest.raises(SystemExit):
        synth.main([str(tmp_path / "tree"), "--scale", "huge"])
    assert "'demo', 'full'" in capsys.readouterr().err.replace("demo, full", "'demo', 'full'")
    assert not (tmp_path / "tree").exists()
