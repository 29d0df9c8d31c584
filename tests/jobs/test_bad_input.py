"""What a user gets wrong: one sentence, exit code 2, and nothing is started or left."""

from __future__ import annotations

import pytest

from jobs.harness import SMALL, TASKS

SMALL_FILE = TASKS / "small.py"


def refused(place, *arguments, **options):
    """The sentence with which a command line is refused."""
    ended = place.train(*arguments, **options).check(2)
    assert ended.out == ""
    return ended.sentence


def test_missing_file(place):
    assert "there is no file" in refused(place, "nowhere/train.py:Net")
    assert not place.run.exists()


def test_missing_module(place):
    sentence = refused(place, "no_such_module:Net")
    assert "there is no module 'no_such_module'" in sentence


def test_missing_class_offers_those_that_there_are(place):
    sentence = refused(place, f"{SMALL_FILE}:Regresion")
    assert "there is no class Regresion" in sentence
    assert "it has Regression" in sentence


def test_class_without_a_method(place):
    sentence = refused(place, f"{SMALL_FILE}:Incomplete")
    assert "apply() and gradients() and state()" in sentence


def test_task_that_raises_at_import(place):
    sentence = refused(place, f"{TASKS / 'raises_at_import.py'}:Task")
    assert "RuntimeError: this file was not meant for you" in sentence
    assert "raises_at_import.py:5" in sentence


def test_data_that_is_yet_to_be_prepared(place):
    folder = place.path / "mine"
    folder.mkdir()
    (folder / "train.py").write_text(SMALL_FILE.read_text())
    (folder / "prepare.py").write_text("")
    sentence = refused(place, f"{folder / 'train.py'}:Regression")
    assert f"run `python {folder / 'prepare.py'}` once" in sentence
    assert "--data" in sentence


def test_data_folder_that_is_not_there(place):
    sentence = refused(place, SMALL, "--data", str(place.path / "data"))
    assert "--data" in sentence
    assert "there is no such folder" in sentence


def test_data_folder_that_is_empty(place):
    (place.path / "data").mkdir()
    assert "holds no file" in refused(place, SMALL, "--data", str(place.path / "data"))


def test_file_that_the_data_lack(place):
    (place.path / "data").mkdir()
    (place.path / "data" / "test_x.npy").touch()
    sentence = refused(
        place, f"{SMALL_FILE}:RaisesInDataset", "--data", str(place.path / "data"), "--workers", "1"
    )
    assert "train_x.npy" in sentence
    assert "test_x.npy" in sentence


def test_dataset_without_an_index(place):
    sentence = refused(place, f"{SMALL_FILE}:Iterates", "--workers", "1")
    assert "cannot be indexed" in sentence
    assert "__len__ and __getitem__" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], "--workers is 0"),
        (["--workers", "5000"], "at most 1,000 functions"),
        (["--workers", "some"], "--workers is 'some': give a whole number"),
        (["--batch-size", "8"], "shared by 16 virtual workers"),
        (["--memory-mb", "64"], "Lambda offers 128 to 10,240 MB"),
        (["--workers", "2", "--aggregators", "3"], "from 1 to the 2 workers"),
        (["--until", "error is small"], "write a metric, one of >= <= > <"),
        (["--patience", "3"], "there is no metric to be patient with"),
        (["--init-from", "nowhere.safetensors"], "there is no such file"),
        (["--parameters", "http://127.0.0.1:1"], "no URL of a Valkey or Redis server"),
        (["--param", "wdith=9"], "did you mean width?"),
        (["--param", "width=wide"], "takes width as int"),
    ],
)
def test_option_that_cannot_be(place, arguments, words):
    assert words in refused(place, SMALL, *arguments)
    assert not place.run.exists()


def test_metric_that_nobody_measures(place):
    sentence = refused(place, SMALL, "--workers", "1", "--steps", "4", "--until", "accuracy>=1")
    assert "the metric 'accuracy'" in sentence
    assert "evaluate() returns error" in sentence


def test_weights_that_do_not_fit(place):
    first = place.train(SMALL, "--workers", "1", "--steps", "1", "--json").check(0)
    model = first.summary["model_path"]
    sentence = refused(place, SMALL, "--workers", "1", "--param", "width=9", "--init-from", model)
    assert "weight has shape (40,), not (9,)" in sentence


def test_weights_that_are_none(place):
    (place.path / "model.safetensors").write_bytes(b"\xff" * 100)
    sentence = refused(
        place, SMALL, "--workers", "1", "--init-from", str(place.path / "model.safetensors")
    )
    assert "--init-from" in sentence
    assert "model.safetensors is no safetensors file" in sentence
    assert not place.run.exists()


def test_unknown_key_in_the_file_of_settings(place):
    (place.path / "smlt.toml").write_text("[train]\nworker = 3\n")
    sentence = refused(place, SMALL)
    assert "smlt.toml line 2 (worker)" in sentence
    assert "did you mean workers?" in sentence


def test_status_of_no_job(place):
    ended = place.smlt("status").check(2)
    assert "There are no jobs" in ended.sentence
