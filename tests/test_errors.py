"""A user's mistake gets one sentence and exit status 2, and leaves nothing behind."""
import importlib

import pytest
import torch
from conftest import SCRIPTS, files, pictures, refused

import dcgan
import lsgan


@pytest.fixture(scope="module")
def checkpoint(run_options, tmp_path_factory):
    """A function: the script's name -> a checkpoint of one epoch of it."""
    paths = {}

    def run(name):
        if name not in paths:
            folder = tmp_path_factory.mktemp(name) / "run"
            options = [*run_options, "--n_epochs", "1", "--out_dir", str(folder)]
            importlib.import_module(name).main(options)
            paths[name] = folder / "checkpoint.pt"
        return paths[name]

    return run


@pytest.mark.parametrize("argv, words", [
    (["--n_epochs", "-1"], ["--n_epochs", "-1"]),
    (["--n_epochs", "0"], ["--n_epochs", "0"]),
    (["--n_epochs", "many"], ["--n_epochs", "'many'"]),
    (["--no_such_option"], ["--no_such_option"]),
    (["--latent_dim", "0"], ["--latent_dim"]),
    (["--width", "0"], ["--width"]),
    (["--sample_interval", "0"], ["--sample_interval"]),
    (["--batch_size", "1"], ["--batch_size", "at least 2"]),  # batch normalisation needs two
    (["--batch_size", "201"], ["--batch_size", "201", "200 images"]),
    (["--lr_g", "-1"], ["--lr_g", "-1"]),
    (["--lr_d", "nan"], ["--lr_d", "nan"]),
    (["--lr_g", "inf"], ["--lr_g", "inf"]),
    (["--b1", "1"], ["--b1", "below 1"]),
    (["--b2", "-0.1"], ["--b2", "at least 0"]),
    (["--img_size", "7"], ["--img_size", "at least 8"]),
    (["--seed", "-1"], ["--seed"]),
    (["--dataset", ""], ["glyphs", "folder"]),
    (["--dataset", "no_such_folder"], ["no_such_folder", "mnist", "glyphs"]),
    (["--resume", "no_such_file"], ["no_such_file"]),
])  # fmt: skip
def test_a_wrong_argument_is_named_and_leaves_nothing(argv, words, run_options, tmp_path, capsys):
    sentence = refused(dcgan, [*run_options, "--out_dir", tmp_path / "run", *argv], capsys)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run").exists()


def test_every_number_has_a_limit(script, capsys):
    numbers = {"n_epochs", "img_size", "shared_g", "shared_d"}  # by default None
    for option, default in vars(script.parse_args([])).items():
        if type(default) in (int, float) or option in numbers:
            for number in (10**30, -(10**30)):
                assert f"--{option}" in refused(script, [f"--{option}", number], capsys)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_refuses_a_batch_larger_than_the_data(name, run_options, tmp_path, capsys):
    script = importlib.import_module(name)
    n = 100 if name == "cogan" else 200  # cogan.py halves them
    options = [*run_options, "--out_dir", tmp_path / "run", "--batch_size", n + 1]
    sentence = refused(script, options, capsys)
    assert f"--batch_size {n + 1}" in sentence and f"{n} images" in sentence
    assert not (tmp_path / "run").exists()


