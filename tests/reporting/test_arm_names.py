"""Short names of arms on a page."""

from leukocls.artifacts.identity import arm_name
from leukocls.reporting.arm_names import short_names, with_short_names


def test_what_all_arms_share_is_left_out() -> None:
    """Overrides of every arm of an ablation, and an ablation that is an experiment's only one."""
    cut = arm_name("mobilenetv2", ["classifier=knn", "fold=0", f"split_scheme={'x' * 80}"])
    names = {
        "prellberg2019/proposal,data.size=128,fold=0": "prellberg2019",
        "saeed2022_b3/proposal,data.size=128,fold=0": "saeed2022_b3/proposal",
        "saeed2022_b3/noattention,data.size=128": "saeed2022_b3/noattention",
        "baseline/mobilenetv2,fold=0,split_scheme=x": "baseline/mobilenetv2",
        f"baseline/{cut}": "baseline/mobilenetv2,classifier=knn",
        "baseline/size,fold=0": "baseline/size",
    }
    assert short_names(list(names)) == names
    assert short_names(["proposal", "norot"]) == {"proposal": "proposal", "norot": "norot"}
    rates = ["proposal,data.size=64,optim.lr=0.1", "proposal,data.size=64,optim.lr=0.2", "norot"]
    assert list(short_names(rates).values()) == [
        "proposal,optim.lr=0.1", "proposal,optim.lr=0.2", "norot",
    ]  # fmt: skip


def test_names_stay_whole_where_short_ones_would_be_the_same() -> None:
    names = [arm_name("proposal", [f"a={'x' * 90}{k}"]) for k in (1, 2)]
    assert len(set(names)) == 2
    assert short_names(names) == {name: name for name in names}


def test_a_document_is_renamed_throughout() -> None:
    arms = [{"name": "a/proposal,x=1"}, {"name": "b/proposal,x=1"}]
    document = {
        "comparison": {"arms": arms, "reference": "a/proposal,x=1"},
        "courses": {"a/proposal,x=1": [1, None]},
    }
    assert with_short_names(document) == {
        "comparison": {"arms": [{"name": "a"}, {"name": "b"}], "reference": "a"},
        "courses": {"a": [1, None]},
        "full_names": {"a": "a/proposal,x=1", "b": "b/proposal,x=1"},
    }
    assert document["comparison"]["arms"][0]["name"] == "a/proposal,x=1"
