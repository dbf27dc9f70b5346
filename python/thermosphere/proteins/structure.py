"""Contact maps: which residues of a protein touch."""

from __future__ import annotations

import json
import math
import os
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.alphabet import ALPHABET, encode

FORMAT = "thermosphere contact map 1"

# Two residues are bonded when C of the first is this close to N of the second: 1.33 Å in a peptide,
# and at least 2.5 Å where something is missing between them.
_PEPTIDE_BOND = 2.0
_SCALARS = (str, bool, int, float)

# Heavy atoms of a residue within a chain; modified ones have more.
_HEAVY_ATOMS = dict(
    zip(
        "GASCTPVDNILMEQKHFRYW",
        (4, 5, 6, 6, 7, 7, 7, 8, 8, 8, 8, 8, 9, 9, 9, 10, 11, 11, 12, 14),
        strict=True,
    )
)


@dataclass(frozen=True)
class ContactMap:
    """Residues of one chain and the pairs of them in contact.

    Attributes:
        sequence: n one-letter codes.
        contacts: (E, 2) int64 site pairs i < j, 0-based, sorted, none twice.
        labels: n residue names as in the structure, such as ``12`` or ``52A``.
        provenance: where it came from; strings, numbers and booleans.

    Raises: ValueError where these do not fit together.
    """

    sequence: str
    contacts: NDArray[np.int64]
    labels: tuple[str, ...] = ()
    provenance: dict[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        encode(self.sequence)
        n = len(self.sequence)
        if not self.labels:
            object.__setattr__(self, "labels", tuple(str(k + 1) for k in range(n)))
        if len(self.labels) != n:
            raise ValueError(f"ContactMap: expected {n} labels, got {len(self.labels)}")
        pairs = self.contacts
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != np.int64:
            raise ValueError(
                f"ContactMap: contacts must be (E, 2) int64, got {pairs.shape} {pairs.dtype}"
            )
        if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
            raise ValueError(
                f"ContactMap: sites must be 0..{n - 1}, got {pairs.min()}..{pairs.max()}"
            )
        order = pairs[:, 0] * n + pairs[:, 1]
        if (pairs[:, 0] >= pairs[:, 1]).any() or (np.diff(order) <= 0).any():
            raise ValueError("ContactMap: contacts must be pairs i < j, sorted, none twice")
        for key, value in self.provenance.items():
            if not isinstance(value, _SCALARS):
                raise ValueError(
                    f"ContactMap: provenance {key!r} must be text, a number or a boolean, "
                    f"got {type(value).__name__}"
                )

    @property
    def length(self) -> int:
        """Number of sites n."""
        return len(self.sequence)

    def matrix(self) -> NDArray[np.uint8]:
        """Δ: (n, n) uint8, symmetric, 1 where two residues touch."""
        matrix = np.zeros((self.length, self.length), dtype=np.uint8)
        first, second = self.contacts.T
        matrix[first, second] = matrix[second, first] = 1
        return matrix

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write readable TOML, atomically; sites are 0-based."""
        lines = [
            f"format = {json.dumps(FORMAT)}",
            f"sequence = {json.dumps(self.sequence)}",
            *_array("labels", [json.dumps(label) for label in self.labels], 12),
            "# Site pairs in contact, 0-based.",
            *_array("contacts", [f"[{i}, {j}]" for i, j in self.contacts], 8),
            "",
            "[provenance]",
            *(f"{json.dumps(key)} = {_toml(value)}" for key, value in self.provenance.items()),
        ]
        path = Path(path)
        partial = path.with_name(path.name + ".part")
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ContactMap:
        """Read what ``save`` wrote.

        Raises: ValueError where the file is no contact map; OSError where it cannot be read.
        """
        return _parse(Path(path).read_bytes(), str(path))


def _toml(value: str | int | float | bool) -> str:
    # TOML's basic strings are JSON's, save that DEL has to be escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _array(name: str, items: list[str], per_line: int) -> list[str]:
    rows = [items[k : k + per_line] for k in range(0, len(items), per_line)]
    return [f"{name} = [", *(f"    {', '.join(row)}," for row in rows), "]"]


def _parse(data: bytes, name: str) -> ContactMap:
    try:
        stored = tomllib.loads(data.decode("utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}, expected {FORMAT!r}")
        return ContactMap(
            sequence=stored["sequence"],
            contacts=np.array([_pair(one) for one in stored["contacts"]], np.int64).reshape(-1, 2),
            labels=tuple(stored["labels"]),
            provenance=stored["provenance"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"ContactMap.load: {name} is not a contact map ({error})") from None


def _pair(entry: object) -> list[int]:
    if not (isinstance(entry, list) and len(entry) == 2 and all(type(i) is int for i in entry)):
        raise ValueError(f"a contact must be two sites, got {entry}")
    return entry


def native_2abd() -> ContactMap:
    """The built-in protein: bovine acyl-CoA binding protein, PDB entry 2ABD, 86 residues.

    259 contacts: heavy atoms closer than 4 Å, |i − j| ≥ 2 (contact_map's defaults).
    """
    stored = resources.files("thermosphere.proteins").joinpath("data", "2abd.toml")
    return _parse(stored.read_bytes(), "2abd.toml")


def contact_map(
    path: str | os.PathLike[str],
    *,
    chain: str | None = None,
    model: int | None = None,
    cutoff: float = 4.0,
    min_separation: int = 2,
    gaps: bool = False,
) -> ContactMap:
    """Contact map of one protein chain of a PDB or mmCIF file (either may be gzipped).

    Residues i and j touch when any heavy atom of one is closer than ``cutoff`` to any heavy atom of
    the other and they are at least ``min_separation`` apart along the chain (Eq. 1 of arXiv
    2603.29529; both defaults recovered from the sequences published with it).  Of alternative
    conformations each residue uses the one of highest occupancy (of equals the first).  Modified
    residues count as their parents (MSE as M); groups that cap the ends of the chain (ACE, NH2) do
    not count; crystal symmetry is not applied.

    Separation along the chain: two residues that follow each other in the file are one apart when
    their numbers or insertion codes say so, or when a peptide bond joins them (numberings that
    skip). Otherwise the residues between them are missing; mmCIF counts them.  That is an error,
    unless ``gaps`` is true: then the sites are the residues present, and |i − j| counts the missing
    ones too, so that min_separation keeps its meaning.  Residues missing at the ends of the chain
    change no separation and are no gap.

    Arguments:
        chain: author's name of the chain; may be left out where the model has one protein chain.
        model: number of the model; by default the first that has atoms.
        cutoff: in Å.

    Residues with fewer heavy atoms than their kind has are counted in the provenance.

    Raises: ValueError with one line for a file that is no structure, a chain or model that is not
    there (it lists those that are), an unknown residue, a chain of several pieces, missing
    residues, or coordinates that are missing; OSError for an unreadable file.
    """
    if not (math.isfinite(cutoff) and cutoff > 0.0):
        raise ValueError(f"contact_map: cutoff must be a positive number of Å, got {cutoff}")
    if min_separation < 1:
        raise ValueError(f"contact_map: min_separation must be at least 1, got {min_separation}")
    path = Path(path)
    structure = _read(path)
    model = _model(structure, path, model)
    residues = _select(structure, path, chain, model)
    where = f"contact_map: {path} chain {residues.chain}"
    sequence = "".join(_letter(residue, where) for residue in residues.spans)
    atoms = [_heavy_atoms(residue) for residue in residues.spans]
    places = _places(residues.spans, where, gaps)
    _check_atoms(residues.spans, atoms, where)
    incomplete = sum(
        len(positions) < _HEAVY_ATOMS[letter]
        for positions, letter in zip(atoms, sequence, strict=True)
    )
    return ContactMap(
        sequence=sequence,
        contacts=_contacts(atoms, places, cutoff, min_separation),
        labels=tuple(str(residue[0].seqid) for residue in residues.spans),
        provenance={
            "source": path.name,
            "chain": residues.chain,
            "model": model,
            "cutoff_angstrom": float(cutoff),
            "min_separation": min_separation,
            "missing_residues": int(places[-1]) + 1 - len(sequence),
            **({"incomplete_residues": incomplete} if incomplete else {}),
        },
    )


@dataclass(frozen=True)
class _Chain:
    chain: str
    spans: list[list[gemmi.Residue]]  # residues of one number: several where the type is ambiguous


def _read(path: Path) -> gemmi.Structure:
    with path.open("rb"):  # gemmi reports a missing file and a malformed one alike
        pass
    if not path.stat().st_size:
        raise ValueError(f"contact_map: {path} is empty")
    try:
        structure = gemmi.read_structure(str(path), format=gemmi.CoorFormat.Detect)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"contact_map: {path} is no PDB or mmCIF file ({reason})") from None
    structure.setup_entities()
    return structure


def _model(structure: gemmi.Structure, path: Path, model: int | None) -> int:
    numbers = [int(candidate.num) for candidate in structure if candidate.count_atom_sites()]
    if not numbers:
        raise ValueError(f"contact_map: {path} holds no atom")
    if model is not None and model not in numbers:
        listed = ", ".join(map(str, numbers))
        raise ValueError(f"contact_map: {path} has no model {model}; its models: {listed}")
    return numbers[0] if model is None else model


def _select(structure: gemmi.Structure, path: Path, chain: str | None, model: int) -> _Chain:
    peptides = (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)
    proteins = {
        candidate.name: candidate
        for candidate in next(one for one in structure if one.num == model)
        if candidate.get_polymer().check_polymer_type() in peptides
    }
    listed = ", ".join(proteins)
    if not proteins:
        raise ValueError(f"contact_map: {path} model {model} has no protein chain")
    if chain is None and len(proteins) > 1:
        raise ValueError(f"contact_map: {path} has several protein chains, name one of: {listed}")
    name = next(iter(proteins)) if chain is None else chain
    if name not in proteins:
        raise ValueError(
            f"contact_map: {path} has no protein chain {name!r}; its protein chains: {listed}"
        )
    polymer = proteins[name].get_polymer()
    _check_whole(proteins[name], polymer, f"contact_map: {path} chain {name}")
    spans: list[list[gemmi.Residue]] = []
    for residue in polymer:
        if spans and spans[-1][0].seqid == residue.seqid:
            spans[-1].append(residue)
        else:
            spans.append([residue])
    while spans and _caps(spans[0]):
        del spans[0]
    while spans and _caps(spans[-1]):
        del spans[-1]
    return _Chain(name, spans)


def _check_whole(chain: gemmi.Chain, polymer: gemmi.ResidueSpan, where: str) -> None:
    """ValueError where residues of the chain lie beyond its first piece: a TER, water or a group
    that is no amino acid between them, or several molecules under one name."""
    count = len(polymer)
    for residue in list(chain)[count:]:
        carbon = residue.find_atom("CA", "*")
        if residue.het_flag == "A" and carbon is not None and carbon.element != gemmi.Element("Ca"):
            last = polymer[count - 1]
            raise ValueError(
                f"{where}: residues must be one piece, got {last} and beyond what follows it "
                f"{residue} (several molecules, a TER or a foreign group under one chain's name)"
            )


def _caps(residues: list[gemmi.Residue]) -> bool:
    """Whether this is a group that closes a chain's end (ACE, NH2, …), and no residue."""
    return all(
        gemmi.find_tabulated_residue(residue.name).one_letter_code.upper() not in ALPHABET
        and residue.find_atom("CA", "*") is None
        for residue in residues
    )


def _conformer(residues: list[gemmi.Residue]) -> tuple[gemmi.Residue, str]:
    """The residue and the letter of its conformer of highest occupancy; the first of equals."""
    occupancies: dict[tuple[int, str], list[float]] = {}
    for index, residue in enumerate(residues):
        for atom in _heavy(residue) or residue:
            occupancies.setdefault((index, atom.altloc), []).append(atom.occ)
        named = [key for key in occupancies if key[0] == index and key[1] != "\0"]
        if named:
            occupancies.pop((index, "\0"), None)
    index, letter = max(occupancies, key=lambda key: float(np.mean(occupancies[key])))
    return residues[index], letter


def _letter(residues: list[gemmi.Residue], where: str) -> str:
    residue, _ = _conformer(residues)
    letter = gemmi.find_tabulated_residue(residue.name).one_letter_code.upper()
    if letter not in ALPHABET:
        raise ValueError(
            f"{where}: residue {residue.seqid} must be one of the 20 amino acids, "
            f"got {residue.name}"
        )
    return letter


def _heavy_atoms(residues: list[gemmi.Residue]) -> NDArray[np.float64]:
    """(atoms, 3) positions in Å of one conformer, without hydrogen and deuterium."""
    residue, letter = _conformer(residues)
    positions = [atom.pos.tolist() for atom in _heavy(residue) if atom.altloc in ("\0", letter)]
    return np.array(positions, dtype=np.float64).reshape(-1, 3)


def _heavy(residue: gemmi.Residue) -> list[gemmi.Atom]:
    return [atom for atom in residue if not _hydrogen(atom)]


def _hydrogen(atom: gemmi.Atom) -> bool:
    """Also without a column of elements, where gemmi reads names that begin in the first column as
    mercury (HG), helium (HE2), …, or as nothing it knows."""
    taken_for = atom.element.name in ("X", "He", "Hf", "Hg", "Ho")
    return atom.is_hydrogen() or (taken_for and atom.name.lstrip("0123456789").startswith("H"))


def _check_atoms(
    spans: list[list[gemmi.Residue]], atoms: list[NDArray[np.float64]], where: str
) -> None:
    """ValueError for atoms that are nowhere, or two in one place."""
    for residue, positions in zip(spans, atoms, strict=True):
        if not len(positions):
            raise ValueError(f"{where}: residue {residue[0]} has no heavy atom")
        if not np.isfinite(positions).all():
            raise ValueError(
                f"{where}: coordinates of residue {residue[0]} must be finite, got "
                f"{positions[~np.isfinite(positions).all(1)][0].tolist()}"
            )
        conformer, letter = _conformer(residue)
        names = [atom.name for atom in _heavy(conformer) if atom.altloc in ("\0", letter)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{where}: residue {residue[0]} has an atom twice (two copies under one chain?)"
            )
        if len(np.unique(positions, axis=0)) < len(positions):
            raise ValueError(
                f"{where}: residue {residue[0]} has two atoms at one place (are coordinates "
                "missing?)"
            )


def _places(spans: list[list[gemmi.Residue]], where: str, gaps: bool) -> NDArray[np.int64]:
    """(n,) place of each residue along the true chain, missing residues counted."""
    places = [0]
    missing: list[str] = []
    for before, after in pairwise(spans):
        absent = _missing_between(before[0], after[0], where)
        if absent:
            missing.append(f"{absent} between {before[0].seqid} and {after[0].seqid}")
        places.append(places[-1] + absent + 1)
    if missing and not gaps:
        raise ValueError(
            f"{where}: residues are missing ({'; '.join(missing)}); gaps=True "
            "(--set structure.gaps=true) keeps the others"
        )
    return np.array(places, dtype=np.int64)


def _missing_between(before: gemmi.Residue, after: gemmi.Residue, where: str) -> int:
    if before.label_seq is not None and after.label_seq is not None:  # mmCIF counts the true chain
        step = int(after.label_seq - before.label_seq)
        if step >= 1:  # some write the author's numbers there, which need not rise
            return 0 if _bonded(before, after) else step - 1
    first, second = before.seqid.num, after.seqid.num
    if first is None or second is None:
        raise ValueError(f"{where}: a residue after {before.seqid} has no number")
    step = second - first
    if step in (0, 1) or _bonded(before, after):
        return 0
    if step < 0:
        raise ValueError(
            f"{where}: residue numbers must rise along the chain or follow a peptide bond, "
            f"got {before.seqid} then {after.seqid}"
        )
    return step - 1


def _bonded(before: gemmi.Residue, after: gemmi.Residue) -> bool:
    carbon = before.find_atom("C", "*")
    nitrogen = after.find_atom("N", "*")
    if carbon is None or nitrogen is None:
        return False
    return bool(carbon.pos.dist(nitrogen.pos) < _PEPTIDE_BOND)


def _contacts(
    atoms: list[NDArray[np.float64]], places: NDArray[np.int64], cutoff: float, min_separation: int
) -> NDArray[np.int64]:
    """(E, 2) pairs i < j with atoms closer than the cutoff; one residue against all later ones."""
    positions = np.concatenate(atoms)  # (A, 3)
    first = np.concatenate([[0], np.cumsum([len(block) for block in atoms])])
    pairs = []
    for i, block in enumerate(atoms[:-1]):
        later = positions[first[i + 1] :]
        squares = ((block[:, None, :] - later[None, :, :]) ** 2).sum(axis=2).min(axis=0)
        nearest = np.minimum.reduceat(squares, first[i + 1 : -1] - first[i + 1])
        touching = (np.sqrt(nearest) < cutoff) & (places[i + 1 :] - places[i] >= min_separation)
        pairs += [(i, i + 1 + k) for k in np.flatnonzero(touching)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
