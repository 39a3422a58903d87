"""The quick start's checkpoint and clip, read back by the libraries that others read them with."""

import av
import numpy as np
import pytest
import torch
from transformers import AutoConfig, VideoMAEForVideoClassification, VideoMAEImageProcessorPil

from examples.quickstart import checkpoint, clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "new" / "checkpoint"
    assert checkpoint.main([str(out)]) == 0
    return out


def test_checkpoint_holds_these_files_and_no_other(folder):
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    assert "untrained" in (folder / "README.md").read_text().lower()
    VideoMAEImageProcessorPil.from_pretrained(folder)


def test_checkpoint_is_the_published_small_model(folder):
    config = AutoConfig.from_pretrained(folder)
    model = VideoMAEForVideoClassification.from_pretrained(folder)
    # videomae.md: 22,033,936 with 400 classes of 384 + 1 parameters each.
    assert model.num_parameters() == 22_033_936 - (400 - 12) * 385
    assert config.num_attention_heads == 6
    assert tuple(config.id2label.values()) == checkpoint.MOTIONS


def test_no_parameter_is_left_at_its_start(folder):
    for name, parameter in VideoMAEForVideoClassification.from_pretrained(
        folder
    ).named_parameters():
        assert parameter.std() > 0.01, name
    torch.testing.assert_close(
        checkpoint.untrained_model(0).classifier.bias,
        VideoMAEForVideoClassification.from_pretrained(folder).classifier.bias,
    )


def test_an_existing_folder_is_refused_and_kept(folder, capsys):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        checkpoint.main([str(folder)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"checkpoint: error: {folder} exists: name a new folder, or remove it first\n"
    )
    assert sorted(folder.parent.rglob("*")) == before


def test_clip_shows_a_square_moving_right(tmp_path, capsys):
    out = tmp_path / "new" / "clip.mp4"
    assert clip.main([str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["clip.mp4"]
    with av.open(str(out)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert container.streams.video[0].average_rate == clip.RATE
    assert frames.shape == (75, 240, 320, 3)
    # The square's row of the picture is the brighter part; its middle goes from 40 to 280.
    bright = frames[:, 80:160].mean(axis=(1, 3)) > 140
    middles = (bright * np.arange(320)).sum(axis=1) / bright.sum(axis=1)
    np.testing.assert_allclose(middles, np.linspace(39.5, 279.5, 75), atol=6)

    with pytest.raises(SystemExit) as stop:
        clip.main([str(out)])
    assert stop.value.code == 2
    assert f"clip: error: {out} exists" in capsys.readouterr().err
