"""Which of a torch file's weights are taken: the trained ones, or their running average."""

import pytest
import torch

from convert.errors import ConversionError
from convert.source import open_source
from convert.torch_file import ENTRIES
from tests.parity.sources import saved, training_file


def weights(value):
    return {"head.weight": torch.full((2, 3), value)}


def value_of(source):
    return float(source.tensors["head.weight"].read()[0, 0])


@pytest.mark.parametrize("entry", ENTRIES["model"])
def test_every_name_of_the_trained_weights(tmp_path, entry):
    path = saved(training_file(weights(1.0), entry=entry), tmp_path / "model.pth")
    source = open_source(path)
    assert (value_of(source), source.entry, source.averaged) == (1.0, entry, None)
    assert source.ignored_entries == ("args", "epoch", "optimizer", "scaler")


@pytest.mark.parametrize("averaged", ENTRIES["ema"])
@pytest.mark.parametrize("entry", [*ENTRIES["model"], None])
def test_every_name_of_the_averaged_weights(tmp_path, entry, averaged):
    content = weights(1.0) if entry is None else {entry: weights(1.0)}
    path = saved(content | {averaged: weights(2.0)}, tmp_path / "model.pth")
    source = open_source(path)
    assert (value_of(source), source.entry, source.averaged) == (1.0, entry, averaged)
    assert source.ignored_entries == (averaged,)
    source = open_source(path, weights="ema")
    assert (value_of(source), source.entry, source.averaged) == (2.0, averaged, None)
    assert source.ignored_entries == (entry or "head.weight",)


def test_the_first_of_several_entries_is_taken(tmp_path):
    names = [*reversed(ENTRIES["model"]), *reversed(ENTRIES["ema"])]
    content = {name: weights(float(number)) for number, name in enumerate(names)}
    path = saved(content, tmp_path / "model.pth")
    assert open_source(path).entry == "model"
    assert open_source(path).averaged == "model_ema"
    assert open_source(path, weights="ema").entry == "model_ema"


@pytest.mark.parametrize("other", [None, {}, {"epoch": 3}, [torch.zeros(2)], "text"], ids=str)
def test_an_entry_without_tensors_is_passed_over(tmp_path, other):
    content = {"model": other, "ema": other, "state_dict": weights(1.0)}
    source = open_source(saved(content, tmp_path / "model.pth"))
    assert (source.entry, source.averaged) == ("state_dict", None)
    assert source.ignored_entries == ("ema", "model")


def test_averaged_weights_that_are_not_there(tmp_path):
    path = saved(training_file(weights(1.0)), tmp_path / "model.pth")
    with pytest.raises(ConversionError) as caught:
        open_source(path, weights="ema")
    assert caught.value.problems == (
        f"{path}: holds no averaged weights (under model_ema, ema, ema_state_dict, "
        f"state_dict_ema, model_ema_state_dict); at its top are args, epoch, model, optimizer, "
        f"scaler; leave out --weights ema",
    )


def test_a_folder_of_deepspeed(tmp_path):
    path = saved({"module": weights(1.0)}, tmp_path / "step" / "mp_rank_00_model_states.pt")
    source = open_source(path.parent)
    assert (value_of(source), source.entry, source.files) == (1.0, "module", (path,))


@pytest.mark.parametrize("choice", ["model", "ema"])
def test_every_shard_gives_the_same_choice(tmp_path, choice):
    for number in (1, 2):
        content = {f"x.{number}": torch.full((2,), float(number))}
        wrapped = {"model": content, "ema": {name: -value for name, value in content.items()}}
        saved(wrapped, tmp_path / f"pytorch_model-{number:05}-of-00002.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(
        '{"weight_map": {"x.1": "pytorch_model-00001-of-00002.bin", '
        '"x.2": "pytorch_model-00002-of-00002.bin"}}'
    )
    source = open_source(tmp_path, weights=choice)
    sign = 1.0 if choice == "model" else -1.0
    assert [source.tensors[f"x.{n}"].read()[0] for n in (1, 2)] == [sign, 2 * sign]
    assert source.averaged == ("ema" if choice == "model" else None)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 5000, "\ud800", ("a", 1), 7, None])
def test_a_name_of_any_kind_beside_the_weights_is_one_short_line(tmp_path, name):
    path = saved({"model": weights(1.0), name: 1}, tmp_path / "model.pth")
    (shown,) = open_source(path).ignored_entries
    assert shown.isprintable()
    assert len(shown) <= 1000


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\ud800"])
def test_a_tensor_without_a_plain_name_is_refused(tmp_path, name):
    path = saved({"model": weights(1.0) | {name: torch.ones(2)}}, tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="a tensor is named ") as caught:
        open_source(path)
    (problem,) = caught.value.problems
    assert problem.isprintable()
