"""A sample of what is stated, recomputed; and how stated and recomputed numbers are compared."""

import json
import random
import re

import pandas as pd
import pytest
import recompute
from recompute import Recomputation, Table, tables, this_machine, verdict

TOY = "zoo/unsafe.ToyLine-v0"
STATED = {table.name: table for table in tables()}
LABELS = [(name, str(label)) for name, table in STATED.items() for label in table.rows.index[table.rows["Path"] != ""]]


@pytest.fixture
def agrees(tmp_path):
    def check(name, label):
        recomputation = Recomputation(STATED[name], tmp_path)
        try:
            found, far = verdict(STATED[name], label, recomputation.row(label))
        finally:
            recomputation.close()
        assert found != "different", far

    return check


@pytest.mark.parametrize("name", [TOY, "zoo/unsafe.SafetyPointGoal1-v0"])
def test_a_shipped_model_makes_what_is_stated(agrees, name):
    agrees(name, STATED[name].rows.index[0])


@pytest.mark.slow
@pytest.mark.parametrize("sample", range(3))
def test_any_stored_weights_make_what_is_stated(agrees, sample, monkeypatch):
    monkeypatch.setattr(recompute, "STANDARD_ERRORS", 3.0)  # on another processor two are exceeded now and then
    agrees(*random.choice(LABELS))


ROW = {"Path": "zoo:somebody", "Reward": 20.0, "RewardStd": 5.0, "Cost_Sum": 50.0, "CostStd": 30.0, "Episodes": 100}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "equal"),
        ({"Reward": 21.41}, "close"),  # standard error of a mean ½, of a difference ½·√2
        ({"Reward": 21.42}, "different"),
        ({"Cost_Sum": 58.49}, "different"),  # 3·√2
        ({"Cost_Sum": float("nan")}, "different"),
        ({"RewardStd": 5.1}, "close"),
    ],
)
def test_two_standard_errors(changed, expected):
    table = Table("a", pd.DataFrame([ROW], index=["model"]))
    assert verdict(table, "model", pd.Series(ROW | changed))[0] == expected


def test_rounded_numbers_are_compared_as_they_are_rounded():
    table = Table("a", pd.DataFrame([ROW], index=["model"]), decimals=3)
    assert verdict(table, "model", pd.Series(ROW | {"Reward": 20.0004}))[0] == "equal"


def test_equal_numbers_look_equal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recompute, "CACHE", tmp_path)
    assert recompute.main([TOY]) == 0
    row = re.search("stated (.*), made (.*): equal", capsys.readouterr().out)
    assert row[1] == row[2]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The script on a folder with one table, of the shipped toy expert, whose return is stated as told."""

    def run(reward, machines="{}"):
        row = STATED[TOY].rows.assign(Reward=reward)
        (tmp_path / "toy").mkdir(exist_ok=True)
        row.to_csv(tmp_path / "toy" / "summary.csv")
        (tmp_path / "evaluated_on.json").write_text(machines)
        monkeypatch.setattr(recompute, "RESULTS", tmp_path)
        monkeypatch.setattr(recompute, "EVALUATED_ON", tmp_path / "evaluated_on.json")
        monkeypatch.setattr(recompute, "CACHE", tmp_path / "cache")
        return recompute.main(["toy"])

    return run


def test_a_wrong_table_ends_with_exit_code_1(toy, capsys):
    stated = STATED[TOY].rows["Reward"].iloc[0]
    assert toy(stated) == 0
    assert "1 close" in capsys.readouterr().out  # a rounded number is not equal
    assert toy(stated + 5.0) == 1
    assert "Reward: stated 26.8" in capsys.readouterr().out


def test_numbers_of_this_machine_have_to_be_equal(toy, capsys):
    assert toy(STATED[TOY].rows["Reward"].iloc[0], json.dumps({"toy": this_machine()})) == 1
    assert "has to be equal" in capsys.readouterr().out


def test_a_row_without_weights_is_named(toy, capsys, monkeypatch):
    monkeypatch.setitem(STATED, TOY, Table(TOY, STATED[TOY].rows.assign(Path="")))
    assert toy(21.8) == 0
    assert "no weights are stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["headlines"], f"No table matches 'headlines': .*{TOY}"),
        ([TOY, "headlines"], f"No table matches 'headlines': .*{TOY}"),
        ([TOY, "--models", "safe*"], r"No model matches 'safe\*': use a pattern of unsafe.ToyLine-v0\.$"),
        ([TOY, "--models", "unsafe*", "safe*"], r"No model matches 'safe\*'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(options, message):
    with pytest.raises(SystemExit, match=message):
        recompute.main(options)
