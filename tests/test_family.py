"""The diff is the table of contents: what no paper changes has the same bytes in every file."""
import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

# child: its parent, and what its paper changes in the parent, beside the module's docstring
FAMILY = {
    "dcgan": ("vanilla_gan", {"imports", "parse_args", "Generator", "Discriminator", "discriminator_loss",
                              "generator_loss", "train_step"}),
    "lsgan": ("dcgan", {"parse_args", "discriminator_loss", "generator_loss"}),
    "cgan": ("dcgan", {"parse_args", "Generator", "Discriminator", "train_step", "sample", "setup"}),
    "acgan": ("dcgan", {"parse_args", "Generator", "Discriminator", "discriminator_loss", "generator_loss",
                        "train_step", "sample", "setup"}),
    "infogan": ("dcgan", {"imports", "rest", "parse_args", "Generator", "Discriminator", "train_step", "sample",
                          "setup", "sample_code", "information", "matched", "test_error"}),
    "cogan": ("dcgan", {"imports", "rest", "parse_args", "transform", "Turn", "Generator", "Discriminator",
                        "train_step", "sample", "setup"}),
    "fgan": ("vanilla_gan", {"imports", "rest", "parse_args", "jeffrey_conjugate", "divergence", "Generator",
                             "Discriminator", "discriminator_loss", "generator_loss", "train_step", "setup"}),
}
LINES = {"acgan": 265, "infogan": 320, "cogan": 358, "fgan": 315}  # what the paper adds does not fit into 250
SAME_EVERYWHERE = {"main", "load_checkpoint", "load_generator", "write_losses"}


def parts(name):
    """The source of a script in named parts, in their order: "imports", each function and class, and "rest"."""
    source = (ROOT / f"{name}.py").read_text()
    result, lines = {"imports": "", "rest": ""}, source.splitlines()
    nodes = ast.parse(source).body[1:]  # the first is the docstring
    starts = [min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1 for node in nodes]
    for node, start, end in zip(nodes, starts, [*starts[1:], len(lines)], strict=True):
        part = "imports" if isinstance(node, ast.Import | ast.ImportFrom) else getattr(node, "name", "rest")
        result[part] = result.get(part, "") + "\n".join(lines[start:end])
    return result


@pytest.mark.parametrize("child", FAMILY)
def test_a_child_differs_from_its_parent_in_what_its_paper_changes_and_nowhere_else(child):
    parent, changes = FAMILY[child]
    ours, theirs = parts(child), parts(parent)
    assert [name for name in ours if name in theirs] == list(theirs)  # the same names in the same order
    assert {name for name in ours if ours[name] != theirs.get(name)} == changes


def test_what_no_paper_changes_is_the_same_everywhere():
    for name in SAME_EVERYWHERE:
        assert len({parts(script)[name] for script in SCRIPTS}) == 1, name


def test_options_come_in_the_same_order_and_a_child_only_adds_its_own_at_the_end():
    lists = [parts(script)["parse_args"].split("    add(") for script in SCRIPTS]
    shared = lists[1][:-1]  # dcgan.py has no option of its own; the last piece holds what follows the options
    names = [piece.split('"')[1] for piece in lists[1][1:]]
    assert " ".join(names) == (
        "--n_epochs --batch_size --lr_g --lr_d --b1 --b2 --latent_dim --img_size --dataset --data_dir "
        "--sample_interval --out_dir --resume --seed --cuda")
    for options in lists:
        assert [line.split(", default")[0] for line in options[1:len(shared)]] == [
            line.split(", default")[0] for line in shared[1:]]


@pytest.mark.parametrize("child", ["lsgan", "cgan", "acgan", "infogan", "cogan"])
def test_the_convolutional_scripts_have_one_trunk_and_differ_in_few_defaults(child):
    own = {"infogan": {"n_epochs", "latent_dim"}, "lsgan": {"lr_g", "lr_d"}, "cogan": {"lr_g", "lr_d"}}
    own = own.get(child, {"n_epochs", "lr_g", "lr_d", "latent_dim"})
    ours, theirs = (importlib.import_module(name) for name in (child, "dcgan"))
    options, parents = (vars(module.parse_args([])) for module in (ours, theirs))
    assert {name for name in parents if options[name] != parents[name]} == own | {"out_dir"}
    for network in ("Generator", "Discriminator"):
        sizes = [[inspect.signature(getattr(module, network)).parameters[name].default for name in ("width", "hidden")]
                 for module in (ours, theirs)]
        assert sizes[0] == sizes[1]
        counts = [sum(parts(name)[network].count(f"nn.{layer}(") for layer in ("Linear", "Conv2d", "ConvTranspose2d"))
                  for name in (child, "dcgan")]
        # AC-GAN's second head; InfoGAN's head(), of two layers; for CoGAN's edges, maps and two convolutions
        more = {("acgan", "Discriminator"): 1, ("infogan", "Discriminator"): 2, ("cogan", "Generator"): 3}
        assert counts[0] == counts[1] + more.get((child, network), 0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_short_documented_and_has_no_option_that_nothing_reads(name):
    source = (ROOT / f"{name}.py").read_text()
    assert source.count("\n") <= LINES.get(name, 250)
    doc = ast.get_docstring(ast.parse(source))
    assert "arXiv:" in doc and f"python {name}.py" in doc and "Departures from the paper:" in doc
    assert f"diff {FAMILY[name][0]}.py {name}.py" in doc if name in FAMILY else "diff " not in doc
    module = importlib.import_module(name)
    for option in vars(module.parse_args([])):
        assert re.search(rf"args\.{option}\b", source), f"nothing reads --{option}"


def test_import_has_no_side_effect_and_common_knows_no_networks(tmp_path):
    code = "import " + ", ".join(SCRIPTS)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""},
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
    imports = [line for line in (ROOT / "common.py").read_text().splitlines() if "import " in line]
    assert not any("nn" in line for line in imports)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_default(name, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--n_epochs", "--lr_g", "--out_dir"):
        assert option in text
    assert text.count("(default: ") == len(vars(importlib.import_module(name).parse_args([])))
