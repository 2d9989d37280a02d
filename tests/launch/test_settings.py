"""Which keys and values a configuration may hold; Hydra acts on nothing before they are checked."""

import os
import pickle
from pathlib import Path

import pytest
from conftest import CANARY, Train, record, small
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from leukocls.artifacts.identity import arm_name, settings_of
from leukocls.artifacts.record import RunState, mark_ended
from leukocls.artifacts.run_dir import RunDir, logged_to
from leukocls.common.errors import LeukoclsError
from leukocls.common.secrets import is_secret, starred, without_secrets
from leukocls.launch.settings import CONF, check_hydra, check_settings, no_such_setting
from leukocls.train import quoted_path

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def settings(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_holds_known_keys(experiment: str) -> None:
    check_settings(settings(f"experiment={experiment}", "logger=wandb"))


@pytest.mark.parametrize(
    "override",
    [
        "+trainer.gradient_clip_val=1",
        "+optim.optimizer.amsgrad=true",
        "+optim.optimizer.betas=[.9,.99]",
        "+model.options.drop_path_rate=.1",
        "+optim.lr.stem=1e-3",
        "data.crop=box",
        "views=corners",
        "augment.rotation=10.5",
        "+augment.dihedral=true",
        "phases=null",
        "fold=2",
    ],
)
def test_keys_that_something_reads_are_accepted(override: str) -> None:
    check_settings(settings(override))


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("+optim.learning_rate=1", "optim.lr"),
        ("+lr=1", "optim.lr"),
        ("+epochs=3", "trainer.max_epochs"),
        ("+trainer.epochs=3", "trainer.max_epochs"),
        ("+data.num_workers=3", "data.workers"),
        ("+view_0_of=proposal", "rescore_from"),
        ("+data.batchsize=3", "data.batch_size"),
        ("+optim.optimizer.momentum=.9", None),  # Adam has none
        ("+notes='a word to the reader'", None),
        ("+trainer.something=3", None),
    ],
)
def test_a_key_that_nothing_reads_is_refused(override: str, near: str | None) -> None:
    key = override.split("=")[0][1:]
    with pytest.raises(LeukoclsError, match=key) as refused:
        check_settings(settings(override))
    assert str(refused.value) == no_such_setting(key)
    assert near is None or f"Did you mean {near}?" in str(refused.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("force=no", "true or false"),
        ("data.partial=1", "true or false"),
        ("trainer.max_epochs=many", "a number"),
        ("loss.focal_gamma=true", "a number"),
        ("~data.crop", "cannot be deleted"),
        ("~loss.pos_weight", "cannot be deleted"),
        ("~views", "cannot be deleted"),
        ("optim.optimizer._target_=pandas.read_pickle", "not allowed"),
        ("optim.schedule._target_=builtins.print", "not allowed"),
    ],
)
def test_a_value_of_another_kind_is_refused(override: str, words: str) -> None:
    with pytest.raises(LeukoclsError, match=words) as refused:
        check_settings(settings(override))
    assert override.split("=")[0].strip("~+") in str(refused.value) or "_target_" in override


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_mistyped_key_makes_no_run(
    plus: str, sweep: list[str], small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = [f"{plus}optim.learning_rate=1", *sweep]
    refused = train(*small(small_tree, tmp_path / "outputs"), *words)
    assert (refused.code, "Did you mean optim.lr?" in refused.err) == (2, True)
    assert "use +" not in refused.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model.options={drop_rat:.1}"], "model.options"),
        (["+optim.optimizer.betas=1"], "optim"),
        (["optim.schedule.step_size=two"], "optim.schedule.step_size"),
        (["~optim.lr.head"], "optim.lr"),
        (["model.mean=[1,2]"], "mean"),
        (["selection=lucky"], "selection"),
        (["data.crop=0"], "data.crop"),
        (["data.batch_size=0"], "data.batch_size"),
        (["data.batch_size=100000"], "data.batch_size"),
        (["sampler=fair"], "sampler"),
        (["augment.rotation=999"], "augment.rotation"),
        (["trainer.precision=12"], "trainer"),
        (["loss.label_smoothing=2"], "loss.label_smoothing"),
        (["ema=1"], "ema"),
    ],
)
def test_a_refused_recipe_leaves_a_finished_run_as_it_was(
    words: list[str], key: str, trained: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    """Everything is checked before a run directory exists, and before `force` empties one."""
    refused = train(*small(small_tree, tmp_path / "outputs"), *words, "force=true")
    assert (refused.code, key in refused.err) == (2, True), refused.err
    assert not list(tmp_path.rglob("run.json"))


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.path),))


CALL = "{_target_: pandas.read_pickle, filepath_or_buffer: PLACE/attack.pickle}"
SPELT = "{_target_:pandas.read_pickle,filepath_or_buffer:PLACE/attack.pickle}"
HANDLER = (
    "{handlers: {f: {class: logging.FileHandler, filename: PLACE/ran}}, root: {handlers: [f]}}"
)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize(
    "settings",
    [
        f"callbacks: {{x: {CALL}}}",
        f"job_logging: {HANDLER}",
        f"hydra_logging: {HANDLER}",
        f"launcher: {{x: {CALL}}}",
        f"sweeper: {{params: {CALL}}}",
        f'launcher: {{x: "${{oc.create:{SPELT}}}"}}',
        f'sweeper: {{params: {{x: "\\\\${{oc.create:{SPELT}}}"}}}}',
        "sweeper: {_target_: builtins.print}",
        "launcher: {_target_: builtins.print}",
        "job: {env_set: {PYTHONPATH: /nowhere}}",
        "job: {env_copy: [HOME]}",
        "run: {dir: PLACE/ran}",
        "sweep: {dir: PLACE/ran}",
        "overrides: {hydra: [hydra.launcher.setup=x]}",
    ],
)
def test_an_experiment_file_runs_no_code_through_hydra(
    settings: str, sweep: list[str], small_tree: Path, tmp_path: Path, train: Train
) -> None:
    (tmp_path / "attack.pickle").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    text = settings.replace("PLACE", str(tmp_path))
    (folder / "shared.yaml").write_text(f"# @package _global_\nhydra:\n  {text}\n")
    words = [word for word in small(small_tree, tmp_path / "outputs") if "experiment" not in word]
    refused = train(f"--config-dir={tmp_path / 'conf'}", "experiment=shared", *words, *sweep)
    assert (refused.code, "hydra" in refused.err) == (2, True), refused.err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "outputs").exists()