def test_an_out_dir_that_cannot_be_written(run_options, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "file" in refused(dcgan, [*run_options, "--out_dir", out_dir], capsys)
    assert files(tmp_path) == {"file": b""}


def test_a_file_that_is_not_a_checkpoint(checkpoint, tmp_path, capsys):
    contents = [b"", b"not a checkpoint", b"PK\x03\x04 not a zip file"]
    contents += [checkpoint("dcgan").read_bytes()[:-1000]]
    contents += [[1, 2], {"script": "dcgan"}, {"state": {}}, torch.ones(2)]
    path = tmp_path / "checkpoint.pt"
    for content in contents:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        sentence = refused(dcgan, ["--resume", tmp_path], capsys)
        assert str(path) in sentence and "not a checkpoint" in sentence
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("n_epochs", ["1", "2"])  # 1: it is finished and only draws
def test_a_checkpoint_that_lacks_a_part_is_no_traceback(
    n_epochs, checkpoint, run_options, tmp_path, capsys
):
    whole = torch.load(checkpoint("dcgan"), weights_only=True)
    for name, part in whole.items():
        lacking = [{key: value for key, value in whole.items() if key != name}]
        if name in ("G", "D", "G_avg"):
            lacking += [whole | {name: dict(list(part.items())[1:])}]  # lacks a weight
        for i, content in enumerate(lacking):
            folder = tmp_path / f"{name}-{i}"
            folder.mkdir()
            torch.save(content, folder / "checkpoint.pt")
            try:
                dcgan.main([*run_options, "--resume", str(folder), "--n_epochs", n_epochs])
            except SystemExit as stop:
                assert stop.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_checkpoint_of_another_script(checkpoint, capsys):
    sentence = refused(lsgan, ["--resume", checkpoint("dcgan")], capsys)
    assert "lsgan.py" in sentence and "dcgan.py" in sentence.split("checkpoint of")[1]


@pytest.mark.parametrize("name, argv, words", [
    ("dcgan", ["--latent_dim", "50"], "latent_dim"),
    ("dcgan", ["--width", "16"], "width"),
    ("dcgan", ["--img_size", "16"], "img_shape"),
    ("cogan", ["--shared_g", "1"], ""),
    ("cogan", ["--shared_d", "1"], ""),
    ("cogan", ["--layers", "dense"], ""),
    ("cogan", ["--domain", "negative"], "--domain"),
    ("cogan", ["--seed", "3"], "--seed"),
])  # fmt: skip
def test_a_run_is_not_resumed_with_other_networks_or_other_halves(
    name, argv, words, checkpoint, capsys
):
    path = checkpoint(name)
    before = files(path.parent)
    script = importlib.import_module(name)
    assert words in refused(script, ["--resume", path, "--n_epochs", 2, *argv], capsys)
    assert files(path.parent) == before


@pytest.mark.parametrize("name, classes, word", [
    ("cgan", ["a", "c"], "classes"), ("acgan", ["a", "b", "c"], "classes"),
    ("cgan", None, "img_shape"), ("dcgan", None, "img_shape"),  # None: in one channel
])  # fmt: skip
def test_networks_are_not_resumed_on_data_that_they_are_not_for(
    name, classes, word, data_dir, tmp_path, capsys
):
    script = importlib.import_module(name)
    options = ["--dataset", pictures(tmp_path / "old", 8, ["a", "b"]), "--img_size", "8"]
    options += ["--batch_size", "4", "--n_epochs", "1", "--out_dir", tmp_path / "run"]
    script.main([str(option) for option in options])
    before = files(tmp_path / "run")
    other = pictures(tmp_path / "other", 8, classes) if classes else "mnist"
    options = ["--resume", tmp_path / "run", "--n_epochs", 2, "--dataset", other]
    capsys.readouterr()
    assert word in refused(script, [*options, "--data_dir", data_dir], capsys)
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_data_that_cannot_be_had(name, tmp_path, no_network, capsys):
    options = ["--dataset", name, "--data_dir", tmp_path, "--out_dir", tmp_path / "run"]
    sentence = refused(dcgan, options, capsys)
    assert f"{name} is not under" in sentence and "--dataset glyphs" in sentence
    assert not (tmp_path / "run").exists()


def test_a_folder_without_images_or_with_a_damaged_one(tmp_path, capsys):
    assert "no images" in refused(dcgan, ["--dataset", tmp_path], capsys)
    (pictures(tmp_path, 2) / "bad.png").write_bytes((tmp_path / "1.png").read_bytes()[:100])
    assert "bad.png" in refused(dcgan, ["--dataset", tmp_path, "--batch_size", "2"], capsys)


@pytest.mark.parametrize("name, argv, words", [
    ("cgan", ["--digit", "10"], ["--digit", "10"]),
    ("cgan", ["--digit", "-2"], ["--digit", "-2"]),
    ("acgan", ["--digit", "ten"], ["--digit", "ten"]),
    ("vanilla_gan", ["--loss", "hinge"], ["--loss", "'hinge'"]),
    ("lsgan", ["--a", "nan"], ["--a", "nan"]),
    ("infogan", ["--lambda_cat", "-1"], ["--lambda_cat"]),
    ("infogan", ["--lambda_con", "-1"], ["--lambda_con"]),
    ("infogan", ["--lambda_con", "nan"], ["--lambda_con", "nan"]),
    ("cogan", ["--domain", "upside_down"], ["--domain", "'upside_down'"]),
    ("cogan", ["--shared_g", "-1"], ["--shared_g", "at least 0"]),
    ("cogan", ["--shared_g", "50"], ["--shared_g", "50"]),
    ("cogan", ["--shared_d", "50"], ["--shared_d", "50"]),
    ("cogan", ["--photos", "somewhere"], ["--photos", "mnistm"]),
    ("cogan", ["--domain", "mnistm", "--photos", "nowhere"], ["nowhere"]),
])  # fmt: skip
def test_an_option_of_one_script(name, argv, words, run_options, tmp_path, capsys):
    script = importlib.import_module(name)
    sentence = refused(script, [*run_options, "--out_dir", tmp_path / "run", *argv], capsys)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cgan", "acgan"])
def test_a_script_that_needs_classes_says_so(name, tmp_path, capsys):
    options = ["--dataset", pictures(tmp_path, 2), "--batch_size", "2"]
    assert "class" in refused(importlib.import_module(name), options, capsys)
