"""List the verbs, or run one: `python -m leukocls VERB …`, which is also the command `leukocls`."""

import runpy
import sys

from leukocls.common.errors import run_verb

VERBS = {
    "train": "train a network, or with -m a sweep of runs",
    "index": "write the CSV of a data set from one folder of images per class",
    "verify": "check a data set: counts, subjects, labels, digests, duplicates",
    "pack": "decode every image once, into the store that training reads",
    "split": "write a split as a table",
    "synth": "write a data set of SYNTHETIC cells",
    "baseline": "score a shortcut (size, outline, colour) that needs no network",
    "evaluate": "print the metrics of runs and prediction files",
    "compare": "compare arms over their seeds",
    "report": "write one HTML page on runs: checks, tables, figures, a card",
    "robustness": "score a run under blur, noise, another stain and other corruptions",
    "bundle": "write finished runs as a folder that others can open",
    "predict": "predict images with a bundle (research use only, not a diagnosis)",
    "export": "write a bundle as one ONNX file, which needs no PyTorch",
    "explain": "draw what a bundle's networks look at in images",
    "serve": "serve a page in the browser to try a bundle on images",
    "audit": "judge predictions by their split: leaks, cells left out, selection",
    "runs": "list the runs below a directory",
    "repeat": "train a finished run again and say whether the bits agree",
    "doctor": "report what is installed and found, and what to do about the rest",
    "wandb_sync": "send finished runs to W&B",
}


def main() -> None:
    """Run the verb that the command line names, or print the list; exits 2 on an unknown verb."""
    if len(sys.argv) > 1 and sys.argv[1] in VERBS:
        runpy.run_module(f"leukocls.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
    run_verb(_list)


def _list() -> int:
    unknown = [word for word in sys.argv[1:2] if word not in ("-h", "--help")]
    stream = sys.stderr if unknown else sys.stdout
    if unknown:
        print(f"error: no verb {unknown[0]}; choose one of these.\n", file=stream)
    print("leukocls VERB …   or   python -m leukocls.VERB …   (--help on each)\n", file=stream)
    for verb, line in VERBS.items():
        print(f"  {verb:12}{line}", file=stream)
    return 2 if unknown else 0


if __name__ == "__main__":
    main()