def test_commands_for_a_clusters_shell_come_from_the_command_line_alone(tmp_path: Path) -> None:
    node = settings_of_hydra("hydra.launcher.setup=[module load cuda]")
    check_hydra(node, node.overrides.hydra + node.overrides.task)
    node.overrides.hydra = [o for o in node.overrides.hydra if "setup" not in o]
    with pytest.raises(LeukoclsError, match=r"hydra\.launcher\.setup"):
        check_hydra(node, node.overrides.hydra + node.overrides.task)


def settings_of_hydra(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["launcher=slurm", *overrides], return_hydra_config=True).hydra


SECRETS = {
    "+logger.api_key": CANARY,
    "+logger.auth": CANARY,
    "+headers.Authorization": f"'Bearer {CANARY}'",
    "+db.passphrase": CANARY,
    "data.root": f"https://me:{CANARY}@example.org/cells",
    "outputs": "/tmp/hf_abcdefghijklmnopqrstuvwxyz",
}


@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_on_the_command_line_reaches_nothing(
    key: str, sweep: list[str], tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refused = train(f"{key}={SECRETS[key]}", *sweep)
    assert (refused.code, key.lstrip("+") in refused.err) == (2, True), refused.err
    assert CANARY not in refused.out + refused.err
    assert "hf_abc" not in refused.err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("value", [
    "${oc.env:HF_TOKEN}", "x/${oc.decode:'1'}", "${ oc.env : HOME }",
    "x/${oc.${split_scheme}:HOME}", "${oc.env:LEUKOCLS_NONE,${oc.env:HF_TOKEN}}",
    "\\\\${oc.create:{a:1}}", "${.${seed}}",
])  # fmt: skip
def test_a_configuration_does_not_read_the_environment(
    value: str, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.chdir(tmp_path)
    refused = train(f"outputs={value}", "data=synthetic")
    assert (refused.code, "outputs" in refused.err) == (2, True), refused.err
    assert CANARY not in refused.err
    assert not list(tmp_path.iterdir())


def test_what_is_written_holds_no_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    config = OmegaConf.create({"logger": {"note": f"see {CANARY}", "my_api_key": "x1"}})
    run = RunDir(tmp_path / "demo" / "proposal" / "seed_000", config, {})
    run.directory.mkdir(parents=True)
    run.start()
    with logged_to(run.directory / "log.txt"):
        print(f"GET https://example.org/?token={CANARY}")
    run.end(RunState.FAILED, f"OSError: https://me:{CANARY}@example.org")
    for path in run.directory.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    assert record(run.directory)["error"] == "OSError: https://***@example.org"
    assert OmegaConf.load(run.directory / "config.yaml").logger.my_api_key == "***"


def test_what_a_sweep_writes_about_a_dead_job_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line that the job printed may hold one; and its output may be a file."""
    monkeypatch.setenv("S3_SECRET_KEY", CANARY)
    run = RunDir(tmp_path / "demo" / "proposal" / "seed_000", OmegaConf.create({}), {})
    run.directory.mkdir(parents=True)
    run.start()
    mark_ended(run.directory, os.getpid(), RunState.FAILED, f"killed; its last line: {CANARY}")
    assert record(run.directory)["error"] == "killed; its last line: ***"
    with logged_to(run.directory / "log.txt"):
        print(f"warning: {CANARY}")
    assert capsys.readouterr().out == "warning: ***\n"


@pytest.mark.parametrize("token", [
    "sk-abcdefghijklmnop", "sk-proj-abcd_efgh-ijklmnop", "sk-ant-api03-abcd-efgh_ijkl",
])  # fmt: skip
def test_tokens_are_known_by_their_form(token: str) -> None:
    assert without_secrets(f"with {token} in it") == "with *** in it"
    assert (
        without_secrets("risk-adjusted-estimates-of-persons")
        == "risk-adjusted-estimates-of-persons"
    )


def test_options_of_a_network_are_no_secrets() -> None:
    """Two networks that differ in `class_token` are two arms with two identities."""
    with_token, without = (
        OmegaConf.create({"model": {"options": {"class_token": value}}}) for value in (True, False)
    )
    assert settings_of(with_token) != settings_of(without)
    names = {arm_name("proposal", [f"model.options.class_token={v}"]) for v in ("True", "False")}
    assert len(names) == 2
    assert starred({"model": {"options": {"class_token": 7}}, "token": 7}) == {
        "model": {"options": {"class_token": 7}},
        "token": "***",
    }
    keys = ("model.options.class_token", "data.reg_tokens", "tokenizer", "keyboard", "author")
    assert not any(map(is_secret, keys))
    assert all(map(is_secret, ("token", "logger.api_key", "x.hub-token", "WANDB_API_KEY")))
    assert without_secrets("http://host/a:b@c and 12:30@home") == "http://host/a:b@c and 12:30@home"


def test_a_long_list_of_seeds_is_not_asked_for_as_a_path() -> None:
    words = "seed=" + ",".join(map(str, range(100)))
    assert quoted_path(words) == words
