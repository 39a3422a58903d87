"""Real clips through the whole of both sides: a converted ViT-S here, transformers there.

The reference decodes with PyAV by itself, preprocesses with transformers' processor and runs
transformers' model as loaded from the folder that was converted.
"""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import transformers

import convert.__main__
import videomae_jax as vm
import videomae_jax.__main__
from examples.quickstart.checkpoint import untrained_model
from tests.parity.reference import relative_l2

CLIPS = Path(__file__).parents[3] / "shared" / "clips"
NAMES = ("water_bottle_drumming.mp4", "bigbuckbunny.mp4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    untrained_model(seed=1).save_pretrained(folder / "source")
    transformers.VideoMAEImageProcessorPil().save_pretrained(folder / "source")
    assert convert.__main__.main([str(folder / "source"), str(folder / "model")]) == 0
    return folder / "source", folder / "model"


def reference_logits(source: Path, path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = [frames[index] for index in np.arange(16) * len(frames) // 16]
    processor = transformers.VideoMAEImageProcessorPil.from_pretrained(source)
    model = transformers.VideoMAEForVideoClassification.from_pretrained(source).eval()
    with torch.no_grad():
        return model(**processor(chosen, return_tensors="pt")).logits[0].numpy()


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"{CLIPS} holds no clips")
@pytest.mark.parametrize("name", NAMES)
def test_a_real_clip_gets_the_answer_of_transformers(folders, name, capsys):
    source, model = folders
    wanted = reference_logits(source, CLIPS / name)
    checkpoint = vm.load(model)
    clip = checkpoint.preprocess(vm.read_clip(CLIPS / name))[None]
    given = checkpoint.model.apply({"params": checkpoint.params}, clip)[0]
    error = relative_l2(given, wanted)
    capsys.readouterr()
    arguments = ["classify", str(CLIPS / name), "--model", str(model), "--json"]
    assert videomae_jax.__main__.main(arguments) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    with capsys.disabled():
        print(
            f"\n{name}: logits {error:.1e} apart (relative L2), top 5 {predictions[0]['label']}..."
        )
    assert error <= 1e-5
    assert [entry["index"] for entry in predictions] == list(np.argsort(-wanted)[:5])
    probabilities = torch.from_numpy(wanted).softmax(0).sort(descending=True).values[:5]
    np.testing.assert_allclose(
        [entry["probability"] for entry in predictions], probabilities, rtol=1e-4
    )
