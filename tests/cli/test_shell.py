"""`sfrik env` prints no paths or names; `sfrik completion` completes in a shell; only terminals get colours."""

from __future__ import annotations

import builtins
import getpass
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sfrik
from sfrik.cli import main
from sfrik.cli.environment import environment, format_environment
from sfrik.settings import recipe_names
from sfrik.system.terminal import paint, wants_colour

ROOT = Path(__file__).parents[2]

# --- env


def test_env_prints_versions_hardware_and_the_automatic_precision(capsys):
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sfrik"] == sfrik.__version__
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0] or facts["packages"]["torch"] == torch.__version__
    assert facts["device"] in ("cpu", "cuda", "mps")
    assert facts["precision"] in ("fp32", "bf16", "fp16")
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert {"papermill", "jupyterlab", "timm", "wandb"} <= facts["optional"].keys()
    assert main(["env"]) == 0
    assert f"precision  {facts['precision']}" in capsys.readouterr().out.splitlines()


def test_env_prints_no_path_host_user_or_secret(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = "\n".join(format_environment(environment()))
    hidden = [str(Path.home()), str(ROOT), sys.prefix, os.getcwd(), socket.gethostname(), "secret"]
    hidden += [] if getpass.getuser() == "root" else [getpass.getuser()]
    assert [word for word in hidden if word not in ("/", "localhost") and word in text] == []


def test_env_works_where_pytorch_cannot_be_imported(monkeypatch):
    real = builtins.__import__

    def broken(name, *arguments, **keywords):
        if name == "torch":
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", broken)
    facts = environment()
    assert facts["torch_error"] == "ImportError"
    assert "torch_error  ImportError" in format_environment(facts)


def test_a_closed_pipe_is_not_an_error():
    command = f"{sys.executable} -m sfrik memory --recipe digits/sfrik_l3_q512 --json | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], env=environment, capture_output=True, encoding="utf-8")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


# --- completion


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """A function from a line with an unfinished last word to the completions that bash offers."""
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    script = tmp_path_factory.mktemp("completion") / "sfrik"
    command = [sys.executable, "-m", "sfrik", "completion", "bash"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script.write_text(
        subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout, encoding="utf-8"
    )

    def complete(*words):
        lines = [
            f"source {script}",
            'function=$(complete -p sfrik | sed "s/.*-F \\([^ ]*\\) .*/\\1/")',
            'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}',
            '$function sfrik "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"',
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        done = subprocess.run(["bash", "-c", "\n".join(lines), "bash", *words], capture_output=True, encoding="utf-8", check=True)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]

    return complete


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sfrik", "pre"], ["pretrain"]),
        (["sfrik", "knn"], ["knn-eval"]),
        (["sfrik", "pretrain", "--sfrik-mmd"], ["--sfrik-mmd-coeff"]),
        (["sfrik", "pretrain", "--recipe", "smoke/sfrik_l2"], [r for r in recipe_names() if r.startswith("smoke/sfrik_l2")]),
        (["sfrik", "pretrain", "--ssl-method", "vic"], ["vicreg"]),
        (["sfrik", "table", "table3"], ["table3"]),
        (["sfrik", "table", "table3", "--profile", "dig"], ["digits"]),
        (["sfrik", "completion", "z"], ["zsh"]),
    ],
    ids=lambda words: " ".join(words) if words[0] == "sfrik" else "",
)
def test_bash_completes(completed, words, offered):
    assert completed(*words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_each_shell_has_a_script_that_knows_every_recipe(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("pretrain", "logistic-regression", *recipe_names()))


def test_completion_without_its_package_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "python -m pip install shtab" in capsys.readouterr().err
    assert main(["completion", "fish"]) == 2
    assert "bash, zsh, tcsh" in capsys.readouterr().err


# --- colours


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),  # no-color.org: an empty one does not count
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals_unless_a_variable_says_otherwise(monkeypatch, terminal, variables, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wants_colour(Stream(terminal)) == coloured
    assert paint("failed", "red", Stream(terminal)) == ("\x1b[31mfailed\x1b[0m" if coloured else "failed")


def test_an_error_is_red_on_a_terminal_and_plain_in_a_file(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for terminal, start in ((True, "\x1b[31msfrik: error:\x1b[0m "), (False, "sfrik: error: ")):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["pretrain", "--epoch", "3"]) == 2
        assert stream.getvalue().startswith(start)
