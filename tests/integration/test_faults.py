"""Killed, out of disk, or asked the wrong thing: nothing finished is lost, nothing half-written is taken for whole."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apportion.bits.game import load_samples
from apportion.core.artifact import read_manifest
from apportion.core.errors import ArtifactError
from apportion.core.log import read_log

SETTINGS = ("--windows", "4", "--window-tokens", "24", "--group-size", "32", "--permutations", "24", "--device", "cpu")
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from apportion.cli import main
main()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*words: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-m", "apportion"] if limit is None else ["-c", LIMITED, str(limit)]
    command = [sys.executable, *start, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)


def samples_command(model: Path, text: Path, out: Path) -> tuple[object, ...]:
    return ("samples", model, "--calibration", text, "--out", out, *SETTINGS)


def lines_in(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_after(
    command: tuple[object, ...], log: Path, lines: int, how: signal.Signals = signal.SIGKILL
) -> tuple[int, str]:
    """Start a command and end it once its log has grown by some lines; returns its exit code and messages."""
    before = lines_in(log)
    process = subprocess.Popen(
        [sys.executable, "-m", "apportion", *map(str, command)],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while lines_in(log) < before + lines and process.poll() is None:
        assert time.monotonic() < deadline, "the log does not grow"
        time.sleep(0.001)
    process.send_signal(how)
    _, messages = process.communicate()
    return process.returncode, messages


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_three_random_moments_and_resumed(checkpoint, text_file, tmp_path, seed):
    model = checkpoint("llama", blocks=6)
    assert run(*samples_command(model, text_file, tmp_path / "whole")).returncode == 0
    broken, log = tmp_path / "broken", tmp_path / "broken" / "values.log"
    moments, codes = random.Random(seed), []
    for resume in ([], ["--resume"], ["--resume"]):
        code, _ = kill_after((*samples_command(model, text_file, broken), *resume), log, moments.randint(2, 9))
        assert (broken / "samples.json").exists() == (code == 0)  # on a busy machine a run may end before it is killed
        codes.append(code)
    assert codes[0] == -signal.SIGKILL
    assert run(*samples_command(model, text_file, broken), "--resume").returncode == 0
    whole, resumed = load_samples(tmp_path / "whole"), load_samples(broken)
    assert {k: v.tolist() for k, v in resumed.values.items()} == {k: v.tolist() for k, v in whole.values.items()}
    _, records, _ = read_log(log)
    assert len(records) == len({record["assignment"] for record in records})  # nothing finished was done twice
    assert resumed.counts["resumed_evaluations"] + resumed.counts["evaluations"] == len(records)


def test_an_interrupted_run_fails_and_says_how_to_go_on(checkpoint, text_file, tmp_path):
    command = samples_command(checkpoint("llama", blocks=6), text_file, tmp_path / "s")
    code, messages = kill_after(command, tmp_path / "s" / "values.log", 3, signal.SIGINT)
    assert code == 130
    assert "--resume" in messages
    assert "Traceback" not in messages
    assert run(*command, "--resume").returncode == 0


def test_a_full_disk_is_an_error_and_the_run_goes_on_later(checkpoint, text_file, tmp_path):
    model, out = checkpoint("llama", blocks=6), tmp_path / "out"
    command = ("quantize", model, "--avg-bits", "3", "--calibration", text_file, "--out", out, "--fast", *SETTINGS)
    full = run(*command, limit=4000)
    assert full.returncode == 1
    assert "cannot be written" in full.stderr
    assert "Traceback" not in full.stderr
    with pytest.raises(ArtifactError, match="not complete"):
        read_manifest(out)
    assert not (out / "config.json").exists()
    done = run(*command, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["resumed_evaluations"] > 0
    assert {**read_manifest(out)["result"], "out": str(out)} == result


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quantize", "/no/such", "--avg-bits", "3", "--out", "OUT"), "MODEL /no/such: no such folder"),
        (("quantize", "MODEL", "--out", "OUT"), "exactly one of --avg-bits, --max-bytes and --bits-per-weight"),
        (("quantize", "MODEL", "--avg-bits", "9", "--out", "OUT"), "--avg-bits 9.0: expected from 2"),
        (("quantize", "MODEL", "--max-bytes", "24XB", "--out", "OUT"), "--max-bytes 24XB: not a size"),
        (("quantize", "MODEL", "--max-bytes", "1MB", "--keep", "norms", "--out", "OUT"), "--keep norms: unknown"),
        (("quantize", "MODEL", "--max-bytes", "1MB", "--embedding-bits", "4;8", "--out", "OUT"), "bits with commas"),
        (("quantize", "MODEL", "--format", "gguf", "--keep", "head", "--out", "OUT"), "--keep: only for checkpoints"),
        (
            (
                "quantize",
                "MODEL",
                "--format",
                "gguf",
                "--max-bytes",
                "1MB",
                "--avg-bits",
                "3",
                "--windows",
                "32",
                "--fast",
                "--out",
                "OUT",
            ),
            "--avg-bits, --fast, --windows: only for checkpoints",
        ),
        (("quantize", "MODEL", "--avg-bits", "3", "--plans", "24", "--out", "OUT"), "--plans: only for GGUF files"),
        (("quantize", "MODEL", "--bits-per-weight", "100", "--out", "OUT"), "above 0 and at most 32"),
        (("quantize", "MODEL", "--avg-bits", "3", "--widths", "two", "--out", "OUT"), "--widths two"),
        (("quantize", "MODEL", "--avg-bits", "3", "--method", "magic", "--out", "OUT"), "choose from"),
        (("quantize", "MODEL", "--avg-bits", "3", "--alpha", "7", "--out", "OUT"), "--alpha 7.0"),
        (("quantize", "MODEL", "--avg-bits", "3", "--device", "tpu9", "--out", "OUT"), "--device tpu9"),
        (("quantize", "MODEL", "--avg-bits", "3", "--group-size", "48", "--out", "OUT"), "layers.3.mlp.down_proj"),
        (("perplexity", "MODEL", "--text", "/no/text"), "text /no/text: no such file"),
        (("sensitivity", "/no/samples", "--out", "OUT"), "no such file"),
    ],
)
def test_bad_input_gets_a_message_a_nonzero_exit_and_no_traceback(checkpoint, tmp_path, words, message):
    places = {"MODEL": str(checkpoint("llama")), "OUT": str(tmp_path / "out")}
    failed = run(*(places.get(word, word) for word in words))
    assert failed.returncode == 1
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


def test_help_is_quick_to_import_and_names_every_command():
    code = (
        "import sys, apportion.cli.bits; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0
    shown = run("--help").stdout
    for command in ("quantize", "samples", "sensitivity", "plan", "apply", "perplexity"):
        assert command in shown
        assert "Example:" in run(command, "--help").stdout


def test_steps_on_the_command_line(checkpoint, text_file, tmp_path):
    model = checkpoint("llama")
    assert run(*samples_command(model, text_file, tmp_path / "s"), "--json").returncode == 0
    sensitivity, plan = tmp_path / "sensitivity.json", tmp_path / "plan.json"
    assert run("sensitivity", tmp_path / "s", "--method", "regression", "--out", sensitivity).returncode == 0
    planned = run("plan", sensitivity, "--avg-bits", "2.5", "--out", plan, "--json")
    assert json.loads(planned.stdout)["avg_bits"] <= 2.5
    applied = json.loads(run("apply", model, plan, "--out", tmp_path / "q", "--json").stdout)
    assert applied["bytes"] == (tmp_path / "q" / "model.safetensors").stat().st_size
    measured = json.loads(
        run(
            "perplexity", tmp_path / "q", "--text", text_file, "--window-tokens", "24", "--windows", "3", "--json"
        ).stdout
    )
    assert set(measured) >= {"perplexity", "nll", "tokens"}
    assert measured["tokens"] == 3 * 23
