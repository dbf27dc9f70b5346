"""Masks, splits and their file."""

from dataclasses import replace

import numpy as np
import pytest

from thermosphere.proteins.alphabet import MASK
from thermosphere.proteins.dataset import DataSet, MaskedSequences, make_data_set, mask_sequences


def sequences(count=400, length=86, seed=0):
    return np.random.default_rng(seed).integers(0, 20, (count, length), dtype=np.uint8)


def test_mask_rate_and_independence():
    count, length, rate = 20_000, 86, 0.15
    masked = mask_sequences(sequences(count), rate, seed=3).masked
    # Binomial: the mean of count·length draws, per site, per sequence, and pairs of neighbours.
    error = np.sqrt(rate * (1 - rate))
    assert abs(masked.mean() - rate) < 4 * error / np.sqrt(count * length)
    assert np.abs(masked.mean(axis=0) - rate).max() < 4.5 * error / np.sqrt(count)
    both = (masked[:, 1:] & masked[:, :-1]).mean()
    assert abs(both - rate**2) < 4 * rate / np.sqrt(count * (length - 1))
    per_sequence = masked.sum(axis=1)
    variance = length * rate * (1 - rate)
    assert abs(per_sequence.var() / variance - 1) < 5 * np.sqrt(2 / count)


def test_at_least_one_site_by_the_conditioned_law():
    # Two sites at rate 0.2: given at least one, P(first) = 0.2 / 0.36, P(both) = 0.04 / 0.36.
    masked = mask_sequences(sequences(50_000, 2), 0.2, seed=1).masked
    assert masked.any(axis=1).all()
    for share, expected in ((masked[:, 0].mean(), 0.2 / 0.36), (masked.all(axis=1).mean(), 1 / 9)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 50_000)


def test_masks_depend_on_the_seed_alone():
    first = mask_sequences(sequences(), 0.15, seed=1)
    again = mask_sequences(sequences(seed=9), 0.15, seed=1)
    other = mask_sequences(sequences(), 0.15, seed=2)
    assert (first.masked == again.masked).all()
    assert (first.masked != other.masked).any()


def test_inputs_subset_and_length():
    masked = mask_sequences(sequences(), 0.15, seed=1)
    inputs = masked.inputs
    assert inputs.dtype == np.uint8
    assert (inputs[masked.masked] == MASK).all()
    assert (inputs[~masked.masked] == masked.tokens[~masked.masked]).all()
    assert (len(masked), masked.length) == (400, 86)
    for index in (slice(5, 20), [3, 1, 1], np.arange(400) % 7 == 0):
        part = masked.subset(index)
        assert (part.tokens == masked.tokens[index]).all()
        assert (part.masked == masked.masked[index]).all()


def test_data_set_partitions_the_sequences():
    tokens = sequences(100)
    data = make_data_set(tokens, train=20, validation=30, test=50, seed=4)
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [20, 30, 50]
    together = np.concatenate([part.tokens for part in parts])
    assert (np.unique(together, axis=0) == np.unique(tokens, axis=0)).all()
    assert (together != tokens).any(axis=1).sum() > 80  # shuffled


def test_data_set_depends_on_the_seed():
    def made(seed):
        data = make_data_set(sequences(100), train=20, validation=30, test=50, seed=seed)
        return data.train.tokens, data.train.masked, data.test.tokens

    assert all((a == b).all() for a, b in zip(made(4), made(4), strict=True))
    assert all((a != b).any() for a, b in zip(made(4), made(5), strict=True))


def test_save_and_load(tmp_path):
    provenance = {"source": "Å", "numbers": [1, 2.5], "nested": {"yes": True}}
    data = make_data_set(
        sequences(100), train=20, validation=30, test=50, seed=4, provenance=provenance
    )
    path = tmp_path / "data.npz"
    data.save(path)
    loaded = DataSet.load(path)
    for part in ("train", "validation", "test"):
        for name in ("tokens", "masked"):
            saved = getattr(getattr(data, part), name)
            found = getattr(getattr(loaded, part), name)
            assert found.dtype == saved.dtype
            assert (found == saved).all()
    assert loaded.provenance == data.provenance
    assert loaded.provenance["nested"] == {"yes": True}
    assert loaded.provenance["data_set"]["seed"] == 4
    assert loaded.length == 86
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.npz"]


def test_damaged_files_are_refused(tmp_path):
    data = make_data_set(sequences(100), train=20, validation=30, test=50, seed=4)
    path = tmp_path / "data.npz"
    data.save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="thermosphere data set 1 file"):
            DataSet.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="thermosphere data set 1 file"):
        DataSet.load(path)
    np.savez(path, tokens=np.zeros(3))
    with pytest.raises(ValueError, match="thermosphere data set 1 file"):
        DataSet.load(path)
    with pytest.raises(FileNotFoundError):
        DataSet.load(tmp_path / "absent.npz")


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    data = make_data_set(sequences(100), train=20, validation=30, test=50, seed=4)
    path = tmp_path / "data.npz"
    data.save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        replace(data, provenance={"not for JSON": {1, 2}}).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("rate", [0.0, 1.0, 1.5, -0.1, float("nan"), 1e-9])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match="mask_sequences: rate"):
        mask_sequences(sequences(3), rate, seed=0)


def test_bad_arguments():
    tokens = sequences(10)
    with pytest.raises(ValueError, match=r"5 \+ 5 \+ 1 = 11 sequences needed .*, got 10"):
        make_data_set(tokens, train=5, validation=5, test=1, seed=0)
    with pytest.raises(ValueError, match="test must be at least 1, got 0"):
        make_data_set(tokens, train=5, validation=5, test=0, seed=0)
    with pytest.raises(ValueError, match="seed"):
        make_data_set(tokens, train=5, validation=4, test=1, seed=-1)
    with pytest.raises(ValueError, match="uint8"):
        make_data_set(tokens.astype(int), train=5, validation=4, test=1, seed=0)
    with pytest.raises(ValueError, match=r"0\.\.19"):
        mask_sequences(tokens + np.uint8(15), seed=0)
    masked = np.ones((10, 86), dtype=bool)
    masked[7] = False
    with pytest.raises(ValueError, match="sequence 7 has none"):
        MaskedSequences(tokens, masked)
    with pytest.raises(ValueError, match="masked must be"):
        MaskedSequences(tokens, masked[:, 1:])


def test_sequences_of_two_sets_are_counted():
    tokens = sequences(60, 12)
    tokens[25:28] = tokens[:3]
    data = make_data_set(tokens, train=20, validation=20, test=20, seed=1)
    known = {row.tobytes() for row in data.train.tokens}
    others = [row for part in (data.validation, data.test) for row in part.tokens]
    assert data.also_in_train() == sum(row.tobytes() in known for row in others)
    same = make_data_set(np.zeros((60, 12), np.uint8), train=20, validation=20, test=20, seed=1)
    assert same.also_in_train() == 40
    apart = make_data_set(sequences(60), train=20, validation=20, test=20, seed=1)
    assert apart.also_in_train() == 0
