"""Sequences as text."""

import gzip

import numpy as np
import pytest

from thermosphere.proteins.alphabet import ALPHABET, decode, encode
from thermosphere.proteins.fasta import read_sequences, write_fasta


def test_alphabet_round_trip():
    assert (encode(ALPHABET) == np.arange(20)).all()
    assert decode(np.arange(20)) == ALPHABET
    with pytest.raises(ValueError, match="site 3"):
        encode("ACX")
    with pytest.raises(ValueError, match=r"0\.\.19"):
        decode(np.array([20]))


def test_headers_in_utf8_and_packed_files(tmp_path):
    text = "\ufeff>Bacillus Müller\nACDE\n>β\nFGHI\n"
    plain, packed = tmp_path / "a.fasta", tmp_path / "a.fasta.gz"
    plain.write_bytes(text.encode())
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        assert [decode(row) for row in read_sequences(path)] == ["ACDE", "FGHI"]
    packed.write_bytes(text.encode())
    with pytest.raises(ValueError, match=r"a\.fasta\.gz: not a gzip file"):
        read_sequences(packed)
    plain.write_text("ACDÉ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"letter 4 must be one of .*, got 'É'"):
        read_sequences(plain)


def test_write_and_read(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 20, (50, 86), dtype=np.uint8)
    path = tmp_path / "sequences.fasta"
    write_fasta(path, tokens)
    read = read_sequences(path)
    assert read.dtype == np.uint8
    assert (read == tokens).all()
    assert path.read_text().startswith(">sequence_1\n" + decode(tokens[0]) + "\n>sequence_2\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["sequences.fasta"]


@pytest.mark.parametrize(
    "text",
    [
        "ACDE\nFGHI\n",
        "\nacde\r\n\r\nfghi",
        ">one\nACDE\n>two words\nFGHI\n",
        ">one\nAC\nDE\n\n>\nFG\nHI",
    ],
)
def test_forms_of_the_same_two_sequences(tmp_path, text):
    path = tmp_path / "sequences.txt"
    path.write_bytes(text.encode())
    assert [decode(row) for row in read_sequences(path)] == ["ACDE", "FGHI"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACDE\nACXE\n", "line 2: letter 3 must be one of ARNDCQEGHILKMFPSTWYV, got 'X'"),
        (">a\nACDE\n>b\nAC\nD-\n", "line 5: letter 2 must be one of"),
        ("ACDE\n\nACD\n", "line 3: length must be 4 like the first sequence, got 3"),
        (">a\nACDE\n>b\nACD\n", "line 3: length must be 4"),
        (">a\n>b\nACD\n", "line 1: record 'a' is empty"),
        ("ACDE\n>b\nACDE\n", "line 2: a FASTA header"),
        ("", "holds no sequence"),
        ("\n \n", "holds no sequence"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    path = tmp_path / "sequences.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_sequences(path)
    assert "\n" not in str(error.value)


def test_binary_and_missing_files(tmp_path):
    path = tmp_path / "sequences.txt"
    path.write_bytes(b"AC\xff\n")
    with pytest.raises(ValueError, match="got byte 0xff at offset 2"):
        read_sequences(path)
    with pytest.raises(FileNotFoundError):
        read_sequences(tmp_path / "absent")


def test_write_in_another_alphabet(tmp_path):
    path = tmp_path / "sequences.fasta"
    write_fasta(path, [[0, 4, 1], [3, 3, 2]], alphabet="-ACGU")
    assert path.read_text() == ">sequence_1\n-UA\n>sequence_2\nGGC\n"
    with pytest.raises(ValueError, match=r"0\.\.4, got 0\.\.5"):
        write_fasta(path, [[0, 5, 1]], alphabet="-ACGU")


def test_write_refuses(tmp_path):
    path = tmp_path / "sequences.fasta"
    for tokens, names, message in (
        (np.zeros(3, dtype=np.uint8), None, r"\(S, n\)"),
        (np.zeros((2, 3)), None, "integers"),
        (np.full((2, 3), 20), None, r"0\.\.19"),
        (np.zeros((2, 3), dtype=int), ["one"], "expected 2 names, got 1"),
        (np.zeros((1, 3), dtype=int), ["one\ntwo"], "must be one line"),
    ):
        with pytest.raises(ValueError, match=message):
            write_fasta(path, tokens, names)
    assert not path.exists()
