"""The diff is the table of contents: what no paper changes has the same bytes in every file."""
import ast
import functools
import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

NETWORKS = {"parse_args", "Generator", "Discriminator", "train_step"}
LOSSES = {"discriminator_loss", "generator_loss"}
CLASSES = {"classes_to_draw", "real_images", "sample", "build"}
# child: its parent, and what its paper adds or changes
FAMILY = {
    "dcgan": (
        "vanilla_gan",
        {*NETWORKS, *LOSSES, "architecture", "weights_init", "sample", "build"},
    ),
    "lsgan": ("dcgan", {*LOSSES, "parse_args", "Discriminator", "train_step"}),
    "cgan": ("dcgan", {*NETWORKS, *LOSSES, *CLASSES}),
    "acgan": ("dcgan", {*NETWORKS, *LOSSES, *CLASSES, "class_loss"}),
    "infogan": (
        "dcgan",
        {*NETWORKS, "N_CATEGORIES", "N_CONTINUOUS", "sample_code", "information", "entropy",
         "sample"},
    ),
    "cogan": (
        "dcgan",
        {*NETWORKS, "imports", "TRANSFORMS", "DEFAULTS", "generator_layers", "discriminator_layers",
         "split_domains", "halve_gradients", "agreement", "real_images", "rows_of_two", "sample",
         "second_domain", "spread", "build"},
    ),
    "fgan": (
        "vanilla_gan",
        {*NETWORKS, *LOSSES, "imports", "Divergence", "jeffrey_conjugate", "js_weighted",
         "alpha_divergence", "DIVERGENCES", "divergence"},
    ),
}  # fmt: skip
OWN = {"SCRIPT", "EPOCHS"}  # constants that each script has, with its own value


@functools.cache
def parts(name):
    """The source of a script by part, in order: imports, functions, classes, constants, guard."""
    source = (ROOT / f"{name}.py").read_text()
    lines = source.splitlines()
    result = {}
    for node in ast.parse(source).body[1:]:  # the first is the docstring
        if isinstance(node, ast.Import | ast.ImportFrom):
            part = "imports"
        elif isinstance(node, ast.Assign):
            part = node.targets[0].id
        else:
            part = getattr(node, "name", "guard")
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        result.setdefault(part, []).extend(lines[first - 1 : node.end_lineno])
    return result


@pytest.mark.parametrize("child", FAMILY)
def test_a_child_differs_from_its_parent_in_what_its_paper_changes_and_nowhere_else(child):
    parent, changes = FAMILY[child]
    ours, theirs = parts(child), parts(parent)
    differ = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
    assert differ - OWN == changes


@pytest.mark.parametrize("child", FAMILY)
def test_what_a_child_has_from_its_parent_stands_in_the_same_order(child):
    ours, theirs = parts(child), parts(FAMILY[child][0])
    assert [name for name in ours if name in theirs] == list(theirs)


def test_the_run_which_follows_build_is_the_same_everywhere():
    run = list(parts("dcgan"))
    run = run[run.index("build") + 1 :]
    assert {"load_generator", "train", "main", "guard"} <= set(run)
    for name in run:
        assert all(parts(script)[name] == parts("dcgan")[name] for script in SCRIPTS), name


def test_the_conditional_scripts_draw_their_classes_in_the_same_way():
    assert all(parts("cgan")[name] == parts("acgan")[name] for name in CLASSES - {"sample"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_docstring_names_the_paper_the_command_the_parent_and_the_departures(name):
    doc = importlib.import_module(name).__doc__
    assert re.search(r"arXiv:\d{4}\.\d{4}", doc)
    assert f"python {name}.py" in doc and "Departures from the paper" in doc
    if name in FAMILY:
        assert f"`diff {FAMILY[name][0]}.py {name}.py`" in doc


@pytest.mark.parametrize("name", SCRIPTS)
def test_there_is_no_option_that_nothing_reads(name):
    reads = "\n".join(
        line for part, lines in parts(name).items() if part != "parse_args" for line in lines
    )
    for option in vars(importlib.import_module(name).parse_args([])):
        assert re.search(rf"args\.{option}\b|\"{option}\"", reads), f"nothing reads --{option}"


def options_by_group(script, capsys, monkeypatch):
    """What --help says of each option, by name, for each group of options."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    groups = []
    for group in re.split(r"\n(?=\S)", capsys.readouterr().out):
        entries = re.split(r"\n  --", group)[1:]
        groups.append({re.match(r"\w+", entry)[0]: entry for entry in entries})
    return [group for group in groups if group]


def test_the_options_have_one_order_with_those_of_the_paper_in_a_group_at_the_end(
    script, capsys, monkeypatch
):
    shared = """n_epochs batch_size lr_g lr_d b1 b2 latent_dim width img_size dataset data_dir
        sample_interval out_dir resume seed cuda""".split()
    if script.__name__ in ("vanilla_gan", "fgan"):
        shared.remove("width")  # of the convolutional networks
    groups = [list(group) for group in options_by_group(script, capsys, monkeypatch)]
    assert groups[0] == shared
    assert len(groups) == 1 if script.__name__ == "dcgan" else len(groups) == 2


def test_help_shows_every_default(script, capsys, monkeypatch):
    groups = options_by_group(script, capsys, monkeypatch)
    entries = {name: entry for group in groups for name, entry in group.items()}
    defaults = vars(script.parse_args([])) | {"data_dir": "data", "n_epochs": script.EPOCHS}
    for option, default in defaults.items():
        if default is not None and default is not False:
            assert re.search(rf"\({re.escape(str(default))}\b", entries[option]), option


def test_import_has_no_side_effect(tmp_path):
    code = "import " + ", ".join(SCRIPTS)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_common_holds_no_networks():
    assert "torch.nn" not in (ROOT / "common.py").read_text()
