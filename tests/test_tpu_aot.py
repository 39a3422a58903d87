import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tpu_modelled
from tests.configs import TINY
from tpu import aot
from tpu.__main__ import main, parse
from tpu.aot import Account, AotError
from tpu.chips import CHIPS, parse_topology
from tpu.report_text import as_text
from videomae_jax.config import VARIANTS
from videomae_jax.flops import flops_per_clip

ROOT = Path(__file__).parents[1]
NO_LIBTPU = importlib.util.find_spec("libtpu") is None

ACCOUNT = Account(
    topology="v5e:2x2",
    chips=4,
    batch=32,
    compile_seconds=9.0,
    argument_bytes=200_000_000,
    output_bytes=51_200,
    temporary_bytes=600_000_000,
    program_bytes=10_000_000,
    flops=114e9,
    counted_flops=113_800_000_000,
    traffic_bytes=0.3e9,
    estimated_seconds=None,
    chip=CHIPS["v5e"],
)


def test_products_of_a_small_model_counted_by_hand():
    config = dataclasses.replace(VARIANTS["small"], num_labels=400)
    layer = 1568 * 384 * (3 * 384 + 384 + 2 * 1536) + 2 * 1568 * 1568 * 384
    assert flops_per_clip(config) == 2 * (1568 * 1536 * 384 + 12 * layer + 384 * 400)
    assert round(flops_per_clip(config) / 1e9, 1) == 113.8


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("v5e", ("v5e:1x1", 1)),
        ("v5e:2x2", ("v5e:2x2", 4)),
        ("v5e:16x16", ("v5e:16x16", 256)),
        ("v4", ("v4:1x1x1", 1)),
        ("v5p:4x4x8", ("v5p:4x4x8", 128)),
    ],
)
def test_topologies(name, wanted):
    chip, full, chips = parse_topology(name)
    assert (full, chips) == wanted
    assert chip is CHIPS[name.split(":")[0]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v9:2x2", "must begin with one of v4, v5e, v5p, v6e, as in v5e:2x2, got 'v9:2x2'"),
        ("", "got ''"),
        ("v5e:4", "a topology of v5e has 2 sides, as in v5e:2x2"),
        ("v5e:2x2x1", "has 2 sides"),
        ("v4:2x2", "a topology of v4 has 3 sides, as in v4:2x2x1, got 'v4:2x2'"),
        ("v5e:0x2", "got 'v5e:0x2'"),
        ("v5e:2xtwo", "got 'v5e:2xtwo'"),
        ("v5e:16x32", "a topology of v5e has 256 chips at most, got 'v5e:16x32': 512"),
    ],
)
def test_other_topologies_are_refused(name, words):
    with pytest.raises(ValueError, match="topology") as error:
        parse_topology(name)
    assert words in str(error.value)


def test_the_roofline():
    assert ACCOUNT.memory_bytes == 810_051_200
    assert ACCOUNT.arithmetic_seconds == pytest.approx(114 / 197e3)
    assert ACCOUNT.traffic_seconds == pytest.approx(0.3 / 819)
    assert (ACCOUNT.bound, ACCOUNT.roofline_seconds) == ("arithmetic", ACCOUNT.arithmetic_seconds)
    heavy = dataclasses.replace(ACCOUNT, traffic_bytes=0.6e9)
    assert (heavy.bound, heavy.roofline_seconds) == ("memory", heavy.traffic_seconds)


def test_the_report_says_that_all_of_it_is_modelled():
    text = as_text(ACCOUNT, what="small")
    assert text.splitlines()[0] == (
        "small on v5e:2x2: modelled by the TPU compiler, nothing was run"
    )
    assert "0.81 GB of 17.18 GB (5%)" in text
    assert (
        "0.579 ms a clip, bound by arithmetic: at most 1,728 clips/s a chip, 6,912 in all" in text
    )
    # Where the compiler has no estimate, there is none.
    assert "estimate" not in text
    wise = dataclasses.replace(ACCOUNT, estimated_seconds=7e-4)
    assert "0.700 ms a clip" in as_text(wise, what="small")
    assert json.loads(json.dumps(ACCOUNT.to_dict()))["modelled"] is True


