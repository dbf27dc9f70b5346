"""The command line: verbs only. Most are one stage of runs/pipeline.py on a run's directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thermosphere.runs.config import Config

STUDY = ("cool", "exact")  # stages of `reproduce` alone

EXIT_FAILED = 1  # a run that stopped: the sphere was left, the ladder did not reach its target
EXIT_USAGE = 2  # a wrong file, value or key
EXIT_INTERRUPTED = 130

STAGES = {
    "contacts": "structure → contact map",
    "sequences": "contact map or couplings → Potts sequences by adaptive simulated tempering",
    "dataset": "sequences → masks and splits",
    "train": "data set → early-stopped and over-trained weights",
    "ladder": 'early-stopped weights → T* and a ladder around it (temperatures = "auto")',
    "calibrate": "early-stopped weights → gradients and friction that mix fastest "
    "(used where sampling.calibrated = true)",
    "sample": "early-stopped weights → weights sampled on the sphere at every temperature",
    "cool": "samples → a second set, from the other side: the ladder walked down, and up where ES "
    "weights lie above",
    "exact": "samples → the same temperatures by hybrid Monte Carlo, which has no bias "
    "(used where pilot.exact_at is set)",
    "report": "samples → thermodynamics, attention and contacts: figures, table and report.html",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 a run failed, 2 wrong input, 130
    interrupted)."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.verb(parsed)
    except (ValueError, OSError) as error:
        print(f"thermosphere: {_line(error)}", file=sys.stderr)
        return EXIT_USAGE
    except RuntimeError as error:
        print(f"thermosphere: {_line(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(
            "thermosphere: interrupted; --resume goes on from the last checkpoint", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    return 0


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thermosphere",
        description="Sample the weights of small transformers at a fixed temperature, "
        "on a sphere of constant norm.",
        epilog="Every stage reads and writes one directory (--output). `run` does them all.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    doctor = verbs.add_parser("doctor", help="what is installed, compiled and used")
    doctor.set_defaults(verb=_doctor)

    config = verbs.add_parser(
        "config", help="print the settings, resolved", description=_described("config")
    )
    _add_settings(config)
    config.set_defaults(verb=_config)

    run = verbs.add_parser(
        "run", help="all stages, ending with the report", description=_described("run")
    )
    _add_stage_arguments(run)
    run.set_defaults(verb=_stages, stages=tuple(stage for stage in STAGES if stage not in STUDY))

    reproduce = verbs.add_parser(
        "reproduce",
        help="the paper's study: ladders found, settings calibrated, two sets of samples, figures",
        description=_described("reproduce"),
    )
    _add_stage_arguments(reproduce, preset="laptop")
    _add_destination(reproduce)
    # Twice: where the two sets differ, both go on.
    both = {"cool": ("cool", "sample", "cool")}
    twice = tuple(one for stage in STAGES for one in both.get(stage, (stage,)))
    reproduce.set_defaults(verb=_reproduce, stages=twice)

    for name, about in STAGES.items():
        stage = verbs.add_parser(name, help=about, description=f"{about}.  {_described(name)}")
        _add_stage_arguments(stage)
        stage.set_defaults(verb=_stages, stages=(name,))

    publish = verbs.add_parser(
        "publish",
        help="a finished run → README.md with the paper's figures, their data and verdicts",
        description="Write what a finished run says of the paper: README.md, for every product a "
        "figure (PNG) and its data (CSV), and for each claim whether the run agrees. What the page "
        "is made of is kept in DEST/kept: models published there before stay on the page, and "
        "without -o it is made again of them alone.",
    )
    _add_directory(publish, required=False)
    _add_destination(publish)
    publish.set_defaults(verb=_publish)

    embedding = verbs.add_parser(
        "embedding",
        help="the effective embedding dimension of a finished run's models",
        description="Count the elements of every norm's gain and bias that are away from zero, in "
        "samples, ES and OT: the embedding dimension that the model needs.",
    )
    _add_directory(embedding)
    embedding.add_argument("--model", metavar="NAME", help="one model (default: all of the run)")
    embedding.add_argument(
        "--retrain",
        nargs="?",
        type=int,
        const=0,
        metavar="D",
        help="train the model again at this embedding dimension (default: the one found), m = 4 d, "
        "and compare test errors; writes MODEL/embedding.safetensors",
    )
    embedding.add_argument("--resume", action="store_true", help="go on with a killed retraining")
    embedding.set_defaults(verb=_embedding)
    return parser


def _described(verb: str) -> str:
    if verb == "config":
        return "Print the settings of a preset or file with every default written out, as TOML."
    if verb == "run":
        return (
            f"Run every stage but {' and '.join(STUDY)}: "
            + ", ".join(stage for stage in STAGES if stage not in STUDY)
            + ". Finished stages are kept with --resume."
        )
    if verb == "reproduce":
        return (
            "Run every stage: " + ", ".join(STAGES) + " (sample and cool twice: where the two sets "
            "differ, both go on); then publish. Finished stages are kept with --resume."
        )
    return "Settings come from a preset or a TOML file, or from the config.toml of the directory."


def _add_destination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", type=Path, metavar="DEST", help="directory written (default: DIR/study)"
    )


def _add_settings(parser: argparse.ArgumentParser, *, preset: str = "demo") -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--preset", help=f"built-in settings: demo, laptop, paper, smoke; default {preset}"
    )
    parser.set_defaults(default_preset=preset)
    source.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in TOML (see `thermosphere config`)"
    )
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace one setting, e.g. models.tf1.sampling.draws=200; repeatable",
    )
    parser.add_argument("--structure", metavar="FILE", help="PDB or mmCIF file of your own protein")
    parser.add_argument("--chain", help="chain of --structure")
    parser.add_argument(
        "--sequences", metavar="FILE", help="your own sequences, FASTA or one a line"
    )
    parser.add_argument(
        "--couplings",
        metavar="FILE",
        help="sample sequences from the fields and couplings of direct-coupling analysis "
        "(text of bmDCA, adabmDCA or CCMpred); needs no --structure",
    )
    parser.add_argument(
        "--device",
        help="where weights are sampled: cpu or cuda (default: the setting sampling.device)",
    )


def _add_stage_arguments(parser: argparse.ArgumentParser, *, preset: str = "demo") -> None:
    _add_settings(parser, preset=preset)
    _add_directory(parser)
    parser.add_argument(
        "--resume", action="store_true", help="keep finished stages, go on with a killed one"
    )
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="NAME",
        help="work on this model of the settings only; repeatable (default: all). Once dataset.npz "
        "is there, processes with different models may share a directory from train to cool",
    )


def _add_directory(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=required, metavar="DIR", help="the run's directory"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _doctor(parsed: argparse.Namespace) -> None:
    from thermosphere.doctor import doctor

    findings = doctor()
    width = max(len(what) for what, _ in findings)
    for what, finding in findings:
        print(f"{what:<{width}}  {finding}")


def _config(parsed: argparse.Namespace) -> None:
    print(_settings(parsed).to_toml(), end="")


def _stages(parsed: argparse.Namespace) -> None:
    from thermosphere.runs import pipeline
    from thermosphere.runs.sequence_model import check_readable

    _set_threads(parsed)
    saved = parsed.output / "config.toml"
    if saved.is_file() and parsed.preset is None and parsed.config is None:
        parsed.config = saved  # the run's own settings; --set and the flags change them
    config = _settings(parsed)
    before = saved.read_text(encoding="utf-8") if saved.is_file() else None
    if "sample" in parsed.stages:  # before hours of other stages
        _check_devices(config, parsed.models)
    there = [(parsed.output / name).exists() for name in ("sequences.npz", "sequences.fasta")]
    if {"sequences", "dataset"} <= set(parsed.stages) and not any(there):
        check_readable(config, parsed.output / "contacts.toml")
    run = pipeline.Run.open(
        parsed.output,
        config,
        resume=parsed.resume,
        progress=not parsed.quiet,
        only=parsed.models,
    )
    at = 0
    try:
        for at, stage in enumerate(parsed.stages):
            again = stage in parsed.stages[:at]
            one = replace(run, resume=True) if again else run
            one.do(stage, alone=len(parsed.stages) == 1)
    except (ValueError, OSError):
        # The settings may be what was wrong; no stage that takes them up has done anything.
        stage = parsed.stages[at]
        first = at == 0 and stage in ("sequences", "dataset") and not run.has_output(stage)
        if not run.has_results or stage == "contacts" or first:
            if before is None:
                saved.unlink()
            else:
                saved.write_text(before, encoding="utf-8")
        raise


def _reproduce(parsed: argparse.Namespace) -> None:
    _stages(parsed)
    _publish(parsed)


def _publish(parsed: argparse.Namespace) -> None:
    from thermosphere.runs.pipeline import open_finished
    from thermosphere.runs.publish import publish
    from thermosphere.runs.studied_run import StudiedRun

    _set_threads(parsed)
    show = not parsed.quiet
    if parsed.output is None:
        if parsed.to is None:
            raise ValueError("publish: needs a run, -o DIR, or what was published before, --to")
        print(publish(parsed.to, progress=show))
        return
    run, models = open_finished(parsed.output)
    if chosen := getattr(parsed, "models", []):  # of reproduce, which has sampled them
        models = [name for name in models if name in chosen]
    studied = StudiedRun.read(run.directory, run.config, models=models, progress=show)
    print(publish(parsed.to or run.directory / "study", studied, progress=show))


def _embedding(parsed: argparse.Namespace) -> None:
    from thermosphere.runs import embedding_dimension as procedure
    from thermosphere.runs.pipeline import open_finished

    _set_threads(parsed)
    run, models = open_finished(parsed.output)
    if parsed.model is not None and parsed.model not in run.config.models:
        expected = ", ".join(run.config.models)
        raise ValueError(f"--model: expected one of {expected}, got {parsed.model!r}")
    names = models if parsed.model is None else [parsed.model]
    run.check_sampled(names)
    if parsed.retrain and all(reasons := [procedure.unsuited(n, parsed.retrain) for n in names]):
        raise ValueError("; ".join(dict.fromkeys(reasons)))
    for name in names:
        study = procedure.dimension_study(run.directory, run.config, name)
        print(procedure.dimension_text(study))
        dimension = parsed.retrain or procedure.found_dimension(study)
        if parsed.retrain is None or dimension is None:
            continue
        if len(names) > 1 and (why := procedure.unsuited(name, dimension)):
            print(why)
            continue
        found = procedure.retrain(
            run.directory,
            name,
            dimension,
            run.config.models[name],
            run.config.seed,
            resume=parsed.resume,
            progress=not parsed.quiet,
        )
        print(found.sentence())


def _set_threads(parsed: argparse.Namespace) -> None:
    if parsed.threads is None:
        return
    if parsed.threads < 1:
        raise ValueError(f"--threads must be >= 1, got {parsed.threads}")
    import torch

    torch.set_num_threads(parsed.threads)


def _settings(parsed: argparse.Namespace) -> Config:
    config = _loaded(parsed)
    if parsed.device is None:
        return config
    return config.sampled_on(parsed.device, getattr(parsed, "models", ()))


def _loaded(parsed: argparse.Namespace) -> Config:
    from thermosphere.runs.config_reading import load_config, preset_text

    changes = list(parsed.changes)
    here = Path.cwd()
    for key, value in (
        ("structure.file", parsed.structure),
        ("sequences.file", parsed.sequences),
        ("sequences.couplings", parsed.couplings),
    ):
        if value is not None:
            changes.append(f"{key}={(here / value).resolve()}")
    if parsed.chain is not None:
        changes.append(f"structure.chain={parsed.chain!r}")
    if parsed.config is not None:
        try:
            text = parsed.config.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{parsed.config}: not UTF-8 text ({error.reason})") from error
        return load_config(
            text,
            where=str(parsed.config),
            changes=changes,
            path_base=parsed.config.parent,
            changes_base=here,
        )
    preset = parsed.preset or parsed.default_preset
    return load_config(
        preset_text(preset),
        where=f"preset {preset}",
        changes=changes,
        path_base=here,
        changes_base=here,
    )


def _check_devices(config: Config, chosen: Sequence[str]) -> None:
    from thermosphere.runs.device import sampling_device

    for name, model in config.models.items():
        if chosen and name not in chosen:
            continue
        sampling = model.sampling
        where = f"models.{name}.sampling.device"
        sampling_device(sampling.device, where, sampling.backend, sampling.batch)


if __name__ == "__main__":
    sys.exit(main())
