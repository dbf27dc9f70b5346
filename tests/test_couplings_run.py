"""From a file of couplings or contact energies to sequences, and through the whole run, on files
that the tests write."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from thermosphere.cli import main
from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.couplings import write_couplings
from thermosphere.proteins.dataset import DataSet
from thermosphere.proteins.potts import PottsModel
from thermosphere.proteins.tempering_result import TemperingResult

BMDCA = "-ACDEFGHIKLMNPQRSTVWY"
SITES = 12
SHORT = (
    *("--preset", "smoke", "--quiet", "--set", "sequences.count=90"),
    *("--set", "data.train=40", "--set", "data.validation=20", "--set", "data.test=30"),
    *("--set", "training.max_epochs=2", "--set", "training.reference_epochs=60"),
    *("--set", "sampling.test_sequences=30", "--set", "sampling.draws=3"),
    *("--set", "analysis.attention_samples=2"),
)


def couplings_file(path: Path, letters: str, sites: int = SITES) -> Path:
    generator = np.random.default_rng(6)
    pairs = [pair for pair in combinations(range(sites), 2) if generator.random() < 0.4]
    q = len(letters)
    couplings = generator.standard_normal((len(pairs), q, q))
    fields = generator.standard_normal((sites, q))
    write_couplings(path, PottsModel.from_couplings(pairs, couplings, fields, letters))
    return path


def structure_file(path: Path, sites: int = SITES) -> Path:
    """Alpha carbons on a helix of 3 Å steps; every third residue is another."""
    lines = []
    for k in range(sites):
        x, y = 2.3 * np.cos(1.745 * k), 2.3 * np.sin(1.745 * k)
        name = "ALA" if k % 3 else "LEU"
        lines.append(
            f"ATOM  {k + 1:5d}  CA  {name} A{k + 1:4d}    {x:8.3f}{y:8.3f}{1.5 * k:8.3f}"
            f"{1:6.2f}{0:6.2f}          {'C':>2s}"
        )
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    line = capsys.readouterr().err
    assert line.startswith("thermosphere: ")
    assert line.count("\n") == 1
    return line


def test_a_run_without_a_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = couplings_file(tmp_path / "family.dat", BMDCA), tmp_path / "run"
    assert main(["run", *SHORT, "--couplings", str(file), "-o", str(run)]) == 0
    assert not (run / "contacts.toml").exists()
    assert DataSet.load(run / "dataset.npz").length == SITES
    result = TemperingResult.load(run / "sequences.npz")
    assert (result.model.states, result.model.alphabet) == (20, ALPHABET)
    page = (run / "report.html").read_text()
    assert "without a contact map: P@L and attention against contacts need a structure" in page
    assert f"couplings of {file}, under the condition that no site is a gap" in page
    pictures = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"loss", "test_error", "tempering"} <= pictures
    assert not pictures & {"precision", "tf1-small_attention_es"}

    # A structure may come later, for the report alone.
    resume = ["-o", str(run), "--resume", "--quiet"]
    settings = (run / "config.toml").read_text()
    short = structure_file(tmp_path / "of_9.pdb", 9)
    line = refused(capsys, "contacts", "--structure", str(short), *resume)
    assert f"must have the 12 sites of {run / 'dataset.npz'}, got 9" in line
    assert not (run / "contacts.toml").exists()
    assert (run / "config.toml").read_text() == settings
    pdb = structure_file(tmp_path / f"of_{SITES}.pdb")
    assert main(["contacts", "--structure", str(pdb), *resume]) == 0
    assert main(["report", *resume]) == 0
    pictures = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"precision", "tf1-small_attention_es"} <= pictures
    assert "without a contact map" not in (run / "report.html").read_text()


def test_swaps_keep_the_composition_of_the_structure(tmp_path: Path) -> None:
    file, run = couplings_file(tmp_path / "family.dat", BMDCA), tmp_path / "run"
    pdb = structure_file(tmp_path / "small.pdb")
    arguments = ["--couplings", str(file), "--structure", str(pdb), "--set", "sequences.moves=swap"]
    for stage in ("contacts", "sequences"):
        assert main([stage, *SHORT, *arguments, "-o", str(run)]) == 0
    result = TemperingResult.load(run / "sequences.npz")
    native = [ALPHABET.index("A" if k % 3 else "L") for k in range(SITES)]
    assert (np.sort(result.sequences, axis=1) == np.sort(native)).all()


def test_sequences_follow_the_numbers_of_the_file(tmp_path: Path) -> None:
    """The exact law, exp(Σh + ΣJ) of the lines themselves: signs, letters and sites all count."""
    letters, sites, count = "BCA", 3, 8000
    generator = np.random.default_rng(2)
    h = {(i, a): generator.standard_normal() for i in range(sites) for a in letters}
    j = {
        (*pair, a, b): generator.standard_normal()
        for pair in combinations(range(sites), 2)
        for a, b in product(letters, repeat=2)
    }
    lines = [f"J {i} {k} {a} {b} {value}" for (i, k, a, b), value in j.items()]
    lines += [f"h {i} {a} {value}" for (i, a), value in h.items()]
    (tmp_path / "small.dat").write_text("\n".join(lines))
    run = tmp_path / "run"
    arguments = ["sequences", "--preset", "smoke", "--couplings", str(tmp_path / "small.dat")]
    settings = ["--set", f"sequences.count={count}", "--set", "sequences.fasta=true"]
    assert main([*arguments, *settings, "--quiet", "-o", str(run)]) == 0
    text = (run / "sequences.fasta").read_text().split()
    sampled = [line for line in text if not line.startswith(">")]
    assert len(sampled) == count
    law = {}
    for s in map("".join, product(letters, repeat=sites)):
        exponent = sum(h[i, a] for i, a in enumerate(s))
        exponent += sum(j[i, k, s[i], s[k]] for i, k in combinations(range(sites), 2))
        law[s] = np.exp(exponent)
    total = sum(law.values())
    chi2 = sum(
        (sampled.count(s) - count * weight / total) ** 2 / (count * weight / total)
        for s, weight in law.items()
    )
    # 26 degrees of freedom; the harvest is 50 visits apart, so the counts are nearly independent.
    assert chi2 < 26 + 6 * np.sqrt(2 * 26)


def test_gaps_are_kept_where_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = couplings_file(tmp_path / "family.dat", BMDCA), tmp_path / "run"
    settings = ["--set", "sequences.gaps=true", "--set", "sequences.fasta=true"]
    arguments = ["sequences", *SHORT, *settings, "--couplings", str(file), "-o", str(run)]
    assert main(arguments) == 0
    letters = "".join((run / "sequences.fasta").read_text().split()[1::2])
    assert set(letters) == set(BMDCA)
    line = refused(capsys, "dataset", "-o", str(run))
    assert "the networks read the twenty amino acids" in line
    assert f"of 21 states {ALPHABET}-" in line


def test_another_alphabet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = couplings_file(tmp_path / "rna.dat", "-ACGU", sites=40), tmp_path / "run"
    arguments = ["--couplings", str(file), "--set", "sequences.fasta=true", "-o", str(run)]
    assert main(["sequences", *SHORT, *arguments]) == 0
    lines = (run / "sequences.fasta").read_text().split()
    assert len(lines[1]) == 40
    assert set("".join(lines[1::2])) == set("ACGU")
    assert "4 states ACGU" in refused(capsys, "dataset", "-o", str(run))
    whole = tmp_path / "whole"  # refused before anything is sampled
    line = refused(capsys, "run", *SHORT, "--couplings", str(file), "-o", str(whole))
    assert "4 states ACGU" in line
    assert not whole.exists()


def test_contact_energies_of_other_states_are_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hp.txt").write_text("H P\n-1 0\n0 0\n")
    setting = f"sequences.interactions={tmp_path / 'hp.txt'}"
    whole = tmp_path / "whole"
    assert "2 states HP" in refused(capsys, "run", *SHORT, "--set", setting, "-o", str(whole))
    assert not whole.exists()


def test_contact_energies_of_two_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hp.txt").write_text("H P\n-1 0\n0 0\n")
    run = ["-o", str(tmp_path / "run")]
    given = [*SHORT, "--set", f"sequences.interactions={tmp_path / 'hp.txt'}"]
    assert main(["contacts", *given, *run]) == 0
    assert "not in the states 'HP'; use sequences.moves = 'mutation'" in refused(
        capsys, "sequences", *given, *run
    )
    settings = ["--set", "sequences.moves=mutation", "--set", "sequences.fasta=true"]
    assert main(["sequences", *given, *settings, *run]) == 0
    lines = (tmp_path / "run" / "sequences.fasta").read_text().split()
    assert len(lines[1]) == 86
    assert set("".join(lines[1::2])) == {"H", "P"}


def test_halves_of_a_table_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    np.savetxt(tmp_path / "mj.txt", generator.standard_normal((20, 20)), header=" ".join(ALPHABET))
    run = ["-o", str(tmp_path / "run")]
    given = [*SHORT, "--set", f"sequences.interactions={tmp_path / 'mj.txt'}"]
    assert main(["contacts", *given, *run]) == 0
    assert "expected a symmetric matrix" in refused(capsys, "sequences", *given, *run)
    assert main(["sequences", *given, "--set", "sequences.triangle=upper", *run]) == 0


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("J 0 1 A A 0.5\n", [], "family.dat: expected 'h i a value' of every site and state"),
        ("h 0 A 1\nh 0 C nan\n", [], "family.dat line 2: expected a finite field"),
        ("1 2\n3 4\n", [], "family.dat: expected blocks of couplings headed '# i j', got none"),
        (None, ["sequences.couplings_format=plmc"], "'bmdca' or 'ccmpred', got 'plmc'"),
        (None, ["sequences.couplings_alphabet=AB"], "alphabet must be the file's letters"),
        (None, ["sequences.moves=swap"], "sequences.moves = 'swap' keeps the composition"),
        (
            "h 0 0 1\nh 0 1 2\nh 1 0 3\nh 1 1 4\n",
            ["sequences.fasta=true"],
            "needs a letter of each",
        ),
    ],
)
def test_mistakes_are_one_line(
    text: str | None,
    settings: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = couplings_file(tmp_path / "family.dat", BMDCA)
    if text is not None:
        file.write_text(text)
    changes = [word for setting in settings for word in ("--set", setting)]
    run = ["--couplings", str(file), "-o", str(tmp_path / "run")]
    assert message in refused(capsys, "sequences", *SHORT, *changes, *run)


def test_a_structure_of_another_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = couplings_file(tmp_path / "family.dat", BMDCA, sites=9)
    pdb = structure_file(tmp_path / "small.pdb")
    run = ["--couplings", str(file), "--structure", str(pdb), "-o", str(tmp_path / "run")]
    assert main(["contacts", *SHORT, *run]) == 0
    line = refused(capsys, "sequences", *SHORT, *run)
    assert "couplings must have the 12 sites of the structure, got 9" in line