def test_what_does_not_fit_has_no_roofline():
    large = dataclasses.replace(ACCOUNT, temporary_bytes=17_000_000_000)
    assert (ACCOUNT.fits, large.fits, large.bound) == (True, False, "doesn't fit")
    text = as_text(large, what="small")
    assert "none: it doesn't fit into the memory of a chip" in text
    assert "clips/s" not in text


def test_arithmetic_that_is_not_the_products_is_said():
    assert "114.0 GFLOP, 0.579 ms" in as_text(ACCOUNT, what="small")
    for flops in (100e9, 130e9):
        text = as_text(dataclasses.replace(ACCOUNT, flops=flops), what="small")
        assert f"{flops / 1e9:.1f} GFLOP (BUT 113.8 of products, counted from the config)" in text


class Compiled:
    """A program of TINY as the compiler accounts for it, with `unroll` layers in its loop."""

    def __init__(self, layers, unroll):
        # As `lax.scan` has it: what is left over comes after the loop.
        self.seen = 1 if layers == 1 else unroll + layers % unroll

    def memory_analysis(self):
        sizes = {"argument": 40, "output": 9, "alias": 8, "temp": 2, "generated_code": 1}
        return type("Memory", (), {f"{name}_size_in_bytes": size for name, size in sizes.items()})

    def cost_analysis(self):
        counted = {"flops": 100 + 7 * self.seen, "bytes accessed": 10 + 3 * self.seen}
        return counted | {"optimal_seconds": -1.0}


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 9])
def test_a_loop_is_counted_for_each_layer(layers, monkeypatch):
    monkeypatch.setattr(aot, "prepare", lambda: None)
    monkeypatch.setattr(aot, "tpu_mesh", lambda chip, topology: None)
    monkeypatch.setattr(aot, "_compiled", lambda request, mesh, unroll: Compiled(layers, unroll))
    config = dataclasses.replace(TINY, num_hidden_layers=layers)
    found = aot.account(aot.Request(topology="v5e:2x2", config=config, batch=2))
    assert found.flops == (100 + 7 * layers) / 2
    assert found.traffic_bytes == (10 + 3 * layers) / 2
    assert found.counted_flops == flops_per_clip(config)
    assert found.estimated_seconds is None
    # Outputs in the place of arguments are not held twice.
    assert found.memory_bytes == 40 + 1 + 2 + 1


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, (23.01G) exceeds (15.75G).\nLargest:",
            "it doesn't fit on a chip of v5e:2x2: Ran out of memory on HBM, (23.01G) exceeds "
            "(15.75G); try a --batch below 32",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.",
            "it doesn't fit on a chip of v5e:2x2: Ran out of memory in memory space vmem; "
            "try --backend xla",
        ),
        (
            "\nINTERNAL: Mosaic failed to compile\n\nThe MLIR:",
            "it can't be compiled for v5e:2x2: INTERNAL: Mosaic failed to compile",
        ),
        ("", "it can't be compiled for v5e:2x2: no reason is given"),
    ],
)
def test_what_the_compiler_refuses_is_one_line(message, wanted):
    request = aot.Request(topology="v5e:2x2", config=TINY, batch=32)
    assert aot.refusal(message, request) == wanted


@pytest.mark.parametrize("name", ["", "config.json"])
def test_configs_come_from_either_kind_of_folder(name, tmp_path, monkeypatch):
    from tpu.commands import aot as command

    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf() | {"num_labels": 7}))
    found = command.read_config(tmp_path / name)
    assert found == dataclasses.replace(TINY, fc_norm_eps=found.fc_norm_eps)
    options = parse(
        ["aot", "--topology", "v5e", "--config", str(tmp_path / name), "--num-heads", "4"]
    )
    wanted = dataclasses.replace(found, num_attention_heads=4)
    assert command.chosen_config(options) == wanted
    # A converted directory is read as one, whatever else lies in it.
    monkeypatch.setattr("videomae_jax.checkpoint.is_converted", lambda path: path == tmp_path)
    monkeypatch.setattr(
        "videomae_jax.checkpoint.load_description",
        lambda path: type("Description", (), {"config": TINY}),
    )
    assert command.read_config(tmp_path / name) == TINY


