"""Whatever a user can do wrong gets one sentence on stderr and exit status 2, and leaves nothing behind."""
import re

import pytest
import torch
from torchvision.utils import save_image


def refused(script, argv, capsys):
    """The sentence with which the script refuses the arguments."""
    with pytest.raises(SystemExit) as stop:
        script.main([str(word) for word in argv])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.endswith("\n") and err.count("\n") == 1 and err.startswith(f"{script.__name__}: ")
    return err


@pytest.mark.parametrize("argv, sentence", [
    (["--n_epochs", "-1"], "--n_epochs"),
    (["--n_epochs", "many"], "invalid int value: 'many'"),
    (["--no_such_option"], "unrecognized arguments"),
    (["--latent_dim", "0"], "--latent_dim"),
    (["--sample_interval", "0"], "--sample_interval"),
    (["--batch_size", "1"], "--batch_size must be at least 2"),
    (["--batch_size", "201"], "--batch_size 201 is more than the"),
    (["--lr_g", "-1"], "[Ll]earning rate"),
    (["--b1", "1"], "beta parameter"),
    (["--img_size", "-4"], "image size must be positive"),
    (["--dataset", "no_such_folder"], "no_such_folder is neither auto, mnist, fashion, cifar10, glyphs nor a folder"),
    (["--resume", "no_such_file"], "no_such_file is no checkpoint .*No such file"),
])
def test_wrong_arguments(script, argv, sentence, run_options, tmp_path, capsys):
    err = refused(script, [*run_options, "--out_dir", tmp_path / "run", *argv], capsys)
    assert re.search(sentence, err), err
    assert not (tmp_path / "run").exists()


def test_side_that_dcgan_cannot_draw(run_options, tmp_path, capsys):
    import dcgan

    assert "multiple of 4, not 30" in refused(dcgan, [*run_options, "--img_size", 30, "--out_dir", tmp_path], capsys)


def test_out_dir_that_cannot_be_written(script, run_options, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "file" in refused(script, [*run_options, "--out_dir", tmp_path / "file"], capsys)
    assert "file" in refused(script, [*run_options, "--out_dir", tmp_path / "file" / "run"], capsys)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 no zip"])
def test_checkpoint_that_is_none(script, content, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    err = refused(script, ["--resume", tmp_path / "checkpoint.pt"], capsys)
    assert f"checkpoint.pt is no checkpoint of {script.__name__}" in err


def test_checkpoint_that_is_truncated_foreign_or_of_another_shape(run_options, tmp_path, capsys):
    import dcgan
    import lsgan

    dcgan.main([*run_options, "--out_dir", str(tmp_path), "--n_epochs", "1"])
    capsys.readouterr()
    path = tmp_path / "checkpoint.pt"
    assert "it is one of dcgan" in refused(lsgan, ["--resume", path], capsys)
    err = refused(dcgan, ["--resume", path, "--latent_dim", "50"], capsys)
    assert re.search(r"Generator: size mismatch .*512, 20\].*512, 50\]", err), err
    assert "Generator: size mismatch" in refused(dcgan, ["--resume", path, "--img_size", "16"], capsys)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "is no checkpoint of dcgan" in refused(dcgan, ["--resume", path], capsys)
    torch.save([1, 2], path)
    assert "is no checkpoint of dcgan" in refused(dcgan, ["--resume", path], capsys)


def test_data_that_cannot_be_had(script, tmp_path, no_network, capsys):
    for name in ("mnist", "fashion", "cifar10"):
        err = refused(script, ["--dataset", name, "--data_dir", tmp_path, "--out_dir", tmp_path / "run"], capsys)
        assert f"{name} is not under" in err and "--dataset glyphs" in err


def test_empty_folder_and_damaged_image(script, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    assert "holds no images" in refused(script, ["--dataset", folder], capsys)
    save_image(torch.rand(3, 40, 40), folder / "good.png")
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:100])
    assert "bad.png" in refused(script, ["--dataset", folder], capsys)
