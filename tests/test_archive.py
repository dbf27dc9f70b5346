"""Archives of tensors: whole or refused, never half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thermosphere.archive import read_archive, write_archive

TENSORS = {"weights": torch.arange(12.0).reshape(3, 4), "step": torch.tensor(7)}
HEADER = {"kind": "test", "draws": 2, "seed": 5}


def test_round_trip(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", TENSORS, HEADER)
    tensors, header = read_archive(tmp_path / "a", "test")
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode  # as the umask says


@pytest.mark.parametrize("kept", [0, 4, 60, -3])
def test_a_truncated_file_is_one_line(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a"
    write_archive(path, TENSORS, HEADER)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="must be a whole test file") as error:
        read_archive(path, "test")
    assert "\n" not in str(error.value)


def test_another_kind_and_a_missing_file(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", TENSORS, HEADER)
    with pytest.raises(ValueError, match="must be a other file, got 'test'"):
        read_archive(tmp_path / "a", "other")
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "b", "test")
