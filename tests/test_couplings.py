"""Couplings from the text files of direct-coupling analysis, against sums over their lines."""

import gzip
from itertools import combinations

import numpy as np
import pytest

from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.couplings import read_couplings, write_couplings
from thermosphere.proteins.potts import PottsModel

BMDCA = "-ACDEFGHIKLMNPQRSTVWY"
N = 5


def numbers(states, seed=4):
    """Fields {(i, a): h} and couplings {(i, j, a, b): J}, as the programs mean them."""
    generator = np.random.default_rng(seed)
    fields = {(i, a): generator.standard_normal() for i in range(N) for a in range(states)}
    couplings = {
        (i, j, a, b): generator.standard_normal()
        for i, j in combinations(range(N), 2)
        for a in range(states)
        for b in range(states)
    }
    return fields, couplings


def bmdca_text(fields, couplings, names, first=0):
    lines = [
        f"J {i + first} {j + first} {names[a]} {names[b]} {value!r}"
        for (i, j, a, b), value in couplings.items()
    ]
    lines += [f"h {i + first} {names[a]} {value!r}" for (i, a), value in fields.items()]
    return "\n".join(lines) + "\n"


def ccmpred_text(fields, couplings, states, written):
    lines = ["\t".join(repr(fields[i, a]) for a in range(written)) + "\t" for i in range(N)]
    for i, j in combinations(range(N), 2):
        lines.append(f"# {i} {j}")
        for a in range(states):
            lines.append("\t".join(f"{couplings[i, j, a, b]:.20e}" for b in range(states)) + "\t")
    return "\n".join(lines) + "\n"


def assert_same_law(model, fields, couplings, letters):
    """Whatever order the model has its states in, −E of a text is the sum of its numbers."""
    generator = np.random.default_rng(0)
    for _ in range(30):
        tokens = generator.integers(0, model.states, N)
        in_file = [letters.index(model.alphabet[t]) if letters else int(t) for t in tokens]
        expected = sum(fields.get((i, a), 0.0) for i, a in enumerate(in_file))
        expected += sum(
            couplings.get((i, j, in_file[i], in_file[j]), 0.0) for i, j in combinations(range(N), 2)
        )
        # 15 terms of size 1 in another order.
        assert abs(-float(model.energy(tokens)) - expected) < 1e-13


def read(tmp_path, text, name="couplings.txt", **options):
    path = tmp_path / name
    path.write_text(text)
    return read_couplings(path, **options)


@pytest.mark.parametrize("first", [0, 1])
def test_bmdca_with_numbers(tmp_path, first):
    fields, couplings = numbers(21)
    names = [str(a + first) for a in range(21)]
    model = read(tmp_path, bmdca_text(fields, couplings, names, first))
    # Numbered from 1, the gap may be the first or the last: no letters are guessed.
    letters = "" if first else BMDCA
    assert (model.length, model.states) == (N, 21)
    assert model.alphabet == ("" if first else ALPHABET + "-")
    assert model.pairs.tolist() == [list(pair) for pair in combinations(range(N), 2)]
    assert_same_law(model, fields, couplings, letters)
    named = read(
        tmp_path, bmdca_text(fields, couplings, names, first), alphabet="ACDEFGHIKLMNPQRSTVWY-"
    )
    assert_same_law(named, fields, couplings, "ACDEFGHIKLMNPQRSTVWY-")
    nameless = read(tmp_path, bmdca_text(fields, couplings, names, first), alphabet="")
    assert nameless.alphabet == ""
    assert_same_law(nameless, fields, couplings, "")


@pytest.mark.parametrize("letters", [BMDCA, "ACDEFGHIKLMNPQRSTVWY", "-ACGU", "hp"])
def test_bmdca_with_letters(tmp_path, letters):
    fields, couplings = numbers(len(letters))
    model = read(tmp_path, bmdca_text(fields, couplings, letters))
    known = {21: ALPHABET + "-", 20: ALPHABET}.get(len(letters), letters)
    assert model.alphabet == known
    assert_same_law(model, fields, couplings, letters)