def test_the_environment_is_set_before_jax_and_the_user_is_heeded():
    script = (
        "import sys, os\n"
        "from tpu import __main__ as command\n"
        "assert 'jax' not in sys.modules\n"
        "command.main(['aot', '--topology', 'nowhere'])\n"
        "import jax\n"
        "print(jax.config.jax_platforms, os.environ['TPU_MIN_LOG_LEVEL'])\n"
    )
    names = {"JAX_PLATFORMS", *aot.ENVIRONMENT}
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for given, printed in (({}, "cpu 3"), ({"TPU_MIN_LOG_LEVEL": "0"}, "cpu 0")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=bare | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == printed


def test_a_program_that_does_not_compile_is_a_row_of_the_table(monkeypatch):
    answers = iter([ACCOUNT, AotError("it doesn't fit on a chip")])

    def account(request):
        answer = next(answers)
        if isinstance(answer, AotError):
            raise answer
        return answer

    monkeypatch.setattr(tpu_modelled, "account", account)
    cases = [tpu_modelled.modelled("small", 6, 32, "bfloat16", "v5e:2x2") for _ in range(2)]
    rows = [tpu_modelled.as_row(case) for case in cases]
    columns = tpu_modelled.COLUMNS.count("|")
    assert [row.count("|") for row in rows] == [columns, columns]
    assert "0.300 GB | 114 GFLOP | 0.58 ms | arithmetic | none |" in rows[0]
    assert "| v5e:2x2 | 32 | it doesn't fit on a chip |" in rows[1]


def test_without_libtpu_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AotError, match="libtpu is not installed"):
        aot.prepare()
    assert main(["aot", "--topology", "v5e:2x2"]) == 2
    assert capsys.readouterr().err == (
        'tpu: error: libtpu is not installed: pip install "videomae-jax[tpu]"\n'
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--num-heads", "7"], "not a multiple of"),
        (["--topology", "v5e:3"], "a topology of v5e has 2 sides"),
        (["--config", "nowhere"], "--config nowhere/config.json: No such file"),
        (["--config", "pyproject.toml"], "--config pyproject.toml: "),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(aot, "prepare", lambda: None)
    assert main(["aot", "--topology", "v5e:2x2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tpu: error: ")
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.tpu
@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu, the TPU compiler: pip install libtpu")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1"])
def test_the_whole_model_compiles_and_its_chips_do_not_talk(topology, tmp_path):
    script = tmp_path / "compile.py"
    script.write_text(
        "from tpu import aot\n"
        "from tpu.chips import parse_topology\n"
        "import dataclasses, json\n"
        "aot.prepare()\n"
        "from tests.configs import TINY\n"
        "config = dataclasses.replace(TINY, hidden_size=128)\n"
        f"request = aot.Request(topology={topology!r}, config=config, batch=3, clips='uint8')\n"
        f"chip, name, _ = parse_topology({topology!r})\n"
        "program = aot._compiled(request, aot.tpu_mesh(chip, name), 1)\n"
        "print(json.dumps({'text': program.as_text(), **aot.account(request).to_dict()}))\n"
    )
    # Without the suite's platform and flags, as a user's shell has none.
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["chips"] == 4
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in found["text"]
    assert "short_attention" in found["text"]
    config = dataclasses.replace(TINY, hidden_size=128)
    assert found["flops"] > flops_per_clip(config)
    assert 0 < found["memory_bytes"] < 1e9


@pytest.mark.tpu
@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu, the TPU compiler: pip install libtpu")
def test_cut_parameters_take_less_memory_and_are_gathered(tmp_path):
    script = tmp_path / "compile.py"
    script.write_text(
        "from tpu import aot\n"
        "from tpu.chips import parse_topology\n"
        "import dataclasses, json\n"
        "aot.prepare()\n"
        "from tests.configs import TINY\n"
        "config = dataclasses.replace(TINY, hidden_size=128)\n"
        "found = {}\n"
        "for sharding in ('replicated', 'fsdp', 'tensor'):\n"
        "    request = aot.Request(\n"
        "        topology='v5e:2x2', config=config, batch=3, sharding=sharding\n"
        "    )\n"
        "    chip, name, _ = parse_topology(request.topology)\n"
        "    program = aot._compiled(request, aot.tpu_mesh(chip, name), 1)\n"
        "    size = program.memory_analysis().argument_size_in_bytes\n"
        "    found[sharding] = (size, program.as_text())\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (whole, alone), (cut, gathering), (_, summing) = found.values()
    assert cut < 0.7 * whole
    assert "all-gather" not in alone
    assert "all-gather" in gathering
    assert "all-reduce" in summing
