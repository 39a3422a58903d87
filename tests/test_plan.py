"""What `python -m tpu plan` says, against arithmetic done by hand."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs import TINY
from tpu.__main__ import main
from tpu.chips import CHIPS, HOSTS
from tpu.plan import Demand, Figure, cost, own_hosts, total_bytes, with_more_cores
from tpu.plan_rates import DECODING, TRAFFIC, chip_rate, decode_rate, row_bytes
from tpu.plan_text import size
from videomae_jax.config import VARIANTS

ROOT = Path(__file__).parents[1]


def figure(value):
    return Figure(value, "", "given")


# One chip computes 600 clips a second and has 20 cores of 10 videos each beside it, and 2.5 GB/s of
# network; a video is 5 MB, a clip 2 MB.
DEMAND = Demand(
    chip="v5e",
    videos=figure(36_000_000),
    views=figure(1),
    clip_bytes=figure(2e6),
    video_bytes=figure(5e6),
    clips_per_chip=figure(600.0),
    videos_per_core=figure(10.0),
    cores_per_chip=figure(20.0),
    network_per_chip=figure(2.5e9),
    row_bytes={"classify": figure(250.0), "embed": figure(1640.0)},
)


def planned(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_a_chip_and_its_share_of_the_host_can_do():
    # 600 clips, one a video; 20 cores x 10 videos; 2.5 GB/s / 5 MB.
    assert DEMAND.rates == {"chips": 600, "cores": 200, "network": 500}
    assert DEMAND.bottleneck == "cores"
    # 15 views: 600 / 15 = 40 videos a second, less than the cores do.
    views = dataclasses.replace(DEMAND, views=figure(15))
    assert views.rates == {"chips": 40, "cores": 200, "network": 500}
    assert views.bottleneck == "chips"
    # 20 MB a video: 2.5 GB/s / 20 MB = 125.
    large = dataclasses.replace(DEMAND, video_bytes=figure(20e6))
    assert large.bottleneck == "network"
    assert large.rates["network"] == 125


def test_chips_for_a_deadline():
    # 36e6 videos in 10 hours are 1,000 a second; 200 a chip: 5 chips, 2 hosts of 4, 100 cores.
    own = own_hosts(DEMAND, hours=10)
    assert (own.chips, own.hosts, own.cores, own.extra_cores) == (5, 2, 100, 0)
    assert (own.videos_per_second, own.hours) == (1000, 10)
    assert own.bottleneck == "cores"
    assert own.busy == pytest.approx({"chips": 1 / 3, "cores": 1, "network": 200 / 500})
    # 1,000 videos of 5 MB a second are read, 1,000 clips of 2 MB go to the chips.
    assert (own.storage_bytes_per_second, own.link_bytes_per_second) == (5e9, 2e9)
    assert own.network_bytes_per_second == 5e9


def test_more_cores_for_a_deadline():
    # A chip can use 600 videos a second; 200 its host decodes, from 200 x 5 MB = 1 GB/s. The 400
    # others arrive as clips of 2 MB: 0.8 GB/s, 1.8 of 2.5 GB/s together: the chips are the limit.
    more = with_more_cores(DEMAND, hours=10)
    # 1,000 a second / 600 = 1.67: 2 chips, which do 1,200 a second, in 36e6 / 1200 / 3600 h.
    assert (more.chips, more.hosts, more.cores) == (2, 1, 40)
    assert more.hours == pytest.approx(25 / 3)
    # 1,200 a second need 120 cores of 10 videos: 80 more than 40.
    assert more.extra_cores == 80
    assert more.bottleneck == "chips"
    assert more.busy == pytest.approx({"chips": 1, "cores": 1, "network": 1.8 / 2.5})
    assert more.network_bytes_per_second == pytest.approx(2 * 1.8e9)
    assert more.storage_bytes_per_second == pytest.approx(1200 * 5e6)


def test_a_network_that_clips_fill():
    # 4 views of 2 MB are 8 MB a video. A chip: 150 videos a second, its cores (5 x 10) 50, from
    # 50 x 5 MB = 250 MB/s; of 650 MB/s 400 are left, for 50 videos as clips: 100 in all.
    demand = dataclasses.replace(
        DEMAND, views=figure(4), cores_per_chip=figure(5.0), network_per_chip=figure(650e6)
    )
    assert demand.rates == {"chips": 150, "cores": 50, "network": 130}
    assert demand.balanced_rates == {"chips": 150, "network": 100}
    more = with_more_cores(demand, chips=3)
    assert (more.chips, more.videos_per_second, more.extra_cores) == (3, 300, 15)
    assert more.bottleneck == "network"
    assert more.busy == pytest.approx({"chips": 2 / 3, "cores": 1, "network": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"clips_per_chip": figure(150.0)},
        {"network_per_chip": figure(150 * 5e6)},
    ],
)
def test_more_cores_are_added_only_where_they_are_short(changes):
    demand = dataclasses.replace(DEMAND, **changes)
    assert with_more_cores(demand, chips=7) == own_hosts(demand, chips=7)
    # 36e6 videos / (7 x 150) a second.
    assert own_hosts(demand, chips=7).hours == pytest.approx(36e6 / 1050 / 3600)


def test_a_deadline_that_fits_to_the_last_chip_takes_no_further_one():
    # 0.1 x 3 is above 0.3 by rounding; 3 chips are enough all the same.
    demand = dataclasses.replace(DEMAND, videos=figure(3 * 36_000), clips_per_chip=figure(0.1))
    assert own_hosts(demand, hours=100).chips == 3


def test_bytes_of_the_whole_job():
    demand = dataclasses.replace(DEMAND, views=figure(15))
    assert total_bytes(demand) == {
        "read": 36e6 * 5e6,
        "link": 36e6 * 15 * 2e6,
        "classify": 36e6 * 250,
        "embed": 36e6 * 1640,
    }


def test_prices():
    own, more = own_hosts(DEMAND, hours=10), with_more_cores(DEMAND, hours=10)
    # 5 chips x 10 h x 3; 2 chips x 8.33 h x 3 + 80 cores x 8.33 h x 0.06.
    assert cost(own, chip_hour=3, core_hour=None) == 150
    assert cost(more, chip_hour=3, core_hour=0.06) == pytest.approx(50 + 40)
    assert cost(more, chip_hour=3, core_hour=None) is None
    assert cost(own, chip_hour=None, core_hour=1) is None


def test_a_modelled_chip():
    # v5e: 113.756 GFLOP / 197 TFLOP/s = 0.5774 ms, more than 0.290 GB / 819 GB/s = 0.355 ms; of
    # 1,731.8 clips a second 40 % are 692.7.
    small = VARIANTS["small"]
    found = chip_rate(small, "v5e", dtype="bfloat16", efficiency=0.4)
    assert found.value == pytest.approx(692.71, abs=0.01)
    assert found.basis == "modelled"
    assert "40% is assumed" in found.source
    # v6e: 0.124 ms of arithmetic, 301.2 MB / 1640 GB/s = 0.18366 ms: 5,445 clips a second, half.
    found = chip_rate(small, "v6e", dtype="bfloat16", efficiency=0.5)
    assert found.value == pytest.approx(5444.9 / 2, abs=0.1)
    # 16 heads move more there: 359.0 MB / 1640 GB/s = 0.2189 ms.
    sixteen = dataclasses.replace(small, num_attention_heads=16)
    found = chip_rate(sixteen, "v6e", dtype="bfloat16", efficiency=1)
    assert found.value == pytest.approx(1640e9 / 358_994_472)
    # No other network was compiled: arithmetic alone, and it says so.
    assert "not compiled" in chip_rate(TINY, "v6e", dtype="bfloat16", efficiency=1).source


def test_traffic_is_what_the_compiler_said():
    path = ROOT / "benchmarks" / "results" / "tpu_modelled.json"
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        chip, _, sides = case["topology"].partition(":")
        if sides == "1x1":
            known = TRAFFIC[case["model"], case["num_heads"], case["dtype"]]
            assert known[chip] == case["traffic_bytes"]
    cases = sum(map(len, TRAFFIC.values()))
    assert cases == 9


def test_measured_decoding_in_proportion_to_the_length():
    # The middle of 70 and 150 ms for 900 frames; 300 frames are a third: 36.7 ms, 27.3 a second.
    found = decode_rate("480x270", 10)
    assert found.value == pytest.approx(3 / 0.110)
    assert "70 to 150 ms were measured" in found.source
    assert found.basis == "modelled"
    assert (found.least, found.most) == pytest.approx((3 / 0.150, 3 / 0.070))
    # As measured: 30 s. The middle of 340 and 390 ms.
    found = decode_rate("1920x1080", 30)
    assert found.basis == "measured"
    assert found.value == pytest.approx(1 / 0.365)
    assert "proportion" not in found.source


def test_rows_as_they_are_written():
    # row 8; frames, duration, decode_s, retries 4 each; path 80 + 4; five classes of 4 + 4 + 20.
    rows = row_bytes(384)
    assert rows["classify"].value == 8 + 16 + 84 + 140
    assert rows["embed"].value == 8 + 16 + 84 + 4 * 384


def test_the_hosts_of_every_chip_are_known():
    assert set(HOSTS) == set(CHIPS)
    per_chip = {chip: host.vcpus / host.chips for chip, host in HOSTS.items()}
    assert per_chip == {"v4": 60, "v5e": 28, "v5p": 52, "v6e": 45}
    assert HOSTS["v5e"].network_bytes_per_second == 100e9 / 8
    assert HOSTS["v6e"].network_bytes_per_second == 400e9 / 8


def test_the_command(capsys):
    found = planned(capsys, *"--videos 1e9 --chip v5e --model small".split())
    # 692.71 videos a second and chip are the least; 1e9 in 24 h are 11,574 a second: 16.7 chips.
    assert found["bottleneck"] == "chips"
    rates = found["videos_per_second_a_chip"]
    assert rates == pytest.approx({"chips": 692.71, "cores": 763.64, "network": 1250}, rel=1e-4)
    own = found["fleets"]["own"]
    assert (own["chips"], own["hosts"], own["cores"], own["extra_cores"]) == (17, 5, 476, 0)
    assert own["hours"] == pytest.approx(1e9 / (17 * 692.71) / 3600, rel=1e-4)
    # 2.5 MB a video; 16 x 224 x 224 x 3 bytes a clip.
    assert found["bytes"]["read"] == 2.5e15
    assert found["bytes"]["link"] == 1e9 * 2_408_448
    assert own["price"] is None


def test_what_the_user_measured_is_taken_as_it_is(capsys):
    found = planned(
        capsys,
        *"--videos 1e6 --chip v6e --model base --views 5x3 --chips 8 --decode-ms 50".split(),
        *"--chip-rate 900 --cores-per-chip 4 --network-gbps 8 --video-mb 4 --video-s 99".split(),
        *"--price-per-chip-hour 3 --price-per-core-hour 0.05".split(),
    )
    inputs = found["inputs"]
    given = {name: value for name, value in inputs.items() if name not in {"chip", "row_bytes"}}
    assert {name for name, value in given.items() if value["basis"] != "given"} == {"clip_bytes"}
    # 900 / 15 clips; 4 cores / 50 ms; 8 Gb/s / 4 MB.
    assert found["videos_per_second_a_chip"] == {"chips": 60, "cores": 80, "network": 250}
    own = found["fleets"]["own"]
    assert own["chips"] == 8
    assert own["hours"] == pytest.approx(1e6 / 480 / 3600)
    assert own["price"] == pytest.approx(8 * 3 * 1e6 / 480 / 3600)


def test_every_figure_says_where_it_comes_from(capsys):
    assert main("plan --videos 1e6 --chip v5e --resolution 1920x1080 --chips 4".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    bases = {"measured", "modelled", "assumed", "given"}
    head = "hosts of the chips alone"
    figures = [line for line in lines if line.startswith("  ") and head not in line]
    assert len(figures) == 27
    assert [line for line in figures if not bases & set(line.replace(",", " ").split())] == []
    assert lines[0] == "1,000,000 videos, small, 1x1 views, bfloat16, on v5e"
    # 1e3 / (365 ms / 3) = 8.2 videos a second and core x 28.
    assert any("the cores of their hosts" in line and "230.1" in line for line in lines)
    assert "Bottleneck: the cores of their hosts." in lines


def test_what_the_range_that_was_measured_changes(capsys):
    # 28 cores x 20 videos of 150 ms a third: 560 a second, less than the chip's 692.7.
    assert main("plan --videos 1e6 --chip v5e".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("the cores of their hosts" in line and "560.0 to 1,200.0" in line for line in lines)
    slowest = "For videos that decode as slowly as the slowest measured: the cores of their hosts."
    assert lines[-1] == slowest
    assert "Bottleneck: the chips." in lines
    # 23 is what one is given: no range, and 644 the least.
    assert main("plan --videos 1e6 --chip v5e --decode-rate 23".split()) == 0
    given = capsys.readouterr().out
    assert "as was measured" not in given
    assert "slowest measured" not in given
    assert "Bottleneck: the cores of their hosts." in given


def test_prices_are_the_users(capsys):
    asked = "plan --videos 1e6 --chip v5e --resolution 1920x1080 --chips 4".split()
    assert main(asked) == 0
    assert "price" not in capsys.readouterr().out
    assert main([*asked, "--price-per-chip-hour", "2"]) == 0
    (price,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  price"))
    # 4 chips x 1e6 / (4 x 230.1) / 3600 h x 2; the other fleet has cores without a price.
    assert price.split() == "price 2.41 say a core's price modelled".split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--videos 0 --chip v5e", "--videos: must be a number above 0, got 0"),
        ("--videos nan --chip v5e", "--videos: must be a number above 0, got nan"),
        ("--videos many --chip v5e", "--videos: invalid positive value: 'many'"),
        ("--videos 1e6 --chip v9", "--chip: invalid choice: 'v9'"),
        ("--videos 1e6 --chip v5e --chips 1.5", "--chips: must be a whole number"),
        ("--videos 1e6 --chip v5e --chips inf", "--chips: must be a whole number"),
        ("--videos 1e6 --chip v5e --chips 1 --hours 2", "not allowed with argument --chips"),
        ("--videos 1e6 --chip v5e --efficiency 40", "--efficiency: must be above 0 and 1 at most"),
        ("--videos 1e6 --chip v5e --views 5", "5x3"),
        ("--videos 1e6 --chip v5e --num-heads 7", "num_attention_heads"),
        ("--videos 1e6 --chip v5e --decode-ms 1 --decode-rate 1", "not allowed with argument"),
    ],
)
def test_nonsense_is_one_line(capsys, arguments, words):
    try:
        code = main(["plan", *arguments.split()])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("tpu: error: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_a_plan_starts_no_jax():
    code = (
        "import sys\nfrom tpu.__main__ import main\n"
        "main('plan --videos 1e6 --chip v5e'.split())\n"
        "print('jax' in sys.modules, 'flax' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "False False False"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (2_408_448, "2.41 MB"), (2.5e15, "2.5 PB"), (4e18, "4 EB")],
)
def test_sizes(count, text):
    assert size(count) == text


def test_the_measured_range_is_a_range():
    for kind in DECODING.values():
        assert kind.least_ms < kind.most_ms


README = (ROOT / "tpu" / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_what_is_printed(capsys):
    command = "plan --videos 1e9 --chip v5e --model small"
    assert main(command.split()) == 0
    assert f"$ python -m tpu {command}\n{capsys.readouterr().out}```\n" in README


def test_the_readme_s_table(capsys):
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("| `--videos")]
    assert len(rows) == 6
    for command, *cells in rows:
        found = planned(capsys, *command.strip(" `").split())
        own, more = found["fleets"]["own"], found["fleets"]["more"]
        wanted = [
            found["bottleneck"],
            str(own["chips"]),
            f"{own['hours']:.2f}",
            f"{more['chips']} + {more['extra_cores']:,}",
            f"{more['hours']:.2f}",
            more["bottleneck"],
        ]
        assert [cell.strip() for cell in cells] == wanted, command


def test_the_readme_s_prices():
    # 51 chips for 23.67 h against 21 and 874 cores for 23.12 h, to the digits that are shown.
    assert "`51 x 23.67 h x P` = 1,207 P" in README
    assert round(51 * 23.67) == 1207
    assert "`21 x 23.12 h x P + 874 x 23.12 h x p` = 486 P + 20,207 p" in README
    assert round(21 * 23.12) == 486
    assert round(874 * 23.12) == 20_207
    # (1,207 - 486) P > 20,207 p.
    assert 28 < 20_207 / (1207 - 486) < 28.1
