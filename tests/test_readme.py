"""README.md: its commands parse, its snippets run, options, constants and files are right."""
import importlib
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "tests" / "RESULTS.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
TOOLS = ["score", "speed", "montage"]


def commands(text):
    """List the commands that start a script: the lines of blocks, and code within a line."""
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [line for line in lines if re.match(r"(python|torchrun)\b.* \S+\.py\b", line)]


def test_ci_ends_with_the_command_that_installs_and_tests():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    *_, last = [words for line in lines if (words := shlex.split(line, comments=True))]
    assert "pytest" in last and " ".join(last) in README


@pytest.mark.parametrize("command", sorted({*commands(README), *commands(RESULTS)}))
def test_a_command_parses(command, capsys):
    path, options = re.search(r"(\S+\.py)\b(.*)", command).groups()
    assert (ROOT / path).exists()
    module = importlib.import_module(Path(path).stem)
    if Path(path).stem in SCRIPTS:
        module.parse_args(shlex.split(options))
        return
    with pytest.raises(SystemExit) as stop:  # --help ends it once the options before it are known
        module.main([*shlex.split(options), "--help"])
    assert stop.value.code == 0


def test_every_option_exists(capsys):
    option = r"(?<![\w-])--[a-z][\w-]*"
    for name in [*SCRIPTS, *TOOLS]:
        with pytest.raises(SystemExit):
            importlib.import_module(name).main(["--help"])
    known = {"--lr", *re.findall(option, capsys.readouterr().out)}  # --lr: PyTorch-GAN's
    text = re.sub(r"torchrun .*?(?=\w+\.py)", "", README)
    assert set(re.findall(option, text)) <= known


def test_what_loss_d_is_when_d_cannot_tell(script):
    """2 log 2 where D's loss is the cross-entropy, of two domains 4 log 2, and 1/4 for lsgan."""
    name = script.__name__
    if name in ("vanilla_gan", "dcgan", "cgan", "lsgan", "cogan"):
        score = torch.full((4, 1), 0.5 if name == "lsgan" else 0.0)  # between a and b
        loss = script.discriminator_loss(score, score, script.parse_args([])).item()
        loss *= 2 if name == "cogan" else 1
        expected = {"cogan": 4 * math.log(2), "lsgan": 0.25}.get(name, 2 * math.log(2))
        assert loss == pytest.approx(expected)
        assert re.search(rf"\b{loss:.2f}\b", README)


def test_the_snippets_run_and_give_the_shapes_that_they_name(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--dataset", "mnist", "--data_dir", str(data_dir), "--n_epochs", "1"]
    options += ["--batch_size", "100"]
    snippets = [block for language, block in BLOCKS if language == "python"]
    for name in set(re.findall(r"\bruns/(\w+)", "".join(snippets))):
        importlib.import_module(name).main([*options, "--out_dir", f"runs/{name}"])
    for snippet in snippets:
        names = {}
        exec(snippet, names)
        shapes = [tuple(value.shape) for value in names.values() if isinstance(value, torch.Tensor)]
        for shape in re.findall(r"\((\d+, \d+, \d+, \d+)\)", snippet):
            assert tuple(map(int, shape.split(", "))) in shapes


def test_a_table_has_a_row_for_every_script():
    rows = [line for line in README.splitlines() if line.startswith("| ")]
    for name in SCRIPTS:
        assert any(f"{name}.py" in row.split("|")[1] for row in rows), name


def test_the_diff_that_is_shown_is_in_the_files():
    lines = next(block for language, block in BLOCKS if language == "diff").splitlines()
    assert any(line.startswith("<") for line in lines)
    for line in lines:
        script = {"<": "dcgan.py", ">": "lsgan.py"}.get(line[0])
        assert line == "---" or line[2:] in (ROOT / script).read_text().splitlines()


def test_every_link_leads_to_a_file_and_every_picture_is_shown_and_small():
    links = set(re.findall(r"(?:\]\(|src=\")([^)\"#]+)", README))
    files = {link for link in links if "://" not in link}
    assert all((ROOT / path).exists() for path in files)
    pictures = {f"assets/{path.name}" for path in (ROOT / "assets").iterdir()}
    assert pictures <= files
    assert all((ROOT / path).stat().st_size <= 500_000 for path in pictures)
