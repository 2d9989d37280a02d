"""The card of a report: what TRIPOD+AI, CLAIM 2024 and PROBAST+AI ask for, filled from the runs."""

from typing import Any

from leukocls.reporting.document import headline

NOT_REPORTED = "not reported"


def card(document: dict[str, Any]) -> list[list[str]]:
    """Rows of heading, guideline and answer, the header first; what no run knows is NOT_REPORTED.

    Headings follow TRIPOD+AI (Collins et al. 2024), CLAIM 2024 (Tejani et al.) and PROBAST+AI
    (Moons et al. 2025), shortened; their items' numbers differ between versions and are left out.
    """
    comparison, data, runs = document["comparison"], document["data"], document["runs"]
    arm, first = headline(document), document["runs"][0]
    identity = document["settings"][comparison["reference"]]
    persons = comparison["persons"]
    who = f"{persons['ALL']} with ALL, {persons['HEM']} without" if persons else NOT_REPORTED
    of_persons = f" of {sum(persons.values())} persons" if persons else ""
    rows = {
        "Intended use": ("TRIPOD+AI, CLAIM", "Research only; not for diagnosis."),
        "Source of data": ("TRIPOD+AI, CLAIM", _source(document)),
        "Participants scored": ("TRIPOD+AI, PROBAST+AI", who),
        "Eligibility, dates, sites": ("TRIPOD+AI, CLAIM", NOT_REPORTED),
        "Reference standard": (
            "TRIPOD+AI, PROBAST+AI",
            "A cell has the diagnosis of its person; single cells were not labelled.",
        ),
        "Sample size": ("TRIPOD+AI, CLAIM", f"{data['cells']} cells{of_persons}"),
        "Missing data": (
            "TRIPOD+AI, PROBAST+AI",
            "images are missing (PARTIAL)" if "PARTIAL" in comparison["marks"] else "none known",
        ),
        "Data partition": (
            "CLAIM, PROBAST+AI",
            f"{data['split_scheme']}; {comparison['selection_set']} chose the epoch; scored:"
            f" {data['scored']} ({comparison['heading']})",
        ),
        "Leakage": (
            "PROBAST+AI",
            "; ".join(comparison["shared_persons"])
            or ("LEAKY" if "LEAKY" in comparison["marks"] else "no person on two sides"),
        ),
        "Model": ("TRIPOD+AI, CLAIM", str(identity.get("model.backbone", NOT_REPORTED))),
        "Pretraining": ("CLAIM", str(first.get("pretraining", NOT_REPORTED))),
        "Training": (
            "CLAIM",
            f"epochs: {identity.get('trainer.max_epochs', '?')}; every setting is in config.yaml",
        ),
        "Class imbalance": ("TRIPOD+AI", f"pos_weight {identity.get('loss.pos_weight')}"),
        "Fairness": ("TRIPOD+AI", NOT_REPORTED),
        "Performance measures": (
            "TRIPOD+AI, CLAIM",
            f"seeds: {arm['n']}; intervals count persons (delete-one jackknife)",
        ),
        "External validation": ("TRIPOD+AI, CLAIM", NOT_REPORTED),
        "Code and versions": ("TRIPOD+AI, CLAIM", _code(first)),
        "Randomness": ("CLAIM", f"seeds {', '.join(map(str, arm['seeds']))}"),
        "Runs": ("CLAIM", f"{len(runs)}, with their digests under Sources"),
        "Ethics, funding, registration": ("TRIPOD+AI, CLAIM", NOT_REPORTED),
    }
    return [
        ["Heading", "Guideline", "Answer"],
        *([name, guideline, answer] for name, (guideline, answer) in rows.items()),
    ]


def _source(document: dict[str, Any]) -> str:
    digest = str(document["data"]["digest"])[:12]
    if "SYNTHETIC" in document["comparison"]["marks"]:
        return f"SYNTHETIC cells of leukocls, no patients (digest {digest})"
    return f"images with the digest {digest}"


def _code(run: dict[str, Any]) -> str:
    versions, git = run.get("versions") or {}, run.get("git") or {}
    commit = str(git.get("commit", NOT_REPORTED))[:12]
    named = [f"{name} {versions[name]}" for name in ("leukocls", "torch") if name in versions]
    return f"commit {commit}{' with changes' if git.get('dirty') else ''}; {', '.join(named)}"
