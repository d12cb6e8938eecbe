"""The command line of the bits half: options defined once, trust in a checkpoint's code, what Ctrl-C says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer

from apportion.cli import main
from apportion.cli.base import app, emit
from apportion.cli.options import PlaceOptions, RecipeOptions
from apportion.core.errors import ApportionError

BITS = ("quantize", "samples", "sensitivity", "plan", "apply", "perplexity", "compare")
OTHER_MEANING = {  # (command, option): the same word for something else, or another default
    ("compare", "avg_bits"),  # a grid
    ("compare", "apply_rounding"),  # nothing is written
    ("perplexity", "windows"),  # of the text to be judged
    ("quantize", "method"),  # has auto
    *((command, "out") for command in ("sensitivity", "plan")),  # a file
}


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["apportion", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def options() -> dict[str, dict[str, tuple[object, ...]]]:
    """Per command of this half: help and default of every option."""
    from apportion.cli import bits, compare  # noqa: F401

    commands = typer.main.get_command(app).commands
    return {
        command: {option.name: (option.opts, option.help, option.default) for option in commands[command].params}
        for command in BITS
    }


def test_an_option_is_the_same_in_every_command() -> None:
    seen: dict[str, tuple[object, ...]] = {}
    for command, own in options().items():
        for name, option in own.items():
            if (command, name) not in OTHER_MEANING and name != "help":
                assert seen.setdefault(name, option) == option, f"{command} --{name}"


def test_commands_that_measure_have_every_option_of_measuring() -> None:
    found = options()
    for command in ("quantize", "samples", "compare"):
        for group in (RecipeOptions, PlaceOptions):
            assert set(group.__dataclass_fields__) <= set(found[command])


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    got = {}

    def take(model: str, out: Path, ask: object, recipe: object, *, resume: bool) -> None:
        got.update(ask=ask, recipe=recipe, resume=resume)
        raise ApportionError("enough")

    monkeypatch.setattr("apportion.bits.quantize.quantize", take)
    words = "--avg-bits 3 --evaluations 7 --finalists 2 --alpha 0.25 --rounding nearest --apply-rounding quanto"
    more = "--seed 4 --windows 5 --dtype float32 --trust-remote-code --group-size 16 --resume"
    assert run_main(monkeypatch, "quantize", "m", "--out", tmp_path / "o", *words.split(), *more.split()) == 1
    ask, recipe = got["ask"], got["recipe"]
    assert (ask.avg_bits, ask.method, ask.evaluations, ask.finalists, ask.alpha) == (3.0, "auto", 7, 2, 0.25)
    assert (ask.dtype, ask.trust_remote_code, got["resume"]) == ("float32", True, True)
    searched = recipe.for_method("auto")
    assert [width.name for width in searched.grid()] == ["w2g16", "w4g16"]  # quanto has no 3 bits
    assert searched.players == "linears"
    assert (recipe.seed, recipe.windows, recipe.group_size, recipe.permutations) == (4, 5, 16, 100)
    assert (
        run_main(monkeypatch, "quantize", "m", "--out", tmp_path / "o", "--method", "coopq", "--widths", "2,w4g64") == 1
    )
    published = got["recipe"].for_method("coopq")
    assert ([width.name for width in published.grid()], published.players) == (["w2g64", "w4g64"], "blocks")


@pytest.mark.parametrize(
    ("where", "words", "trusted"),
    [
        ("apportion.bits.perplexity.perplexity", ("perplexity", "m", "--text", "t"), True),
        ("apportion.bits.apply.apply", ("apply", "m", "PLAN", "--out", "o"), True),
        ("apportion.bits.apply.apply", ("apply", "m", "PLAN", "--out", "o"), False),
    ],
)
def test_code_is_run_where_the_command_says_so(
    where: str, words: tuple[str, ...], trusted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    got: list[bool] = []

    def take(*_: object, trust_remote_code: bool, **__: object) -> None:
        got.append(trust_remote_code)
        raise ApportionError("enough")

    monkeypatch.setattr(where, take)
    monkeypatch.setattr("apportion.bits.plan.plan_from", lambda content: None)
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    given = [str(plan) if word == "PLAN" else word for word in words]
    assert run_main(monkeypatch, *given, *["--trust-remote-code"] * trusted) == 1
    assert got == [trusted]


@pytest.mark.parametrize(
    ("where", "words", "resumes"),
    [
        ("apportion.bits.perplexity.perplexity", ("perplexity", "m", "--text", "t"), False),
        ("apportion.bits.quantize.quantize", ("quantize", "m", "--out", "o", "--avg-bits", "3"), True),
        ("apportion.demo.show.show", ("demo", "--out", "o"), False),
    ],
)
def test_ctrl_c_names_resume_only_where_it_is(
    where: str,
    words: tuple[str, ...],
    resumes: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    assert run_main(monkeypatch, *words) == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted: ")
    assert ("--resume" in said) == resumes
    assert resumes or "run the same command again" in said


def test_untied_samples_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    words = ("samples", checkpoint(), "--players", "linears", "--untie", "--out", tmp_path / "s")
    assert run_main(monkeypatch, *words) == 1
    assert "--untie: nearest writes compressed-tensors" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--players", "heads"), "--players heads: unknown\n  remedy: choose from blocks, linears"),
        (("--apply-rounding", "magic"), "error: --apply-rounding magic: unknown"),
        (("--widths", "4"), "--widths w4g64: expected at least two"),
        (("--embedding-bits", "\u00b2"), "--embedding-bits \u00b2: expected bits with commas"),
        (("--calibration", "caf\udce9.txt"), "'caf\\udce9.txt': is not UTF-8"),
        (("--method", "regression", "--widths", "2,3,4"), "only w2g64 and w4g64 of --widths w2g64,w3g64,w4g64"),
        (("--rounding", "magic", "--method", "coopq", "--untie"), "error: --rounding magic: unknown"),
    ],
)
def test_refusals_before_the_model_is_looked_for(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "quantize", "/absent", "--out", "/absent/out", "--avg-bits", "3", *words) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert "2 values" not in shown or words[0] == "--method"


def test_json_holds_numpy_numbers_and_paths(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": np.float64(0.5), "b": Path("x")}, as_json=True, text="")
    assert json.loads(capsys.readouterr().out) == {"a": 0.5, "b": "x"}
