"""Where settings come from, which one wins, and how a bad one is refused."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt.config import (
    BestBy,
    TrainConfig,
    Until,
    find_run_dir,
    parse_best,
    parse_until,
)
from smlt.errors import ConfigError, UserError


def load(tmp_path, toml=None, environment=None, **arguments):
    if toml is not None:
        (tmp_path / "smlt.toml").write_text(toml, encoding="utf-8")
    arguments.setdefault("target", "train.py:Mnist")
    return TrainConfig.load(arguments, environment=environment or {}, folder=tmp_path)


def refusal(tmp_path, **given):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **given)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


def test_defaults_train_one_epoch_on_four_workers(tmp_path):
    config = load(tmp_path)
    assert (config.workers, config.memory_mb, config.batch_size, config.epochs) == (4, 1769, 64, 1)
    assert config.run_dir == Path(".smlt")
    assert config.streams == 16


@pytest.mark.parametrize("end", [{"steps": "10"}, {"until": "accuracy>=0.9"}])
def test_another_end_leaves_the_epochs_open(tmp_path, end):
    assert load(tmp_path, **end).epochs is None


def test_argument_beats_environment_beats_file_beats_default(tmp_path):
    toml = "[train]\nworkers = 2\nseed = 2\nbatch-size = 32\n"
    environment = {"SMLT_WORKERS": "3", "SMLT_SEED": "3"}
    config = load(tmp_path, toml, environment, workers="5")
    assert (config.workers, config.seed, config.batch_size, config.memory_mb) == (5, 3, 32, 1769)


def test_an_empty_variable_counts_as_not_given(tmp_path):
    assert load(tmp_path, environment={"SMLT_WORKERS": ""}).workers == 4


def test_parameters_merge_key_by_key(tmp_path):
    toml = '[train]\nparams = ["lr=0.1", "width=8"]\n'
    config = load(tmp_path, toml, {"SMLT_PARAMS": "depth=3 'name=a b'"}, params=["lr=0.2"])
    assert set(config.params) == {"lr=0.2", "width=8", "depth=3", "name=a b"}


def test_parameters_may_be_a_table(tmp_path):
    config = load(tmp_path, "[train.params]\nlr = 0.1\nbias = true\n")
    assert config.params == ("lr=0.1", "bias=true")


def test_target_may_stand_in_the_file(tmp_path):
    (tmp_path / "smlt.toml").write_text('[train]\ntarget = "train.py:Mnist"\n')
    assert TrainConfig.load({}, environment={}, folder=tmp_path).target == "train.py:Mnist"


def test_without_a_target_it_says_how_to_give_one(tmp_path):
    with pytest.raises(ConfigError, match=r"smlt train train\.py:Mnist"):
        TrainConfig.load({}, environment={}, folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"workers": "0"}, ["--workers is 0", "at least 1"]),
        ({"workers": "-4"}, ["--workers is -4", "at least 1"]),
        ({"workers": "5000", "batch_size": "8192"}, ["--workers is 5000", "1,000"]),
        ({"workers": "four"}, ["--workers is 'four'", "whole number"]),
        ({"workers": "2.5"}, ["--workers is '2.5'", "whole number"]),
        ({"batch_size": "8"}, ["--batch-size is 8", "16 virtual workers", "at least 16"]),
        ({"workers": "100"}, ["--batch-size (by default) is 64", "128"]),
        ({"determinism": "total"}, ["--determinism is 'total'", "exact or fast"]),
        ({"keep_checkpoints": "0"}, ["--keep-checkpoints is 0", "at least 1"]),
        ({"checkpoint_every": "0s"}, ["--checkpoint-every is 0", "more than 0"]),
        ({"virtual_workers": "12"}, ["--virtual-workers is 12", "power of two"]),
        ({"virtual_workers": "2"}, ["--virtual-workers is 2", "at least 4"]),
        ({"memory_mb": "127"}, ["--memory-mb is 127", "128 to 10,240 MB"]),
        ({"memory_mb": "10241"}, ["--memory-mb is 10241", "128 to 10,240 MB"]),
        ({"aggregators": "0"}, ["--aggregators is 0", "1 to the 4 workers"]),
        ({"aggregators": "5"}, ["--aggregators is 5", "1 to the 4 workers"]),
        ({"tune": "shards", "adapt": True}, ["--tune is 'shards'", "aggregators, wire-dtype"]),
        ({"tune": "wire-dtype"}, ["--tune is 'wire-dtype'", "give --adapt"]),
        (
            {"tune": "aggregators,wire-dtype", "adapt": True, "determinism": "exact"},
            ["--tune is 'aggregators,wire-dtype'", "leave out wire-dtype"],
        ),
        ({"until": "accuracy=0.9"}, ["--until is 'accuracy=0.9'", "accuracy>=0.95"]),
        ({"until": "accuracy>=high"}, ["--until is 'accuracy>=high'"]),
        ({"until": "accuracy>=nan"}, ["--until is 'accuracy>=nan'"]),
        ({"until": ">=0.9"}, ["--until is '>=0.9'"]),
        ({"keep_best": "loss:least"}, ["--keep-best is 'loss:least'", "score:min"]),
        ({"patience": "3"}, ["--patience is 3", "--keep-best or --until"]),
        ({"patience": "0", "keep_best": "loss"}, ["--patience is 0"]),
        ({"epochs": "-1"}, ["--epochs is -1"]),
        ({"steps": "0"}, ["--steps is 0"]),
        ({"seed": "-1"}, ["--seed is -1"]),
        ({"seed": str(1 << 63)}, ["--seed is"]),
        ({"shard_mb": "0"}, ["--shard-mb is 0.0", "512"]),
        ({"shard_mb": "nan"}, ["--shard-mb is 'nan'", "a number"]),
        ({"target": "train.py"}, ["TARGET is 'train.py'", "file.py:Class"]),
        ({"data": "nowhere"}, ["--data is 'nowhere'", "no such folder"]),
        ({"init_from": "nothing.safetensors"}, ["--init-from is", "no such file"]),
        ({"params": ["lr"]}, ["--param is 'lr'", "NAME=VALUE"]),
        ({"params": ["2lr=1"]}, ["--param is '2lr=1'"]),
        ({"environment": {"SMLT_WORKERS": "0"}}, ["SMLT_WORKERS is 0"]),
        ({"environment": {"SMLT_JSON": "maybe"}}, ["SMLT_JSON is 'maybe'", "true or false"]),
        ({"toml": "[train]\nseed = 1\nworkers = 0\n"}, ["smlt.toml line 3 (workers) is 0"]),
        ({"toml": "[train]\nworkers = true\n"}, ["smlt.toml line 2", "whole number"]),
        ({"toml": "[train]\nworkers = 2.0\n"}, ["smlt.toml line 2", "whole number"]),
        ({"toml": "[train]\n\nworker = 2\n"}, ["smlt.toml line 3", "did you mean workers?"]),
        ({"toml": "[train]\nzzz = 2\n"}, ["smlt.toml line 2", "there are target, data, workers"]),
        ({"toml": "[train]\nsources = {}\n"}, ["smlt.toml line 2", "no such option"]),
        ({"toml": "workers = 2\n"}, ["smlt.toml line 1", "[train]"]),
        ({"toml": "[training]\nworkers = 2\n"}, ["smlt.toml line 1", "[train]"]),
        ({"toml": "[train]\nworkers =\n"}, ["smlt.toml is not valid TOML", "line 2"]),
        ({"toml": '[train]\nparams = "lr=1"\n'}, ["smlt.toml line 2", "NAME=VALUE"]),
        ({"toml": "[train]\nuntil = 3\n"}, ["smlt.toml line 2", "a text"]),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence_that_says_where(tmp_path, given, expected):
    text = refusal(tmp_path, **given)
    assert all(part in text for part in expected), text


def test_a_refused_server_url_does_not_show_its_password(tmp_path):
    text = refusal(tmp_path, parameters="http://me:secret@host")
    assert "secret" not in text
    assert "redis://" in text


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://u:p@h", "unix:///run/v.sock?db=1"])
def test_server_urls_are_taken(tmp_path, url):
    assert load(tmp_path, parameters=url).parameters == url


def test_from_python_the_fields_name_is_what_a_message_says():
    with pytest.raises(UserError, match=r"^workers is 0: "):
        TrainConfig(target="a.py:B", workers=0)


def test_from_python_paths_may_be_texts(tmp_path):
    assert TrainConfig(target="a.py:B", data=str(tmp_path)).data == tmp_path


@pytest.mark.parametrize("workers", [1, 16, 17, 64, 65, 1000])
def test_virtual_workers_are_a_power_of_two_that_is_enough(workers):
    streams = TrainConfig(target="a.py:B", workers=workers, batch_size=4096).streams
    assert streams >= max(16, workers)
    assert streams < 2 * max(16, workers)
    assert math.log2(streams).is_integer()


def test_the_run_directory_follows_the_same_precedence(tmp_path):
    assert find_run_dir(None, environment={}, folder=tmp_path) == Path(".smlt")
    (tmp_path / "smlt.toml").write_text('[train]\nrun_dir = "from-file"\n')
    assert find_run_dir(None, environment={}, folder=tmp_path) == Path("from-file")
    environment = {"SMLT_RUN_DIR": "from-variable"}
    assert find_run_dir(None, environment=environment, folder=tmp_path) == Path("from-variable")
    given = find_run_dir(Path("given"), environment=environment, folder=tmp_path)
    assert given == Path("given")


@given(
    metric=st.from_regex(r"[A-Za-z_@/][\w@/.-]{0,12}", fullmatch=True),
    comparison=st.sampled_from([">=", "<=", ">", "<"]),
    value=st.floats(allow_nan=False, allow_infinity=False),
    gap=st.sampled_from(["", " ", "  "]),
)
def test_until_reads_back_what_was_written(metric, comparison, value, gap):
    parsed = parse_until(f"{metric}{gap}{comparison}{gap}{value!r}")
    assert parsed == Until(metric, comparison, value)


@pytest.mark.parametrize(
    ("text", "reaches", "misses"),
    [("a>=1", [1, 2], [0]), ("a>1", [2], [1]), ("a<=1", [1, 0], [2]), ("a<1", [0], [1])],
)
def test_until_is_reached_where_the_comparison_holds(text, reaches, misses):
    until = parse_until(text)
    assert all(until.reached(value) for value in reaches)
    assert not any(until.reached(value) for value in [*misses, math.nan])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy", BestBy("accuracy", False)),
        ("val_loss", BestBy("val_loss", True)),
        ("Perplexity", BestBy("Perplexity", True)),
        ("error_rate", BestBy("error_rate", True)),
        ("loss:max", BestBy("loss", False)),
        ("score:min", BestBy("score", True)),
    ],
)
def test_the_direction_of_a_metric_is_guessed_or_given(text, expected):
    assert parse_best(text) == expected


def test_a_better_measurement_improves_and_a_nan_never_does():
    accuracy, loss = parse_best("accuracy"), parse_best("loss")
    assert accuracy.improves(0.5, None)
    assert accuracy.improves(0.6, 0.5)
    assert not accuracy.improves(0.5, 0.5)
    assert loss.improves(0.4, 0.5)
    assert not loss.improves(math.nan, None)


def test_patience_watches_the_best_metric_else_the_bound():
    both = TrainConfig(target="a.py:B", until="accuracy>=1", keep_best="loss", patience=2)
    assert both.watched == BestBy("loss", True)
    bound = TrainConfig(target="a.py:B", until="perplexity<9", patience=2)
    assert bound.watched == BestBy("perplexity", True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h 30m", 5400), ("2d", 172_800)],
)
def test_a_deadline_is_a_duration(tmp_path, text, seconds):
    assert load(tmp_path, deadline=text).deadline == seconds


@pytest.mark.parametrize("text", ["soon", "30 minutes", "m", "-5m", "0", "nan"])
def test_what_is_no_duration_is_refused(tmp_path, text):
    assert refusal(tmp_path, deadline=text).startswith("--deadline is ")


def test_a_budget_is_a_number_of_dollars_from_anywhere(tmp_path):
    assert load(tmp_path, '[train]\nbudget = 2.5\ndeadline = "30m"\n').budget == 2.5
    assert "give more than 0" in refusal(tmp_path, budget="-1")


def test_a_job_with_a_goal_adapts_unless_told_otherwise(tmp_path):
    assert not load(tmp_path).adapts
    assert load(tmp_path, deadline="30m").adapts
    assert load(tmp_path, budget="1").adapts
    assert load(tmp_path, adapt=True).adapts
    assert not load(tmp_path, budget="1", adapt=False).adapts
    assert not load(tmp_path, budget="1", inline=True).adapts


def test_an_adapting_job_cuts_its_data_finely_enough_to_grow(tmp_path):
    assert load(tmp_path, budget="1", batch_size="100").streams == 64
    assert load(tmp_path, budget="1", batch_size="4096").streams == 128
    assert load(tmp_path, budget="1", batch_size="4096", max_workers="20").streams == 32
    assert load(tmp_path, budget="1", max_workers="20").most_workers == 20
    assert "begins with 4 workers" in refusal(tmp_path, budget="1", max_workers="2")
    assert "at most 1,000 functions" in refusal(tmp_path, max_workers="2000", batch_size="4096")


def test_prices_are_a_file(tmp_path):
    assert "there is no such file" in refusal(tmp_path, prices=str(tmp_path / "none.toml"))


def test_objects_are_reached_through_the_endpoint_that_is_set(tmp_path):
    config = load(tmp_path, objects="s3://bucket/a", s3_endpoint="http://h:9000")
    assert config.object_store == "s3://bucket/a?endpoint=http://h:9000"
    given = "s3://bucket?endpoint=http://other"
    assert load(tmp_path, objects=given, s3_endpoint="http://h:9").object_store == given
    assert load(tmp_path).object_store is None
    assert "write s3://bucket/prefix" in refusal(tmp_path, objects="bucket")
    assert "write http://host:9000" in refusal(tmp_path, s3_endpoint="h:9000")
