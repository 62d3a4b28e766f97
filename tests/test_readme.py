"""README.md's and RESULTS.md's commands parse, the quick start runs, every picture exists."""
import importlib
import re
import shlex
from pathlib import Path

import montage
import pytest
import score
import speed
from conftest import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "tests" / "RESULTS.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
INSTALL = "pip install -r requirements.txt && pytest tests"


def commands(text):
    """List the commands that start with python: the lines of blocks, and code within a line."""
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [line for line in lines if line.startswith("python ")]


def test_the_install_and_test_command_is_the_last_line_of_ci():
    assert INSTALL in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == INSTALL


@pytest.mark.parametrize("command", sorted({*commands(README), *commands(RESULTS)}))
def test_a_command_parses(command, capsys):
    name, *argv = shlex.split(command)[1:]
    assert (ROOT / name).exists()
    if name.removesuffix(".py") in SCRIPTS:
        module = importlib.import_module(name.removesuffix(".py"))
        module.check_args(module.parse_args(argv))
        return
    tool = {"score": score, "speed": speed, "montage": montage}[Path(name).stem]
    with pytest.raises(SystemExit) as stop:  # --help ends it once the options before it are known
        tool.main([*argv, "--help"])
    assert stop.value.code == 0


def test_the_quick_start_trains(data_dir, tmp_path, monkeypatch):
    command = next(command for command in commands(README) if command.startswith("python dcgan.py"))
    short = ["--data_dir", str(data_dir), "--batch_size", "50", "--img_size", "8", "--width", "4"]
    monkeypatch.chdir(tmp_path)
    importlib.import_module("dcgan").main([*shlex.split(command)[2:], *short])
    assert (tmp_path / "runs" / "dcgan" / "samples.png").exists()


def test_the_snippets_run(script_checkpoints, monkeypatch):
    monkeypatch.chdir(script_checkpoints)
    for language, block in BLOCKS:
        if language == "python":
            exec(block, {})


@pytest.fixture(scope="module")
def script_checkpoints(tmp_path_factory, data_dir):
    """A folder with runs/cgan/checkpoint.pt, of 28x28 images."""
    import cgan

    folder = tmp_path_factory.mktemp("snippets")
    options = ["--dataset", "mnist", "--data_dir", str(data_dir), "--n_epochs", "1"]
    options += ["--batch_size", "100", "--width", "4", "--out_dir", str(folder / "runs" / "cgan")]
    cgan.main(options)
    return folder


def test_the_script_table_names_every_script():
    assert re.findall(r"^\| `(\w+)\.py` \|", README, re.MULTILINE) == SCRIPTS


def test_the_diff_that_is_shown_is_in_the_files():
    lines = next(block for language, block in BLOCKS if language == "diff").splitlines()
    assert any(line.startswith("<") for line in lines)
    for line in lines:
        script = {"<": "dcgan.py", ">": "lsgan.py"}.get(line[0])
        assert line == "---" or line[2:] in (ROOT / script).read_text().splitlines()


def test_every_picture_exists_and_is_small():
    pictures = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", README))
    assert pictures and all((ROOT / path).stat().st_size <= 500_000 for path in pictures)
    assert pictures == {f"assets/{path.name}" for path in (ROOT / "assets").iterdir()}