def test_bmdca_in_any_order(tmp_path):
    """Lines shuffled, pairs turned round or given from both ends, comments, carriage returns."""
    fields, couplings = numbers(3)
    turned = {}
    for k, ((i, j, a, b), value) in enumerate(couplings.items()):
        if k % 3:
            turned[j, i, b, a] = value
        if k % 2 or not k % 3:
            turned[i, j, a, b] = value
    lines = bmdca_text(fields, turned, "ABC").splitlines()
    np.random.default_rng(1).shuffle(lines)
    lines.sort(key=lambda line: line.split()[:3:2] == ["h", "A"], reverse=True)
    text = "\r\n".join(["# a model", "", *lines[:40], "   ", "# more", *lines[40:70]])
    text = "\n".join([text, *(f"  \t{line} " for line in lines[70:])])
    model = read(tmp_path, text)
    assert sorted(model.alphabet) == ["A", "B", "C"]
    assert_same_law(model, fields, couplings, "ABC")


def test_sparse_couplings(tmp_path):
    """What is not there is zero; pairs without a coupling above the threshold are no pairs."""
    fields, couplings = numbers(3)
    kept = {
        key: value * (0.01 if key[:2] == (1, 3) else 0.0 if key[:2] == (2, 3) else 1.0)
        for key, value in couplings.items()
        if key[:2] != (0, 4) and key[2] != 2
    }
    text = bmdca_text(fields, kept, "ABC")
    model = read(tmp_path, text)
    assert [0, 4] not in model.pairs.tolist()
    assert [2, 3] not in model.pairs.tolist()
    assert len(model.pairs) == 8
    assert_same_law(model, fields, kept, "ABC")
    weak = read(tmp_path, text, threshold=0.05)
    assert len(weak.pairs) == 7
    assert [1, 3] not in weak.pairs.tolist()
    alone = read(tmp_path, bmdca_text(fields, {}, "ABC"))
    assert alone.couplings.shape == (0, 3, 3)
    assert_same_law(alone, fields, {}, "ABC")


@pytest.mark.parametrize("written", [20, 21])
def test_ccmpred(tmp_path, written):
    fields, couplings = numbers(21)
    text = ccmpred_text(fields, couplings, 21, written)
    fields = {key: value for key, value in fields.items() if key[1] < written}
    for content in (text, f'#>META> {{"ncol": {N}}}\n' + text):
        model = read(tmp_path, content)
        assert model.alphabet == ALPHABET + "-"
        assert_same_law(model, fields, couplings, ALPHABET + "-")


def test_ccmpred_of_other_states(tmp_path):
    fields, couplings = numbers(4)
    text = ccmpred_text(fields, couplings, 4, 4)
    assert_same_law(read(tmp_path, text), fields, couplings, "")
    assert_same_law(read(tmp_path, text, alphabet="ACGU"), fields, couplings, "ACGU")


def test_compressed(tmp_path):
    fields, couplings = numbers(3)
    path = tmp_path / "couplings.dat.gz"
    path.write_bytes(gzip.compress(bmdca_text(fields, couplings, "ABC").encode()))
    assert_same_law(read_couplings(path), fields, couplings, "ABC")
    path.write_bytes(b"J 0 1 A A 0.5\n")
    with pytest.raises(ValueError, match="not a gzip file"):
        read_couplings(path)


@pytest.mark.parametrize("alphabet", [ALPHABET + "-", "", "ACGU"])
def test_written_and_read_again(tmp_path, alphabet):
    generator = np.random.default_rng(2)
    states = len(alphabet) or 7
    pairs = [[0, 3], [1, 2], [2, 3]]
    couplings = generator.standard_normal((3, states, states))
    couplings[1, 0, 1] = 0.0
    fields = generator.standard_normal((4, states)) * 1e-12
    model = PottsModel.from_couplings(pairs, couplings, fields, alphabet)
    path = tmp_path / "couplings.txt"
    write_couplings(path, model)
    assert [entry.name for entry in tmp_path.iterdir()] == ["couplings.txt"]
    again = read_couplings(path)
    for name, value in vars(model).items():
        assert np.array_equal(getattr(again, name), value), name


