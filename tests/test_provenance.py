"""The record of what was run: when, how long, of which models and commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from thermosphere.runs import provenance


def test_a_stage_is_of_the_commit_it_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = ["before"]
    monkeypatch.setattr(provenance, "commit", lambda: tree[-1])
    with provenance.recorded(tmp_path, "sample"):
        tree.append("committed meanwhile")
    (stage,) = provenance.stage_times(tmp_path)
    assert stage.commits == ("before",)


def test_parts_of_a_stage_are_added_up(tmp_path: Path) -> None:
    assert provenance.stage_times(tmp_path) == []
    path = tmp_path / "provenance.csv"
    head = "stage,models,started,seconds,version,commit,machine\n"
    path.write_text(
        f"{head}train,tf1 ff,2026-01-01T00:00:00Z,50.0,0.1,abc,here\n"
        "sample,tf1,2026-01-01T00:01:00Z,0.4,0.1,abc,here\n"
        "train,tf1 ff,2026-01-02T00:00:00Z,0.2,0.1,xyz,there\n"  # kept with --resume
        "sample,tf1,2026-01-02T00:00:00Z,30.0,0.1,,there\n"
        "sample,ff,2026-01-02T00:00:00Z,7.0,0.1,,there\n"  # beside the one before
    )
    train, sample, beside = provenance.stage_times(tmp_path)
    assert (train.stage, train.models, train.seconds) == ("train", "tf1 ff", 50.0)
    assert train.commits == ("abc",)
    assert (sample.seconds, sample.machines) == (pytest.approx(30.4), ("here", "there"))
    assert (beside.models, beside.seconds) == ("ff", 7.0)
    (tmp_path / "old").mkdir()
    old = tmp_path / "old" / "provenance.csv"  # of before stages named their models
    old.write_text("stage,started,seconds,version,commit,machine\ntrain,then,9.0,0.1,abc,here\n")
    with provenance.recorded(old.parent, "train", ["tf1"]):
        pass
    assert old.read_text().splitlines()[-1].startswith("train,20")
    (went_on,) = provenance.stage_times(old.parent)
    assert (went_on.models, went_on.seconds) == ("", 9.0)  # and what only looked is left out
    path.write_text(f"{head}train,tf1,now,long,0.1,abc,here\n")
    with pytest.raises(ValueError, match="line 2: expected stage, models, started, seconds"):
        provenance.stage_times(tmp_path)


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == ""
