"""A script copied out of this repository, with README's stub in the place of common.py, trains."""
import re

import pytest
import torch
from conftest import ROOT, SCRIPTS
from torchvision.utils import save_image

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
STUB = next(block for block in BLOCKS if "ImageFolder" in block)
IMPORT = re.compile(r"^from common import (\([^)]*\)|.*)$", re.M)


def test_a_script_with_the_stub_in_the_place_of_common_trains(tmp_path, monkeypatch):
    source, n = IMPORT.subn(lambda _: STUB, (ROOT / "acgan.py").read_text())  # it takes labels, too
    assert n == 1
    for label in ("a", "b"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(4):
            save_image(torch.rand(3, 12, 10), tmp_path / "pictures" / label / f"{i}.png")
    options = ["--dataset", "pictures", "--img_size", "8", "--batch_size", "4", "--n_epochs", "2"]
    monkeypatch.chdir(tmp_path)
    copied = {"__name__": "copied"}
    exec(source, copied)
    copied["main"]([*options, "--width", "4"])
    assert (tmp_path / "runs" / "acgan" / "samples.png").exists()


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "cogan"])
def test_the_stub_has_all_that_a_script_imports(name):
    names = IMPORT.search((ROOT / f"{name}.py").read_text())[1]
    offered = re.findall(r"^(?:def|class) (\w+)", STUB, re.M) + ["IS_PARALLEL", "RANK"]
    assert set(re.findall(r"\w+", names)) == set(offered)
