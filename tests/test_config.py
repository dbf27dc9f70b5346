"""Settings: presets load, resolve to themselves, and every mistake is one line that names the
key."""

from __future__ import annotations

from pathlib import Path

import pytest

from thermosphere.runs.config import Config
from thermosphere.runs.config_reading import PRESETS, load_config, preset_text
from thermosphere.runs.run_directory import RunDirectory, first_difference


def load(text: str, *changes: str) -> Config:
    return load_config(text, where="here.toml", changes=changes)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_resolve_to_themselves(name: str) -> None:
    config = load(preset_text(name))
    assert load(config.to_toml()) == config
    assert config.to_toml() == load(config.to_toml()).to_toml()


def test_demo_is_what_it_is_said_to_be() -> None:
    demo = load(preset_text("demo"))
    assert demo.structure.file is None
    assert demo.sequences.count == 15_000
    assert (demo.data.train, demo.data.validation, demo.data.test) == (1_000, 1_000, 13_000)
    assert set(demo.models) == {"tf1-small", "tf1"}
    for model in demo.models.values():
        assert len(model.sampling.temperatures) >= 8
        assert model.sampling.chains >= 2


def test_defaults_spread_to_the_models_that_do_not_set_them() -> None:
    config = load(
        "[sampling]\nchains = 5\ndraws = 7\n[models.tf1.sampling]\ndraws = 9\n[models.tf4]\n"
    )
    assert config.models["tf1"].sampling.chains == 5
    assert config.models["tf1"].sampling.draws == 9
    assert config.models["tf4"].sampling.draws == 7