def test_contacts_are_written_pair_by_pair(tmp_path):
    matrix = np.array([[-1.0, 0.5], [0.5, 2.0]])
    model = PottsModel.from_contacts([[0, 2], [1, 3]], matrix, 4, "HP")
    write_couplings(tmp_path / "hp.txt", model)
    again = read_couplings(tmp_path / "hp.txt")
    assert again.couplings.tolist() == [matrix.tolist()] * 2
    assert again.alphabet == "HP"


FIELDS, COUPLINGS = numbers(3)
GOOD = bmdca_text(FIELDS, COUPLINGS, "ABC").splitlines()
RAW = ccmpred_text(FIELDS, COUPLINGS, 3, 2).splitlines()
# GOOD: 90 lines of couplings, 15 of fields.  RAW: 5 lines of fields, 10 blocks of 4.


def spoiled(lines, number, text):
    """The lines with one of them, from 1, replaced; None takes it out."""
    return "\n".join([*lines[: number - 1], *([] if text is None else [text]), *lines[number:]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (spoiled(GOOD, 7, "J 0 1 C A"), "line 7: expected 'J i j a b value', got 'J 0 1 C A'"),
        (spoiled(GOOD, 7, "J 0 1 C A 1 2"), "line 7: expected 'J i j a b value'"),
        (spoiled(GOOD, 7, "J 0 1 C A x"), "line 7: expected 'J i j a b value', got 'J 0 1 C A x'"),
        (spoiled(GOOD, 7, "J 0 1.5 C A 1"), "line 7: expected 'J i j a b value'"),
        (spoiled(GOOD, 7, "Jx 0 1 C A 1"), "line 7: expected 'J i j a b value', got 'Jx"),
        (spoiled(GOOD, 7, "K 0 1 C A 1"), "line 7: expected 'J i j a b value' or 'h i a value'"),
        (spoiled(GOOD, 7, "J 0 1 C A nan"), "line 7: expected a finite coupling, got 'J 0 1 C A n"),
        (spoiled(GOOD, 7, "J 0 1 C A 1e400"), "line 7: expected a finite coupling"),
        (spoiled(GOOD, 7, "J 0 5 C A 1"), r"line 7: expected sites 0\.\.4, as there are fields"),
        (spoiled(GOOD, 7, "J 0 -1 C A 1"), r"line 7: expected sites 0\.\.4"),
        (
            spoiled(GOOD, 7, f"J 0 {2**70} C A 1"),
            "line 7: expected 'J i j a b value', got 'J 0 118",
        ),
        (spoiled(GOOD, 7, "J 2 2 C A 1"), "line 7: expected two different sites"),
        (spoiled(GOOD, 7, "J 0 1 D A 1"), "line 7: expected states A, B, C, as there are fields"),
        (spoiled(GOOD, 7, "J 0 1 CC A 1"), "line 7: expected states A, B, C"),
        (spoiled(GOOD, 7, GOOD[3]), "line 7: expected every coupling once, got 'J 0 1 B A"),
        (spoiled(GOOD, 7, "J 1 0 A B 1"), "line 7: expected every coupling once"),
        (spoiled(GOOD, 95, "h 1 B"), "line 95: expected 'h i a value', got 'h 1 B'"),
        (spoiled(GOOD, 95, "h 1 B inf"), "line 95: expected a finite field"),
        (spoiled(GOOD, 95, "h 1 A 1"), "line 95: expected every field once"),
        (spoiled(GOOD, 95, "h 1 Bx 1"), "line 95: expected a state of one letter, got 'h 1 Bx 1'"),
        (
            spoiled(GOOD, 95, None),
            r"a field of every site 0\.\.4 and state A, B, C, got none",
        ),
        (spoiled(GOOD, 95, "h 1000000000 B 1"), "got none of site 1, state B"),
        (spoiled(GOOD, 95, None), "got none of site 1, state B"),
        ("\n".join(GOOD[:90]), "expected 'h i a value' of every site and state, got none"),
        ("h 3 A 1\nh 3 B 1\n", "line 1: expected sites from 0 or 1, got 'h 3 A 1'"),
        ("h 0 0 1\nh 0 2 1\nh 1 0 1\nh 1 2 1", "expected states 0, 1, 2, …, got 0, 2"),
        ("h 0 A 1\nh 0 B 1\n", r"fields must be \(n, q\), n > 1"),
        ("h 0 A 1\nh 1 A 1\n", r"1 < q < 257"),
        (spoiled(RAW, 3, "0.5"), "line 3: expected 2 fields, got '0.5'"),
        (spoiled(RAW, 3, "0.5 nan"), "line 3: expected finite fields, got '0.5 nan'"),
        (spoiled(RAW, 8, "0.5 1 x"), "line 8: expected 3 couplings, got '0.5 1 x'"),
        (spoiled(RAW, 8, "1 2 3 4"), "line 8: expected 3 couplings"),
        (spoiled(RAW, 8, None), "line 6: expected 3 lines of couplings after '# 0 1', got 2"),
        (spoiled(RAW, 10, "# 1 0"), r"line 10: expected two sites i < j of 0\.\.4, .*'# 1 0'"),
        (spoiled(RAW, 10, "# 0 5"), r"line 10: expected two sites i < j of 0\.\.4"),
        (spoiled(RAW, 10, "# 0 1"), "line 10: expected every pair once, got '# 0 1'"),
        (spoiled(RAW, 10, "# 0 x"), "line 6: expected 3 lines of couplings after '# 0 1', got 6"),
        ("\n".join(RAW[5:]), "expected a line of fields a site before '# i j', got none"),
        ("\n".join(RAW[:6]), "line 6: expected lines of couplings after '# i j'"),
        ("\n".join(RAW[:5]), "expected blocks of couplings headed '# i j', got none"),
        ("1 2 3 4 5\n" + "\n".join(RAW[5:]), "line 1: expected 2 or 3 fields"),
        (">one\nACDEF\n", "line 1: expected 'J i j a b value', 'h i a value' or a line of numb"),
        ("", "expected fields and couplings, got no line of them"),
        ("# nothing\n\n", "expected fields and couplings, got no line of them"),
        ("\x00\xff\x00", "line 1: expected 'J i j a b value', 'h i a"),
        ("\x00\x01", "expected fields and couplings, got no line of them"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, text)
    assert str(error.value).startswith("read_couplings: ")
    assert "couplings.txt" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_format": "plmc"}, "format must be auto, bmdca, ccmpred, got 'plmc'"),
        ({"file_format": "ccmpred"}, "expected blocks of couplings headed '# i j', got none"),
        ({"threshold": -1.0}, "threshold must be at least 0, got -1"),
        ({"threshold": float("nan")}, "threshold must be at least 0, got nan"),
        ({"alphabet": "ABD"}, "alphabet must be the file's letters 'ABC', got 'ABD'"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "\n".join(GOOD), **options)


def test_alphabet_of_another_length(tmp_path):
    fields, couplings = numbers(3)
    with pytest.raises(ValueError, match="alphabet must have 3 letters, got 'AC'"):
        read(tmp_path, bmdca_text(fields, couplings, "012"), alphabet="AC")
    with pytest.raises(ValueError, match="alphabet must have 3 letters, got 'AC'"):
        read(tmp_path, "\n".join(RAW), alphabet="AC")
    with pytest.raises(FileNotFoundError):
        read_couplings(tmp_path / "absent")
