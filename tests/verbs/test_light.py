"""The verbs that read files start at once: none of them imports torch, nor --help what computes."""

import json
import subprocess
import sys
from pathlib import Path

# A process of its own: in one that has imported torch nothing could be seen.
PROGRAM = """
import importlib, io, json, sys
from contextlib import redirect_stdout

light, commands = json.loads(sys.argv[1])
slow = {"torch", "lightning", "pytorch_lightning", "hydra"}
found = {}
for name in light:
    importlib.import_module("leukocls." + name)
    computes = slow | {"pandas", "pyarrow", "sklearn", "scipy"}
    found["import " + name] = sorted(computes & set(sys.modules))
for name, *words in commands:
    with redirect_stdout(io.StringIO()):
        code = importlib.import_module("leukocls." + name).main(words)
    found[name] = [code, *sorted(slow & set(sys.modules))]
print(json.dumps(found))
"""
LIGHT = ["audit", "compare", "evaluate", "runs"]


def test_no_verb_that_reads_files_imports_torch(
    trained: Path, small_tree: Path, tmp_path: Path
) -> None:
    tree, run, cache = str(small_tree), str(trained), ["--cache", str(tmp_path / "store")]
    commands = [
        ["runs", run], ["evaluate", run, "--json"], ["compare", run, "--json"],
        ["verify", tree, *cache], ["audit", run, "--data", tree, *cache],
        ["split", tree, "--folds", "3", "--out", str(tmp_path / "split.csv"), *cache],
        ["baseline", tree, "--features", "handcrafted", "--outputs", str(tmp_path), *cache],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([LIGHT, commands])],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("run.json"))
    # The trained run selects on what it reports, which `audit` finds.
    codes = {name: [int(name == "audit")] for name, *_ in commands}
    assert json.loads(done.stdout) == {f"import {name}": [] for name in LIGHT} | codes