def test_set_replaces_one_key() -> None:
    text = preset_text("smoke")
    config = load(text, "models.tf1-small.sampling.draws=3", "sequences.fasta=true", "seed=4")
    assert config.models["tf1-small"].sampling.draws == 3
    assert config.sequences.fasta
    assert config.seed == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = ", "here.toml: not TOML"),
        ("sed = 1", "here.toml: unknown key 'sed'; did you mean 'seed'"),
        ("seed = -1", "here.toml: seed: Expected `int` >= 0, got -1"),
        ("[sampling]\ntemperature = [1e-4]", "unknown key 'temperature'; did you mean"),
        ("[sampling]\ntemperatures = []", "temperatures: Expected `array` of length >= 1, got []"),
        ("[sampling]\ntemperatures = [1e-3, 1e-4]", "temperatures: expected rising"),
        ("[pilot]\nexact_at = [3.0, 1.25]", "pilot.exact_at: expected rising, got [3.0, 1.25]"),
        ("[pilot]\nexact_at = [0.0]", "pilot.exact_at[0]: Expected `float` > 0.0, got [0.0]"),
        ("[pilot]\nexact_step = 5", "unknown key 'exact_step'; did you mean 'exact_steps'"),
        (
            "[pilot]\nexact_gradients = 300",
            "pilot.exact_gradients must be >= 10 exact_steps = 350, got 300",
        ),
        (
            "[pilot]\nexact_at = [1.0]\n[sampling]\nconstrained = false",
            "pilot.exact_at needs sampling.constrained = true: hybrid Monte Carlo samples the",
        ),
        (
            "[sampling]\nscheme = 'verlet'",
            "models.tf1-small.sampling.scheme: expected 'leapfrog' or 'paper', got 'verlet'",
        ),
        (
            "[sampling]\ntemperatures = 'hot'",
            "sampling.temperatures: expected a list of numbers or 'auto', got 'hot'",
        ),
        ("[sampling]\ndraws = 1.5", "draws: Expected `int`, got `float`"),
        ("[sampling]\nt_ratio = 0.8", "t_ratio must be in (0, 0.5], got 0.8"),
        ("[sampling]\ntest_sequences = 20000", "test_sequences must be <= data.test = 13000"),
        ("[models.tf2]", "models.tf2: expected one of tf1"),
        ("models = 3", "models: expected tables"),
        ("[models]\ntf1 = 3", "models.tf1: expected a table"),
        ("[data]\ntrain = 15000", "train + validation + test must be <= sequences.count"),
        ("[data]\nmask_rate = 1.0", "data.mask_rate: Expected `float` < 1"),
        ("[sequences]\ntemperature = 30.0", "hot_temperature must be > temperature = 30.0"),
        ("[sequences]\ngaps = true", "sequences.gaps needs sequences.couplings, got True"),
        ("[sequences]\ntriangle = 'upper'", "sequences.triangle needs sequences.interactions"),
        (
            "[sequences]\ncouplings = 'a'\ninteractions = 'b'",
            "sequences.interactions is of a contact map's model, and sequences.couplings is an",
        ),
        ("interaction_seed = 2\n[sequences]\ncouplings = 'a'", "interaction_seed is of a contact"),
        (
            "interaction_seed = 2\n[sequences]\ninteractions = 'a'",
            "sequences.interactions needs no",
        ),
        ("interaction_seed = 2\n[sequences]\nfile = 'a'", "and sequences.file needs none, got 2"),
        (
            "[sequences]\ncouplings = 'a'\nmoves = 'swap'",
            "sequences.moves = 'swap' keeps the composition of a structure's sequence and needs a "
            "structure.file",
        ),
        ("[sequences]\ncouplings = 'a'\nfile = 'b'", "couplings needs sampled sequences, got 'a'"),
    ],
)
def test_mistakes_are_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is checked below
        load(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_exact_check_is_on_the_cpu() -> None:
    text = '[models.tf1.sampling]\ndevice = "cuda"\nbackend = "triton"\ndraws = 7'
    there = load(text).models["tf1"].sampled_on_cpu().sampling
    assert (there.device, there.backend, there.draws) == ("cpu", "auto", 7)
    plain = load('[models.tf1.sampling]\nbackend = "autograd"').models["tf1"]
    assert plain.sampled_on_cpu() == plain


@pytest.mark.parametrize("change", ["seed", "=3", "a..b=1", "seed.deep=3"])
def test_bad_set_is_refused(change: str) -> None:
    with pytest.raises(ValueError, match=r"--set|seed"):
        load("seed = 1", change)


def test_what_may_change_in_a_run_that_is_there() -> None:
    def difference(*changes: str, settled: str = "", grows: bool = True) -> str | None:
        new = load(preset_text("smoke"), *changes)
        longer = (".draws", ".max_epochs") if grows else ()
        return first_difference(
            old, new, lambda key: key.startswith(settled), lambda key: key.endswith(longer)
        )

    old = load(preset_text("smoke"))
    draws = "models.tf1-small.sampling.draws"
    assert difference() is None
    assert difference(f"{draws}=50", "analysis.tolerance=2") is None
    assert "sampling.draws: saved 6, now 1" in str(difference(f"{draws}=1"))
    assert "sampling.draws: saved 6, now 50" in str(difference(f"{draws}=50", grows=False))
    assert difference("seed=9") == "seed: saved 0, now 9"
    # What has no results yet may change.
    assert difference("seed=9", settled="models") is None
    assert difference("structure.file=a.pdb", "data.train=90", settled="models") is None
    assert difference("training.max_epochs=50", settled="models") is None
    assert difference("training.warmup=50", settled="structure") is None
    assert "warmup: saved 20, now 50" in str(difference("training.warmup=50", settled="models"))


def test_training_that_is_done_gets_no_longer(tmp_path: Path) -> None:
    text = preset_text("smoke")
    RunDirectory.open(tmp_path, load(text))
    own = tmp_path / "tf1-small"
    own.mkdir()
    (own / "stage1.checkpoint.safetensors").touch()
    longer = load(text, "training.max_epochs=50")
    RunDirectory.open(tmp_path, longer)
    (own / "stage1.safetensors").touch()
    with pytest.raises(ValueError, match=r"training\.max_epochs: saved 50, now 60"):
        RunDirectory.open(tmp_path, load(text, "training.max_epochs=60"))
    changes = ("training.max_epochs=50", "training.reference_epochs=70")
    RunDirectory.open(tmp_path, load(text, *changes))
    (own / "references.safetensors").touch()
    with pytest.raises(ValueError, match=r"training\.reference_epochs: saved 70, now 80"):
        RunDirectory.open(tmp_path, load(text, changes[0], "training.reference_epochs=80"))
    with pytest.raises(ValueError, match=r"training\.warmup"):
        RunDirectory.open(tmp_path, load(text, *changes, "training.warmup=50"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("structure.cutoff=8.0", "structure.cutoff needs a structure.file, got 8.0"),
        ("structure.chain=Z", "structure.chain needs a structure.file, got 'Z'"),
        (
            "sampling.temperatures=[inf]",
            "sampling.temperatures: expected finite numbers, got [inf]",
        ),
        ("analysis.min_separation=0", "analysis.min_separation: Expected `int` >= 1, got 0"),
        ("sampling.variance_floor=-1.0", "variance_floor: Expected `float` > 0.0, got -1.0"),
    ],
)
def test_settings_that_would_do_nothing_or_fail_late(change: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is checked below
        load(preset_text("smoke"), change)
    assert message in str(error.value)


def test_own_sequences_leave_no_room_for_sampled_ones() -> None:
    with pytest.raises(ValueError, match=r"sequences.temperature needs sampled sequences, got 0.5"):
        load("[sequences]\nfile = 'x.fasta'\ntemperature = 0.5")


def test_couplings_bring_mutations_unless_swaps_are_asked_for() -> None:
    given = load("[sequences]\ncouplings = 'a'")
    assert given.sequences.moves == "mutation"
    assert not given.has_contacts
    both = load("[structure]\nfile = 'a.pdb'\n[sequences]\ncouplings = 'a'\nmoves = 'swap'")
    assert both.sequences.moves == "swap"
    assert both.has_contacts
    for config in (given, both):
        assert load(config.to_toml()) == config


def test_files_are_relative_to_the_settings_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = "[structure]\nfile = 'my.pdb'\n[sequences]\ncouplings = 'my.dat'"
    config = load_config(text, where="x", path_base=tmp_path)
    assert config.sequences.couplings == str((tmp_path / "my.dat").resolve())
    assert config.structure.file == str((tmp_path / "my.pdb").resolve())


def test_files_of_set_are_relative_to_where_it_is_said(tmp_path) -> None:  # type: ignore[no-untyped-def]
    settings, here = tmp_path / "settings", tmp_path / "here"
    config = load_config(
        "[sequences]\ninteractions = 'mj.txt'\n[structure]\nfile = 'my.pdb'",
        where="x",
        changes=["sequences.interactions=other.txt"],
        path_base=settings,
        changes_base=here,
    )
    assert config.sequences.interactions == str((here / "other.txt").resolve())
    assert config.structure.file == str((settings / "my.pdb").resolve())


def test_set_of_all_models_is_for_all_models() -> None:
    """Whatever a preset, or the printed settings, say of one."""
    printed = load(preset_text("demo")).to_toml()
    for text in (printed, preset_text("demo")):
        changes = ["sampling.draws=7", "training.runs=2", "models.tf1.sampling.draws=9"]
        config = load(text, *changes)
        assert {name: own.sampling.draws for name, own in config.models.items()} == {
            "tf1-small": 7,
            "tf1": 9,
        }
        assert {own.training.runs for own in config.models.values()} == {2}
    added = load(preset_text("smoke"), "models.ff={}", "sampling.draws=7")
    assert added.models["ff"].sampling == added.models["tf1-small"].sampling


def test_couplings_given_to_printed_settings_bring_mutations() -> None:
    printed = load("[structure]\nfile = 'a.pdb'").to_toml()
    assert load(printed, "sequences.couplings='a.dat'").sequences.moves == "mutation"
    asked = load(printed, "sequences.couplings='a.dat'", "sequences.moves='swap'")
    assert asked.sequences.moves == "swap"
    assert load(asked.to_toml()).sequences.moves == "swap"
    again = load(asked.to_toml(), "sequences.couplings='b.dat'")  # which had some before
    assert again.sequences.moves == "swap"


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="expected one of demo, laptop, paper, smoke, got 'dmo'"):
        preset_text("dmo")


def test_settings_of_before_models_were_found_are_read() -> None:
    assert load("[structure]\nmodel = 1").structure.model == 1
    with pytest.raises(ValueError, match=r"structure.model needs a structure.file, got 2"):
        load("[structure]\nmodel = 2")
