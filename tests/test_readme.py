"""The README's commands run and its tables tell the truth."""
import importlib
import os
import re
import shlex
import subprocess
from glob import glob

import montage
import pytest
import score
import speed
import torch
from conftest import ROOT, SCRIPTS
from torchvision.utils import save_image

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]


def test_the_readme_s_install_and_test_command_is_the_last_line_of_ci():
    command = "pip install -r requirements.txt && pytest tests"
    assert command in COMMANDS
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command


def test_every_python_command_and_the_snippet_run(tmp_path, data_dir, monkeypatch):
    """In the README's order, shortened by options that come after its own."""
    monkeypatch.chdir(tmp_path)
    os.symlink(data_dir, "data")
    os.symlink(data_dir / "MNIST", data_dir / "FashionMNIST")
    os.makedirs("path/to/images")
    for i in range(60):
        save_image(torch.rand(3, 70, 66), f"path/to/images/{i}.jpg")
    commands = [line.split("&& ")[-1] for line in COMMANDS if "python " in line]
    assert len(commands) >= 7 and commands[0] == "python dcgan.py"
    draw = score.draw
    monkeypatch.setattr(score, "draw", lambda module, G, n, labels: draw(module, G, 60, labels))  # of 10,000
    for command in commands:
        name, *argv = shlex.split(command)[1:]
        if name == "tests/score.py":
            score.main(argv)
            (data_dir / "score-mnist-28.pt").unlink()
            continue
        if name == "tests/speed.py":
            if "--cuda" in argv and not torch.cuda.is_available():
                continue
            speed.main([*argv, "--steps", "1", "--limit", "0"])
            continue
        if name == "tests/montage.py":
            argv = [re.sub("{.*}", name, arg) for arg in argv for name in re.sub(".*{|}.*", "", arg).split(",")]
            montage.main([path for arg in argv for path in sorted(glob(arg)) or [arg]])
            continue
        short = ["--n_epochs", "2"] * ("--n_epochs" in argv) if "--resume" in argv else ["--n_epochs", "1"]
        short += ["--batch_size", "50"]
        short += ["--img_size", "8"] * (name != "dcgan.py" and "--resume" not in argv)  # quicker
        importlib.import_module(name.removesuffix(".py")).main([*argv, *short])
    assert len(list(tmp_path.glob("runs/dcgan/0*.png"))) >= 2 and (tmp_path / "runs" / "dcgan-2").is_dir()
    snippet = next(block for language, block in BLOCKS if language == "python")
    scope = {}
    exec(snippet, scope)
    assert scope["x"].shape == (16, 1, 28, 28) and scope["x"].abs().max() <= 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_option_table_names_every_option_with_its_default(name):
    args = vars(importlib.import_module(name).parse_args([]))
    table = {}
    for cells in re.findall(r"^\| (`--.*?) \|(.*?)\|", README, re.MULTILINE):
        options = re.findall(r"--(\w+)", cells[0])
        values = cells[1].strip().split(", ")
        values = values if len(values) == len(options) else values * len(options)
        table |= dict(zip(options, values, strict=True))
    everywhere = set().union(*(vars(importlib.import_module(script).parse_args([])) for script in SCRIPTS))
    assert set(args) <= set(table) == everywhere
    for option, default in args.items():
        told = table[option].replace("SCRIPT", name)
        if told not in ("per script", "the dataset's own", "", "off"):
            assert told == str(default) or float(told) == default, option


def test_script_table_names_every_script():
    assert re.findall(r"^\| `(\w+)\.py` \|", README, re.MULTILINE) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_readme_and_docstring_tell_the_same_measurement(name):
    """The script table: lines and the size of the diff are counted, seconds and distance are the docstring's."""
    row = re.search(rf"^\| `{name}\.py` \|(.*)\|$", README, re.MULTILINE)[1].split("|")
    lines, reading, seconds, distance = (cell.strip() for cell in row[-4:])
    assert int(lines) == len((ROOT / f"{name}.py").read_text().splitlines())
    if name != SCRIPTS[0]:
        command, size = re.fullmatch(r"`(diff \w+\.py \w+\.py)`: (\d+)", reading).groups()
        done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True)
        assert command.endswith(f" {name}.py") and int(size) == len(re.findall(r"^[<>]", done.stdout, re.MULTILINE))
    told = re.search(r"^Measured .*", importlib.import_module(name).__doc__, re.MULTILINE)[0]
    assert f" {seconds} s an epoch" in told and f"distance {distance.split()[0]}" in told


def test_the_diff_that_is_shown_is_the_diff():
    shown = next(block for language, block in BLOCKS if language == "diff")
    done = subprocess.run(["diff", "dcgan.py", "lsgan.py"], cwd=ROOT, capture_output=True, text=True)
    assert shown and done.stdout.endswith(shown)


def test_every_picture_is_there_and_small():
    pictures = re.findall(r"!\[[^]]+\]\((assets/\w+\.png)\)", README)
    assert len(pictures) >= 9 and set(pictures) == {f"assets/{p.name}" for p in (ROOT / "assets").iterdir()}
    assert all((ROOT / path).stat().st_size <= 300_000 for path in pictures)
