"""Contact energy matrices from text, in the forms that they are published in."""

import numpy as np
import pytest

from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.interactions import read_interactions
from thermosphere.proteins.potts import interaction_matrix

J = interaction_matrix(5)
# Order and names of the rows in Miyazawa and Jernigan's tables.
MJ = "CMFILVWYAGTSNQDEHRKP"
NAMES = "CysMetPheIleLeuValTrpTyrAlaGlyThrSerAsnGlnAspGluHisArgLysPro"
THREE = [NAMES[k : k + 3] for k in range(0, 60, 3)]


def in_order(letters):
    order = [ALPHABET.index(letter) for letter in letters]
    return J[np.ix_(order, order)]


def text_rows(matrix, form="square", names=None):
    rows = []
    for k, row in enumerate(matrix):
        kept = {"square": row, "lower": row[: k + 1], "upper": row[k:]}[form]
        label = [names[k]] if names else []
        rows.append(" ".join([*label, *(repr(float(value)) for value in kept)]))
    return rows


def read(tmp_path, text, **options):
    path = tmp_path / "J.txt"
    path.write_text(text)
    return read_interactions(path, **options)


FORMS = {
    "plain": (ALPHABET, [], None),
    "letters": (MJ, [" ".join(MJ)], None),
    "one word": (MJ, [MJ], None),
    "lower case": (MJ, [MJ.lower()], None),
    "commented": (MJ, ["# units: kT", "#" + " ".join(MJ)], None),
    "named rows": (MJ, [], list(MJ)),
    "three letters": (MJ, ["# kT", " ".join(THREE)], THREE),
    "corner": (MJ, ["*** " + " ".join(THREE).upper()], THREE),
}


@pytest.mark.parametrize("shape", ["square", "lower", "upper"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_matrix(tmp_path, form, shape):
    letters, header, names = FORMS[form]
    rows = text_rows(in_order(letters), shape, names)
    matrix, alphabet = read(tmp_path, "\n".join([*header, "", *rows, "# end"]) + "\n")
    assert alphabet == ALPHABET
    assert (matrix == J).all()


@pytest.mark.parametrize("shape", ["square", "lower"])
def test_aaindex_entry(tmp_path, shape):
    text = "\n".join(
        [
            "H MIYS000000",
            "D Quasichemical energy of some kind",
            "J Macromolecules 18, 534-552 (1985)",
            f"M rows = {MJ}, cols = {MJ}",
            *text_rows(in_order(MJ), shape),
            "//",
        ]
    )
    matrix, alphabet = read(tmp_path, text)
    assert alphabet == ALPHABET
    assert (matrix == J).all()
    with pytest.raises(ValueError, match="line 29: expected one AAindex entry, got 2"):
        read(tmp_path, text + "\n" + text)
    with pytest.raises(ValueError, match="line 4: expected 'M rows = LETTERS"):
        read(tmp_path, text.replace(f"cols = {MJ}", f"cols = {ALPHABET}"))


def test_comma_separated(tmp_path):
    lines = [" ".join(["", *MJ]), *text_rows(in_order(MJ), names=list(MJ))]
    text = "\ufeff" + "\r\n".join(line.replace(" ", ",") for line in lines)
    matrix, alphabet = read(tmp_path, text)
    assert alphabet == ALPHABET
    assert (matrix == J).all()
    with pytest.raises(ValueError, match=r"line 1: expected 2 numbers, .*got 4"):
        read(tmp_path, "0,5 1,5\n1,5 2\n")


def test_halves_that_differ(tmp_path):
    both = np.triu(J) + np.tril(interaction_matrix(6), -1)
    text = "\n".join(text_rows(both))
    assert (read(tmp_path, text, triangle="upper")[0] == J).all()
    lower = np.tril(both) + np.tril(both, -1).T
    assert (read(tmp_path, text, triangle="lower")[0] == lower).all()
    message = r"expected a symmetric matrix, got J\[1, 2\] = .*triangle = 'upper' or 'lower' takes"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)
    with pytest.raises(ValueError, match="holds the lower triangle, got triangle = 'upper'"):
        read(tmp_path, "1\n2 3\n", triangle="upper")
    with pytest.raises(ValueError, match="triangle must be 'upper' or 'lower', got 'both'"):
        read(tmp_path, text, triangle="both")


def test_other_states(tmp_path):
    matrix, alphabet = read(tmp_path, "  H P\nH -1 0\nP 0 0\n")
    assert alphabet == "HP"
    assert matrix.tolist() == [[-1, 0], [0, 0]]
    matrix, alphabet = read(tmp_path, "1\n2 3\n4 5 6\n")
    assert alphabet == ""
    assert matrix.tolist() == [[1, 2, 4], [2, 3, 5], [4, 5, 6]]


ROWS = text_rows(J)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(ROWS[:-1]), "expected 20 rows of 20, got 19"),
        (
            "\n".join([*ROWS[:4], ROWS[4] + " 1", *ROWS[5:]]),
            "line 5: expected 20 numbers, .*got 21",
        ),
        ("\n".join([*ROWS[:4], "x" + ROWS[4], *ROWS[5:]]), "line 5: expected a number, got 'x"),
        ("1 2\nnan 3\n", "line 2: expected a finite number, got 'nan'"),
        ("1 2\n3 NA\n", "line 2: expected a number, got 'NA'"),
        ("A C\n1 2\n2 3\n4 5\n", "expected 3 names, one a row, got 2"),
        ("A C\n1\n2 3\n4 5 6\n", "expected 3 names, one a row, got 2"),
        ("A A\n1 2\n2 3\n", "expected every state once, got 'A' twice"),
        ("A XYZ\n1 2\n2 3\n", "expected names of one or three letters, got 'XYZ'"),
        ("A C\nA 1 2\nD 2 3\n", "line 3: expected the row of C, got 'D'"),
        ("A 1 2\n2 3\n", "line 2: expected the row of a name, got '2'"),
        ("1\n2 3\n4 5\n", "line 3: expected 3 numbers, of the lower triangle of 3 rows, got 2"),
        ("3 2 1\n2 1\n1 2\n", "line 3: expected 1 numbers, of the upper triangle of 3 rows, got 2"),
        ("", "expected a matrix of at least 2 rows, got 0"),
        ("A C\n", "expected a matrix of at least 2 rows, got 0"),
        (">seq\nACDEF\n", "line 2: expected the row of >, got 'ACDEF'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, text)
    assert "J.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_interactions(tmp_path / "absent")
