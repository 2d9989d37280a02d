"""Train a baseline: `python -m leukocls.baseline ROOT --features KIND` fits and scores one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leukocls.common.arguments import add_data_options, add_split_options
from leukocls.common.errors import LeukoclsError, run_verb
from leukocls.data.names import FEATURE_KINDS

if TYPE_CHECKING:
    from leukocls.artifacts.run_dir import RunDir
    from leukocls.training.baselines import Recipe


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.baseline",
        description="A simple classifier on features of each cell, written as a run: how far size,"
        " outline or colour alone get, or the frozen features of a pretrained network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add_data_options(parser)
    add("--features", required=True, metavar="NAME", help=f"{', '.join(FEATURE_KINDS)}; or a"
        " network: a model of conf/model, or a name as timm takes it")  # fmt: skip
    add("--classifier", default="logistic", choices=("logistic", "knn"),
        help="logistic regression, or k nearest neighbours; C and k are chosen by persons within"
        " the training cells")  # fmt: skip
    add("--weights", metavar="FILE", help="weights of the network, as model.weights of training")
    add("--crop", type=int, default=300, help="px, the central square that the network sees")
    add("--size", type=int, default=224, help="px, to which it is resized")
    add_split_options(parser, scheme="challenge")
    add("--outputs", type=Path, default=Path("outputs"), help="directory of runs")
    add("--features-out", type=Path, metavar="FILE.parquet", help="also write the features of all"
        " cells, which `evaluate --neighbourhood` reads")  # fmt: skip
    add("--force", action="store_true", help="run again if the run is done already")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def _show(run: RunDir, as_json: bool) -> None:
    """Print what `evaluate` prints for each scored split, and the run directory."""
    from leukocls.evaluation import scoring
    from leukocls.reporting import tables

    results = [
        scoring.metrics_of(part)
        for part in scoring.scored_parts(run.directory, scoring.ScoringOptions())
    ]
    if as_json:
        document = {"run": str(run.directory), "id": run.id, "results": results}
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print("\n\n".join(tables.result_text(result) for result in results))
        print(f"\n{run.directory}")


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the options name: features, classifier, and maybe a network.

    Raises:
        LeukoclsError: no such features, or weights for features that no network makes.
    """
    from leukocls.training.baselines import Recipe

    if arguments.features in FEATURE_KINDS:
        if arguments.weights:
            raise LeukoclsError("--weights: only for the features of a network.")
        return Recipe(arguments.features, arguments.classifier)
    from leukocls.launch.settings import model_group
    from leukocls.training.backbone_features import settings_of

    group = model_group(arguments.features)
    try:
        network = settings_of(group or arguments.features, arguments.weights)
    except LeukoclsError as error:
        raise LeukoclsError(
            f"--features {arguments.features}: none of {', '.join(FEATURE_KINDS)}, no model of"
            f" conf/model, and no network of timm's. {error}"
        ) from error
    sides = (arguments.crop, arguments.size)
    return Recipe(
        arguments.features, arguments.classifier, network, *sides, bool(arguments.weights)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score one baseline.

    Raises:
        LeukoclsError: no data set at ROOT, no such split, or another run in the directory.
        DataFault: the data has faults.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.record import RunState
    from leukocls.artifacts.run_dir import logged_to
    from leukocls.data.splits import SplitOptions
    from leukocls.data.verify import checked_index
    from leukocls.training import baselines

    recipe = _recipe(arguments)
    index = checked_index(
        arguments.root,
        partial=arguments.partial,
        cache=arguments.cache,
        outside=arguments.outside,
    )
    # The parts that a network is trained on, so that both have the same data digest.
    index = index.only(("train", "prelim"))
    options = SplitOptions(
        arguments.fold,
        arguments.folds,
        arguments.split_seed,
        arguments.n_subjects,
        arguments.n_cells,
        arguments.leak,
    )
    baseline = baselines.open_baseline(
        index, recipe, arguments.split_scheme, options, arguments.outputs
    )
    run = baseline.run
    with run.locked():
        if run.state(arguments.force) == RunState.DONE:
            if not arguments.json:
                print(f"{run.directory}: done already, nothing to do (--force runs it again)")
            _show(run, arguments.json)
        else:
            baselines.start(baseline)
            with run.ended_by_errors(), logged_to(run.directory / "log.txt"):
                baselines.execute(baseline, arguments.cache)
                _show(run, arguments.json)
    if arguments.features_out:
        baselines.write_features(baseline, arguments.cache, arguments.features_out)
    return 0


if __name__ == "__main__":
    run_verb(main)
