"""`dlkit tune`: a dry run trains nothing; with --export one command goes from pictures to a verified export."""

from pathlib import Path

import pytest

from dlkit._tune import _without_validation
from dlkit.cli import main
from dlkit.train import Recipe
from dlkit.train.stopping import Patience, Plateau, TimeBudget

SETTINGS = ["--set", "epochs=1", "--set", "batch=64", "--size", "8"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_shows_space_and_budget_and_writes_nothing(here, capsys):
    arguments = ["tune", "mlp", "digits", "--dry-run", "--space", "optimizer,architecture", "--epochs-budget", "18"]
    main([*arguments, "--set", "epochs=9", "--size", "8"])
    out = capsys.readouterr().out
    assert "adamw_lr" in out
    assert "optimizer in adamw" in out
    assert "units" in out
    assert "epochs in all" in out
    assert not list(here.iterdir())


def test_an_unknown_space_is_refused(here, capsys):
    with pytest.raises(SystemExit):
        main(["tune", "mlp", "digits", "--space", "optimiser", *SETTINGS])
    assert "did you mean 'optimizer'" in capsys.readouterr().err


def test_the_retraining_on_all_data_watches_no_validation_part():
    recipe = Recipe(stop=(Patience(patience=3), TimeBudget(9.0)), plateau=Plateau(metric="val_loss", patience=2))
    kept = _without_validation(recipe)
    assert kept.stop == (TimeBudget(9.0),)
    assert kept.plateau == Plateau(metric="", patience=2)
    assert _without_validation(kept) == kept


@pytest.mark.slow
def test_one_command_searches_retrains_on_all_data_and_exports(here, capsys):
    arguments = ["tune", "resnet_cifar8", "digits", "--space", "batch", "--epochs-budget", "2", "--export", "found"]
    main([*arguments, *SETTINGS])
    out = capsys.readouterr().out
    assert "verified and written" in out
    assert Path("saved_models/found/1/saved_model.pb").exists()
    assert Path("runs/tune-digits-resnet_cifar8/report.html").exists()
