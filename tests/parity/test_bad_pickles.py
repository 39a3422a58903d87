"""Torch files that are damaged, lie, or would run code: one line each, and nothing happens."""

import argparse
import collections
import os
import pathlib
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from tests.folders import refusal, run
from tests.parity.sources import HEADS, SIZES, Original, original_model, saved

MEND = "download it again, or save the weights alone: torch.save(model.state_dict(), ...)"
OLD = {"_use_new_zipfile_serialization": False}


@pytest.fixture(scope="module")
def weights():
    return original_model(Original()).state_dict()


def problem(capsys, path) -> str:
    """The one line that a file is refused with, without the file's name."""
    (text,) = refusal(capsys, path.parent, path, path.parent / "out", *SIZES, *HEADS)
    assert text.startswith(f"{path}: ")
    # torch advises to load a file that it refuses without its protection.
    assert "weights_only" not in text.replace("``weights_only=True``", "")
    assert "add_safe_globals" not in text
    assert len(text) < 400
    return text.removeprefix(f"{path}: ")


class Harmful:
    """Runs a shell command when it is unpickled."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        lambda content, path: torch.save(content, path, **OLD),
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)),
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=5)),
    ],
    ids=["zip", "before zip", "protocol 0", "protocol 2", "protocol 5"],
)
@pytest.mark.parametrize("place", ["top", "model", "beside"])
def test_a_file_that_would_run_code_is_refused(tmp_path, capsys, weights, save, place):
    marker = tmp_path / "marker"
    harmful = Harmful(marker)
    content = {
        "top": harmful,
        "model": {"model": harmful},
        "beside": {"model": dict(weights), "args": harmful},
    }[place]
    path = tmp_path / "model.pth"
    save(content, path)
    text = problem(capsys, path)
    assert text.startswith(("refused, because it asks for ", "not a readable torch file ("))
    assert not marker.exists()


def test_the_harmful_file_of_these_tests_is_harmful(tmp_path):
    pickle.loads(pickle.dumps(Harmful(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (collections.defaultdict(list), "collections.defaultdict"),
        (np.ones(3), "numpy._core.multiarray._reconstruct"),
        (torch.nn.Linear(2, 3), "torch.nn.modules.linear.Linear"),
        (Original, "tests.parity.original.Original"),
        (print, "print"),
    ],
)
def test_what_is_not_plain_data_is_refused_by_name(tmp_path, capsys, weights, beside, name):
    path = saved({"model": dict(weights), "args": beside}, tmp_path / "model.pth")
    assert problem(capsys, path) == (
        f"refused, because it asks for {name}, which could run code; "
        f"save the weights alone: torch.save(model.state_dict(), ...)"
    )


def test_a_namespace_a_path_and_a_score_are_plain_data(tmp_path, weights):
    arguments = argparse.Namespace(
        lr=1e-3,
        nested=argparse.Namespace(betas=(0.9, 0.95)),
        out=pathlib.Path("/data"),
        best=[np.float64(79.0), np.float32(1), np.int64(3), np.bool_(True)],
    )
    path = saved({"model": dict(weights), "args": arguments}, tmp_path / "model.pth")
    assert run(path, *SIZES, *HEADS) == 0


@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "before zip"])
def test_a_truncated_file(tmp_path, capsys, weights, options):
    whole = saved({"model": dict(weights)}, tmp_path / "whole.pth", **options).read_bytes()
    sizes = [0, 1, 2, 4, 10, 64, 200, len(whole) // 2, len(whole) - 40, len(whole) - 1]
    random.seed(0)
    for size in sizes + [random.randrange(len(whole)) for _ in range(30)]:
        path = tmp_path / f"{size}.pth"
        path.write_bytes(whole[:size])
        text = problem(capsys, path)
        path.unlink()
        if size == 0:
            assert text == f"not a readable torch file (empty); {MEND}"
        # A name that was cut is a name that nobody allowed.
        elif not text.startswith("refused"):
            assert text.startswith("not a readable torch file (")
            assert text.endswith(MEND)


@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "before zip"])
def test_a_file_with_flipped_bytes_never_crashes(tmp_path, capsys, weights, options):
    whole = saved({"model": dict(weights)}, tmp_path / "whole.pth", **options).read_bytes()
    # Where the structure is: the pickle, and the directory at the end of a zip.
    start = max(whole.find(b"data.pkl"), 0)
    places = [*range(start, start + 3000), *range(len(whole) - 3000, len(whole))]
    generator = random.Random(0)
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(3):
            content[generator.choice(places)] = generator.randrange(256)
        path = tmp_path / "model.pth"
        path.write_bytes(content)
        code = run(path, *SIZES, *HEADS)
        printed = capsys.readouterr()
        assert code in (0, 2)
        if code:
            lines = printed.err.splitlines()
            assert lines
            assert all(line.startswith("convert: error: ") for line in lines)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.pth", "whole.pth"]


@pytest.mark.parametrize(
    "content",
    [
        b"these are no weights\n",
        b"<!DOCTYPE html><html>Not Found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\x80\x02.",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
    ],
)
def test_a_file_of_something_else(tmp_path, capsys, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert problem(capsys, path).startswith("not a readable torch file (")


def test_a_zip_of_something_else(tmp_path, capsys):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "none")
    assert problem(capsys, path).startswith("not a readable torch file (an archive without")


def test_a_torchscript_archive(tmp_path, capsys):
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    path = tmp_path / "model.pth"
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.script(Double()).save(str(path))
    assert "TorchScript" in problem(capsys, path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "it is empty"),
        ({"epoch": 3}, "at its top are epoch"),
        ([torch.zeros(2)], "it holds no entries but a list"),
        (torch.zeros(2), "it holds no entries but a Tensor"),
        ({"model": {}}, "at its top are model"),
        ({"model": {"epoch": 3}, "lr": 1.0}, "at its top are lr, model"),
        (dict.fromkeys("jihgfedcba", 1), "at its top are a, b, c, d, e, f, g, h and 2 more"),
        ({"a\nb": 1, 7: 2}, "at its top are 'a\\nb', 7"),
        ("text", "it holds no entries but a str"),
        (None, "it holds no entries but a NoneType"),
        (
            {"model_ema": {"x": torch.zeros(2)}},
            "at its top are model_ema; --weights ema takes model_ema",
        ),
    ],
    ids=str,
)
def test_a_file_without_weights(tmp_path, capsys, content, found):
    path = saved(content, tmp_path / "model.pth")
    assert problem(capsys, path) == (
        "no tensors found, neither at the top nor under model, module, state_dict, "
        f"model_state_dict; {found}"
    )


def test_a_file_of_another_model(tmp_path, capsys):
    names = ["conv1.weight", "layer1.0.bn1.weight", "fc.weight", "fc.bias", "bn1.weight"]
    path = saved(
        collections.OrderedDict((name, torch.ones(3)) for name in names), tmp_path / "resnet.pth"
    )
    assert problem(capsys, path).endswith(
        "; its first tensors are bn1.weight, conv1.weight, fc.bias, fc.weight"
    )


def test_a_hugging_face_state_without_its_config(tmp_path, capsys):
    path = tmp_path / "model.pth"
    saved({"embeddings.patch_embeddings.projection.weight": torch.ones(2, 3, 2, 4, 4)}, path)
    assert problem(capsys, path).startswith("a Hugging Face layout needs the config.json")


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda value: value.to_sparse(), "float32, but no plain array"),
        (lambda value: value.to("meta"), "float32, but no plain array"),
        (lambda value: value[:1].clone().expand(value.shape), "float32, but no plain array"),
        (lambda value: value.to(torch.int64), "int64"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: value.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
    ids=["sparse", "meta", "expanded", "int64", "complex64", "float8"],
)
def test_a_tensor_that_holds_no_weights(tmp_path, capsys, weights, make, dtype):
    path = saved(weights | {"head.weight": make(weights["head.weight"])}, tmp_path / "model.pth")
    assert problem(capsys, path) == f"not a float: head.weight is {dtype}"


def test_a_shape_that_lies_costs_no_memory(tmp_path, capsys, weights):
    # One number, said to be a petabyte of them.
    huge = torch.zeros(1, 1).expand(10**13, 42)
    path = saved(weights | {"head.weight": huge}, tmp_path / "model.pth")
    lines = refusal(capsys, tmp_path, path, *SIZES, *HEADS)
    assert f"{path}: not a float: head.weight is float32, but no plain array" in lines


def test_what_is_not_finite_is_found(tmp_path, capsys, weights):
    changed = {name: value.clone() for name, value in weights.items()}
    changed["blocks.0.attn.qkv.weight"][3, 4] = torch.nan
    changed["blocks.2.attn.qkv.weight"][3, 4] = torch.inf
    path = saved(changed, tmp_path / "model.pth")
    assert problem(capsys, path) == (
        "not finite: blocks.{n}.attn.qkv.weight holds NaN or Inf, layers 0, 2"
    )
