"""Contact maps: the built-in protein, and every rule of contact_map on small structures."""

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest

from thermosphere.proteins.structure import ContactMap, contact_map, native_2abd

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "SQAEFDKAAEEVKHLKTKPADEEMLFIYSHYKQATVGDINTERPGMLDFKGKAKWDAWNELKGTSKEDAMKAYIDKVEELKKKYGI"


def atom(
    residue,
    number,
    position,
    *,
    name="CA",
    chain="A",
    icode=" ",
    altloc=" ",
    occupancy=1.0,
    element="C",
):
    """One line of a PDB file."""
    x, y, z = position
    record = "HETATM" if residue == "MSE" else "ATOM  "
    return (
        f"{record}{1:5d} {name:^4s}{altloc}{residue:3s} {chain}{number:4d}{icode}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{0:6.2f}          {element:>2s}"
    )


def chain_on_a_line(count=6, step=3.0, **options):
    """Residues with one atom each, on the x axis, ``step`` Å apart."""
    return [atom("ALA", k + 1, (step * k, 0.0, 0.0), **options) for k in range(count)]


def write(path, lines):
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def pairs(result):
    return [tuple(pair) for pair in result.contacts.tolist()]


@pytest.fixture
def pdb(tmp_path):
    return lambda lines: write(tmp_path / "small.pdb", lines)


def test_built_in_protein():
    native = native_2abd()
    assert native.sequence == NATIVE
    assert native.length == 86
    assert native.contacts.shape == (259, 2)
    assert (np.diff(native.contacts, axis=1) >= 2).all()
    matrix = native.matrix()
    assert matrix.dtype == np.uint8
    assert matrix.sum() == 2 * 259
    assert (matrix == matrix.T).all()
    assert native.provenance["cutoff_angstrom"] == 4.0
    assert "BF00212514" in str(native.provenance["reference"])


def test_built_in_protein_is_what_the_coordinates_give():
    given = os.environ.get("THERMOSPHERE_2ABD_PDB")
    path = Path(given) if given else ROOT.parent / "shared" / "data" / "2abd_heavy_atoms.pdb"
    if not path.exists():
        pytest.skip("the coordinates of 2ABD are not here; name them in THERMOSPHERE_2ABD_PDB")
    derived = contact_map(path)
    native = native_2abd()
    assert derived.sequence == native.sequence
    assert derived.labels == native.labels
    assert pairs(derived) == pairs(native)
    for key, value in derived.provenance.items():
        if key != "source":
            assert native.provenance[key] == value


def test_against_all_distances_one_by_one(pdb):
    generator = np.random.default_rng(5)
    atoms = [(k, generator.uniform(0, 12, 3).round(3)) for k in range(30) for _ in range(k % 4 + 1)]
    lines = [atom("GLY", k + 1, at, name=f"C{j}") for j, (k, at) in enumerate(atoms)]
    path = pdb(lines)
    for cutoff, separation in ((4.0, 2), (2.5, 1), (6.0, 5)):
        expected = sorted(
            {
                (i, j)
                for i, first in atoms
                for j, second in atoms
                if j - i >= separation and np.linalg.norm(first - second) < cutoff
            }
        )
        assert len(expected) > 5
        assert pairs(contact_map(path, cutoff=cutoff, min_separation=separation)) == expected


def test_cutoff_is_exclusive_and_separation_inclusive(pdb):
    path = pdb(chain_on_a_line(4, step=2.0))
    assert pairs(contact_map(path)) == []
    assert pairs(contact_map(path, cutoff=4.001)) == [(0, 2), (1, 3)]
    assert pairs(contact_map(path, cutoff=4.001, min_separation=3)) == []
    assert pairs(contact_map(path, cutoff=2.5, min_separation=1)) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("element", ["H", "D"])
def test_hydrogen_and_deuterium_do_not_count(pdb, element):
    lines = chain_on_a_line(3, step=3.0)
    lines.insert(1, atom("ALA", 1, (4.0, 0.0, 0.0), name=f"{element}A", element=element))
    assert pairs(contact_map(pdb(lines))) == []
    lines[1] = atom("ALA", 1, (4.0, 0.0, 0.0), name="CB")
    assert pairs(contact_map(pdb(lines))) == [(0, 2)]


def test_alternative_conformations_use_the_highest_occupancy(pdb):
    near, far = (5.0, 0.0, 0.0), (0.0, 9.0, 0.0)

    def lines(first, second):
        return [
            atom("SER", 1, (0.0, 0.0, 0.0)),
            atom("SER", 1, near, name="CB", altloc="A", occupancy=first),
            atom("SER", 1, far, name="CB", altloc="B", occupancy=second),
            *chain_on_a_line(3)[1:],
        ]

    assert pairs(contact_map(pdb(lines(0.6, 0.4)))) == [(0, 2)]
    assert pairs(contact_map(pdb(lines(0.4, 0.6)))) == []
    assert pairs(contact_map(pdb(lines(0.5, 0.5)))) == [(0, 2)]


def test_ambiguous_residue_uses_the_highest_occupancy(pdb):
    lines = chain_on_a_line(3)
    lines[1:2] = [
        atom("SER", 2, (3.0, 0.0, 0.0), altloc="A", occupancy=0.3),
        atom("THR", 2, (3.0, 0.0, 0.0), altloc="B", occupancy=0.7),
    ]
    assert contact_map(pdb(lines)).sequence == "ATA"


def test_modified_residue_counts_as_its_parent_and_unknown_is_refused(pdb):
    lines = chain_on_a_line(4)
    lines[1] = atom("MSE", 2, (3.0, 0.0, 0.0))
    assert contact_map(pdb(lines)).sequence == "AMAA"
    lines[1] = atom("UNK", 2, (3.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"residue 2 must be one of the 20 amino acids, got UNK"):
        contact_map(pdb(lines))


def test_groups_that_cap_the_ends_do_not_count(pdb):
    plain = chain_on_a_line(4)
    caps = [
        atom("ACE", 0, (-3.0, 0.0, 0.0), name="CH3"),
        atom("ACE", 0, (-1.3, 0.0, 0.0), name="C"),
        atom("NH2", 5, (10.3, 0.0, 0.0), name="N", element="N"),
    ]
    capped = contact_map(pdb([*caps[:2], *plain, caps[2]]))
    assert capped.sequence == "AAAA"
    assert capped.labels == ("1", "2", "3", "4")
    assert pairs(capped) == pairs(contact_map(pdb(plain)))
    # Inside the chain such a group is an error, and so is an unknown residue at its end.
    with pytest.raises(ValueError, match="residue 2 must be one of the 20 amino acids, got ACE"):
        contact_map(pdb([plain[0], atom("ACE", 2, (3.0, 0.0, 0.0), name="C"), *plain[2:]]))
    with pytest.raises(ValueError, match="residue 5 must be one of the 20 amino acids, got UNK"):
        contact_map(pdb([*plain, atom("UNK", 5, (12.0, 0.0, 0.0))]))


def test_missing_residues_are_refused_or_keep_the_true_separation(pdb):
    # Residues 1 2 3 | 6 7; 3 and 6 touch, and stand three apart.
    lines = [atom("ALA", number, (3.0 * k, 0.0, 0.0)) for k, number in enumerate((1, 2, 3, 6, 7))]
    path = pdb(lines)
    with pytest.raises(ValueError, match=r"residues are missing \(2 between 3 and 6\)"):
        contact_map(path)
    found = contact_map(path, gaps=True)
    assert found.labels == ("1", "2", "3", "6", "7")
    assert found.provenance["missing_residues"] == 2
    assert pairs(found) == [(2, 3)]
    assert pairs(contact_map(path, gaps=True, min_separation=4, cutoff=6.5)) == [(1, 3), (2, 4)]


def test_numbers_may_skip_along_a_peptide_bond(pdb):
    lines = chain_on_a_line(3)[:2]
    lines += [
        atom("ALA", 2, (5.0, 0.0, 0.0), name="C"),
        atom("ALA", 40, (6.3, 0.0, 0.0), name="N", element="N"),
        atom("ALA", 40, (7.0, 0.0, 0.0)),
    ]
    found = contact_map(pdb(lines))
    assert found.labels == ("1", "2", "40")
    assert found.provenance["missing_residues"] == 0
    assert pairs(found) == []  # 2 and 40 touch and are neighbours


def test_insertion_codes_are_residues_of_their_own(pdb):
    lines = [
        atom("ALA", 52, (0.0, 0.0, 0.0)),
        atom("GLY", 52, (3.0, 0.0, 0.0), icode="A"),
        atom("SER", 52, (6.0, 0.0, 0.0), icode="B"),
        atom("VAL", 53, (9.0, 0.0, 0.0)),
    ]
    found = contact_map(pdb(lines), cutoff=6.5)
    assert found.sequence == "AGSV"
    assert found.labels == ("52", "52A", "52B", "53")
    assert pairs(found) == [(0, 2), (1, 3)]


def test_numbers_that_fall_without_a_bond_are_refused(pdb):
    lines = [atom("ALA", number, (3.0 * k, 0, 0)) for k, number in enumerate((5, 6, 2, 3))]
    with pytest.raises(ValueError, match="got 6 then 2"):
        contact_map(pdb(lines), gaps=True)


def test_choice_of_chain(pdb):
    lines = [*chain_on_a_line(3), "TER", *chain_on_a_line(5, chain="B"), "TER"]
    lines += [atom("HOH", 1, (50.0, 0, 0), name="O", chain="W", element="O")]
    path = pdb(lines)
    with pytest.raises(ValueError, match="several protein chains, name one of: A, B"):
        contact_map(path)
    assert contact_map(path, chain="B").length == 5
    with pytest.raises(ValueError, match="no protein chain 'W'; its protein chains: A, B"):
        contact_map(path, chain="W")


def test_choice_of_model(pdb):
    lines = ["MODEL        1", *chain_on_a_line(3), "ENDMDL"]
    lines += ["MODEL        2", *chain_on_a_line(3, step=1.9), "ENDMDL"]
    path = pdb(lines)
    assert pairs(contact_map(path)) == []
    assert pairs(contact_map(path, model=2)) == [(0, 2)]
    with pytest.raises(ValueError, match="no model 3; its models: 1, 2"):
        contact_map(path, model=3)


def test_mmcif_counts_missing_residues_by_the_true_sequence(tmp_path):
    columns = """group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id
        label_entity_id label_seq_id pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy
        B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"""
    # Author's numbers 10 11 20 hide nothing between 11 and 20; one residue is missing before 21.
    numbers = ((1, 10), (2, 11), (3, 20), (5, 21))
    rows = [
        f"ATOM {k + 1} C CA . GLY P 1 {seq} ? {3.0 * k} 0 0 1 0 {author} X 1"
        for k, (seq, author) in enumerate(numbers)
    ]
    text = ["data_small", "_entity.id 1", "_entity.type polymer", "_entity_poly.entity_id 1"]
    text += [
        "_entity_poly.type 'polypeptide(L)'",
        "loop_",
        *(f"_atom_site.{c}" for c in columns.split()),
    ]
    path = tmp_path / "small.cif"
    path.write_text("\n".join(text + rows) + "\n")
    with pytest.raises(ValueError, match=r"chain X: residues are missing \(1 between 20 and 21\)"):
        contact_map(path)
    found = contact_map(path, chain="X", gaps=True)
    assert found.sequence == "GGGG"
    assert found.labels == ("10", "11", "20", "21")
    assert pairs(found) == [(2, 3)]


def test_gzipped_file(tmp_path, pdb):
    path = pdb(chain_on_a_line(4, step=1.9))
    packed = tmp_path / "small.pdb.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert pairs(contact_map(packed)) == pairs(contact_map(path)) == [(0, 2), (1, 3)]


@pytest.mark.parametrize("name", ["small.pdb", "small.cif", "small.txt"])
@pytest.mark.parametrize("content", [b"", b"no structure\n", bytes(range(256)) * 20])
def test_a_file_that_is_no_structure(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="contact_map: ") as error:
        contact_map(path)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_coordinates_that_are_missing_are_refused(pdb):
    lines = chain_on_a_line()
    for broken, message in (
        (lines[2][:30] + "     nan" + lines[2][38:], "residue 3.* must be finite, got"),
        (lines[2] + "\n" + lines[2].replace(" CA ", " CB "), "residue 3.* two atoms at one place"),
        (lines[2] + "\n" + atom("ALA", 3, (5.0, 1.0, 0.0)), "residue 3.* has an atom twice"),
    ):
        with pytest.raises(ValueError, match=message):
            contact_map(pdb([*lines[:2], broken, *lines[3:]]))


def test_models_without_atoms_do_not_shift_the_others(pdb):
    near, far = chain_on_a_line(6, 1.0), chain_on_a_line(6, 9.0)
    models = [["MODEL        1", "ENDMDL"]]
    models += [[f"MODEL     {k:4d}", *one, "ENDMDL"] for k, one in ((2, near), (3, far))]
    path = pdb([line for model in models for line in model])
    assert len(contact_map(path, model=2).contacts) > 0
    assert len(contact_map(path, model=3).contacts) == 0


def test_residues_with_atoms_missing_are_counted(pdb):
    assert contact_map(pdb(chain_on_a_line())).provenance["incomplete_residues"] == 6
    assert native_2abd().provenance["incomplete_residues"] == 2  # the ends: SER 1 and ILE 86


def test_a_damaged_contact_map_is_one_line(tmp_path):
    path = tmp_path / "contacts.toml"
    native_2abd().save(path)
    text = path.read_text()
    damaged = re.sub(r"\[\d+, ", f"[{10**20}, ", text, count=1)
    for broken in (text.split("[provenance]")[0] + "provenance = 3\n", damaged):
        assert broken != text
        path.write_text(broken)
        with pytest.raises(ValueError, match="is not a contact map"):
            ContactMap.load(path)


def test_bad_arguments(tmp_path, pdb):
    path = pdb(chain_on_a_line(3))
    for options in ({"cutoff": 0.0}, {"cutoff": float("nan")}, {"min_separation": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            contact_map(path, **options)
    with pytest.raises(FileNotFoundError):
        contact_map(tmp_path / "absent.pdb")
    path = pdb([atom("HOH", 1, (0, 0, 0), name="O", element="O")])
    with pytest.raises(ValueError, match="no protein chain"):
        contact_map(path)


def test_save_and_load(tmp_path):
    provenance = {"text": 'quotes " and \\ and Å\x7f', "number": 3, "real": 0.1, "yes": True}
    saved = ContactMap("ACDE", np.array([[0, 2], [1, 3]]), ("1", "2", "2A", "7"), provenance)
    path = tmp_path / "map.toml"
    saved.save(path)
    loaded = ContactMap.load(path)
    assert loaded.sequence == saved.sequence
    assert loaded.labels == saved.labels
    assert loaded.provenance == saved.provenance
    assert (loaded.contacts == saved.contacts).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.toml"]
    text = path.read_text()
    for damaged in (
        text[:60],
        text.replace("map 1", "map 9"),
        text.replace("[1, 3]", "[3, 1]"),
        "",
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="is not a contact map"):
            ContactMap.load(path)


@pytest.mark.parametrize(
    ("sequence", "contacts", "message"),
    [
        ("AXA", [[0, 2]], "site 2"),
        ("AAA", [[0, 3]], "0..2"),
        ("AAA", [[2, 0]], "i < j"),
        ("AAA", [[0, 2], [0, 2]], "none twice"),
        ("AAA", [[1, 2], [0, 2]], "sorted"),
        ("AAA", [[0, 1, 2]], r"\(E, 2\)"),
    ],
)
def test_contact_map_refuses_what_does_not_fit(sequence, contacts, message):
    with pytest.raises(ValueError, match=message):
        ContactMap(sequence, np.array(contacts))


FIVE = [(3.0 * k, 0.0, 0.0) for k in range(5)]


@pytest.mark.parametrize(
    "between",
    [
        ["TER"],
        [atom("HOH", 90, (50.0, 0.0, 0.0), name="O", element="O").replace("ATOM  ", "HETATM")],
        [atom("SEC", 90, (7.5, 0.0, 0.0)).replace("ATOM  ", "HETATM")],
    ],
    ids=["TER", "water", "foreign residue"],
)
def test_a_chain_of_several_pieces_is_refused(pdb, between):
    first = [atom("ALA", k + 1, at) for k, at in enumerate(FIVE[:3])]
    second = [atom("ALA", k + 4, at) for k, at in enumerate(FIVE[3:])]
    refusal = r"chain A: residues must be one piece, got 3\(ALA\)"
    with pytest.raises(ValueError, match=refusal) as it:
        contact_map(pdb([*first, *between, *second]), gaps=True)
    assert "\n" not in str(it.value)
    assert contact_map(pdb([*first, *second])).length == 5


def test_what_follows_a_chain_is_no_second_piece(pdb):
    """Waters, ions (calcium is CA too) and free amino acids."""
    ion = atom(" CA", 80, (60.0, 0.0, 0.0), element="CA")
    others = [
        atom("HOH", 90, (50.0, 0.0, 0.0), name="O", element="O"),
        ion[:12] + "CA  " + ion[16:],
        atom("GLY", 91, (70.0, 0.0, 0.0)),
    ]
    hetero = [line.replace("ATOM  ", "HETATM") for line in others]
    chain = [atom("ALA", k + 1, at) for k, at in enumerate(FIVE)]
    assert contact_map(pdb([*chain, "TER", *hetero])).length == 5


@pytest.mark.parametrize("name", ["HA  ", "HB1 ", "HN  ", "HD1 ", "HG  ", "HE2 ", "HO  ", "1HB "])
def test_hydrogens_without_an_element_are_no_heavy_atoms(pdb, name):
    """Also where their names begin in the first column."""
    lines = [line[:76] for line in chain_on_a_line(step=4.5)]
    close = atom("ALA", 1, (6.0, 0.0, 0.0))[:76]
    found = contact_map(pdb([lines[0], close[:12] + name + close[16:], *lines[1:]]))
    assert pairs(found) == []


def test_hydrogens_choose_no_conformer_and_need_no_names_of_their_own(pdb):
    rest = chain_on_a_line()[1:]
    one = [
        atom("ALA", 1, (0.0, 0.0, 0.0), altloc="A", occupancy=0.4),
        atom("ALA", 1, (0.0, 1.0, 0.0), altloc="B", occupancy=0.6),
        atom("ALA", 1, (0.0, 2.0, 0.0), name="H", altloc="C", element="H"),
    ]
    assert contact_map(pdb([*one, *rest])).length == 6
    twice = [atom("ALA", 1, (0.0, k, 0.0), name="H", element="H") for k in (1.0, 2.0)]
    assert contact_map(pdb([chain_on_a_line()[0], *twice, *rest])).length == 6


def test_the_first_model_is_read_whatever_its_number(pdb):
    lines = chain_on_a_line()
    for number in (0, 5):
        found = contact_map(pdb([f"MODEL     {number:4d}", *lines, "ENDMDL"]))
        assert (found.length, found.provenance["model"]) == (6, number)


@pytest.mark.parametrize("contacts", ["[[0, 2, 1], [3, 1, 5]]", "[[0.9, 2.2]]", "[[true, 2]]"])
def test_contacts_of_a_map_are_pairs_of_sites(tmp_path, contacts):
    path = tmp_path / "map.toml"
    native_2abd().save(path)
    text = path.read_text()
    head, tail = text.split("contacts = [")
    after = tail.partition("\n]")[2]
    path.write_text(f"{head}contacts = {contacts}{after}")
    with pytest.raises(ValueError, match=r"is not a contact map .*a contact must be two sites"):
        ContactMap.load(path)


def test_a_cutoff_beyond_all_distances(pdb):
    assert len(contact_map(pdb(chain_on_a_line(4)), cutoff=1e200).contacts) == 3
