"""The launch scripts with --dry-run, and the manifests that they fill: nothing reaches a cloud."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tpu.__main__ import parse
from tpu.chips import CHIPS

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "tpu" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMANDS = {
    "slice.sh": ("create", "run", "resume", "status", "logs", "delete"),
    "jobset.sh": ("create", "resume", "status", "logs", "delete"),
    "kuberay.sh": ("create", "resume", "status", "logs", "delete"),
}
# Each different, and with everything that a shell, YAML, Kubernetes or bash's own replacement of
# text could trip over.
SETTINGS = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "NAME": "my-job",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "MANIFEST": "gs://bucket/my videos' list.csv",
    "OUT": 'gs://bucket/out $(HOME) `id` "q" & %NAME% \\1 # ~',
    "MODEL": "gs://bucket/models/small k400; $(PATH)/",
    "PACKAGE": "git+https://example.org/videomae-jax@v0.1",
    "CHIP": "v5e",
    "TOPOLOGY": "4x4",
    "IMAGE": "example.org/image:tag",
    "RAY_VERSION": "2.55.1",
}
COPIED = "small k400; $(PATH)"
EXTRA = ("--views", "5x3", "--root", "gs://bucket/a $folder")


TOOLS = {}


@pytest.fixture(scope="module", autouse=True)
def tools(tmp_path_factory):
    """A folder with what the scripts may use: a real gcloud or kubectl is out of reach."""
    folder = tmp_path_factory.mktemp("tools")
    for name in ("bash", "basename", "cat", "dirname", "hostname", "id", "mkdir", "sh", "touch"):
        (folder / name).symlink_to(shutil.which(name))
    TOOLS["path"] = str(folder)


def launch(script, *arguments, settings=None, programs=None, stdin=""):
    """Run a script with nothing but `settings` in its environment, and the folder `programs`."""
    path = TOOLS["path"] if programs is None else f"{programs}:{TOOLS['path']}"
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        env={"PATH": path, "HOME": "/nowhere", **(settings or {})},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def dry(script, *arguments, **changes):
    """The output of a dry run."""
    settings = {"TOPOLOGY": "2x2"} if script == "kuberay.sh" else {}
    run = launch(
        script, arguments[0], "--dry-run", *arguments[1:], settings=SETTINGS | settings | changes
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def steps(output):
    """The commands in it, as lists of words; lines that are comments left out."""
    return [shlex.split(line) for line in output.splitlines() if not line.startswith("#")]


def options_of(words):
    """{option: value} of the words --option=value."""
    return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


def on_hosts(words):
    """The words that a command over ssh has on the host."""
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-job"]
    return shlex.split(options_of(words)["command"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    assert len(SCRIPTS) == 6
    subprocess.run(["bash", "-n", script], check=True)
    found = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "-x", script.name],
        cwd=LAUNCH,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("script", "command"),
    [(script, command) for script, commands in COMMANDS.items() for command in commands],
)
def test_a_dry_run_touches_nothing(script, command, tmp_path):
    trap = tmp_path / "trap"
    for program in ("gcloud", "kubectl", "ssh", "sudo"):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\ntouch {trap}\n")
        path.chmod(0o755)
    topology = {"TOPOLOGY": "2x2"} if script == "kuberay.sh" else {}
    fake = launch(script, command, "--dry-run", settings=SETTINGS | topology, programs=tmp_path)
    assert fake.returncode == 0
    assert not trap.exists()
    # With no such programs at all it is the same.
    assert fake.stdout == dry(script, command)
    assert fake.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_help_and_what_is_refused(script):
    shown = launch(script, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for command in (*COMMANDS[script], "--dry-run", "MANIFEST OUT MODEL"):
        assert command in shown.stdout
    assert launch(script, "status", "--help").stdout == shown.stdout
    for arguments in ((), ("destroy",), ("status", "--force"), ("logs", "--tail", "all")):
        refused = launch(script, *arguments, settings=SETTINGS)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("launch: error: ")
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "command", "missing"),
    [
        ("slice.sh", "status", "PROJECT ZONE"),
        ("slice.sh", "create", "PROJECT ZONE ACCELERATOR_TYPE RUNTIME_VERSION"),
        ("slice.sh", "run", "PROJECT ZONE MANIFEST OUT MODEL PACKAGE"),
        ("jobset.sh", "create", "CHIP TOPOLOGY MANIFEST OUT MODEL PACKAGE"),
        ("kuberay.sh", "resume", "CHIP TOPOLOGY IMAGE RAY_VERSION MANIFEST OUT MODEL"),
    ],
)
def test_all_missing_settings_at_once(script, command, missing):
    run = launch(script, command, "--dry-run")
    expected = f"launch: error: set {missing} in the environment; see --help\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", expected)


@pytest.mark.parametrize(
    ("script", "changes", "words"),
    [
        ("slice.sh", {"NAME": "my job"}, "NAME must be lower-case letters"),
        ("slice.sh", {"NAME": "a" * 41}, "at most 40"),
        ("slice.sh", {"MANIFEST": "videos.csv"}, "MANIFEST must be seen by every host"),
        ("slice.sh", {"OUT": "out"}, "OUT must be seen by every host"),
        ("slice.sh", {"PACKAGE": "./x.whl"}, "PACKAGE must be git+https://"),
        ("slice.sh", {"MODEL": "gs://bucket/"}, "MODEL must be a folder in the bucket"),
        ("slice.sh", {"SPOT": "true"}, "SPOT must be yes or no, got 'true'"),
        ("jobset.sh", {"CHIP": "h100"}, "CHIP must be v4, v5e, v5p or v6e, got 'h100'"),
        ("jobset.sh", {"TOPOLOGY": "4"}, "TOPOLOGY must be the sides of the slice"),
        ("jobset.sh", {"CHIPS_PER_HOST": "3"}, "must divide the 16 chips of 4x4, got '3'"),
        ("jobset.sh", {"PRIVILEGED": "1"}, "PRIVILEGED must be yes or no"),
        ("jobset.sh", {"MAX_RESTARTS": "many"}, "MAX_RESTARTS must be a whole number"),
        ("jobset.sh", {"OUT": "gs://a/b\nc"}, "can't hold control characters"),
        ("kuberay.sh", {"TOPOLOGY": "4x4"}, "TOPOLOGY must be of one host"),
        ("kuberay.sh", {"CPUS": "2.5"}, "CPUS must be a whole number"),
    ],
)
def test_settings_that_cannot_be(script, changes, words):
    # What runs the job.
    command = "run" if script == "slice.sh" else "create"
    topology = {"TOPOLOGY": "2x2"} if script == "kuberay.sh" else {}
    run = launch(script, command, "--dry-run", settings=SETTINGS | topology | changes)
    assert run.returncode == 2
    assert words in run.stderr
    assert "kind: " not in run.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_nothing_is_deleted_unasked(script, tmp_path):
    called = tmp_path / "called"
    for program in ("gcloud", "kubectl"):
        path = tmp_path / program
        path.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
        path.chmod(0o755)
    refused = launch(script, "delete", settings=SETTINGS, programs=tmp_path, stdin="y\n")
    assert refused.returncode == 2
    assert "nobody is there to be asked: say --yes" in refused.stderr
    assert not called.exists()
    assert launch(script, "delete", "--yes", settings=SETTINGS, programs=tmp_path).returncode == 0
    (line,) = called.read_text().splitlines()
    assert " delete " in line
    assert "my-job" in line


@pytest.mark.parametrize("script", COMMANDS)
def test_the_cloud_s_program_is_needed(script):
    run = launch(script, "status", settings=SETTINGS)
    assert run.returncode == 2
    assert "is not installed, or not on PATH" in run.stderr


def test_a_slice_is_asked_for():
    (words,) = steps(dry("slice.sh", "create"))
    assert words[:6] == "gcloud compute tpus queued-resources create my-job".split()
    wanted = {
        "project": "my-project",
        "zone": "us-west4-a",
        "node-id": "my-job",
        "accelerator-type": "v5litepod-16",
        "runtime-version": "v2-alpha-tpuv5-lite",
    }
    assert options_of(words) == wanted
    assert words[-1] == "--spot"
    (words,) = steps(dry("slice.sh", "create", SPOT="no"))
    assert "--spot" not in words
    assert options_of(words) == wanted


def test_a_slice_is_run():
    ask, copy, setup, start = steps(dry("slice.sh", "run", "--", *EXTRA))
    assert ask[:6] == "gcloud compute tpus queued-resources describe my-job".split()
    assert copy[4:6] == ["scp", str(LAUNCH / "host.sh")]
    assert copy[6] == "my-job:videomae-host.sh"
    for words in (copy, setup, start):
        assert options_of(words)["worker"] == "all"
        assert options_of(words)["project"] == "my-project"
        assert options_of(words)["zone"] == "us-west4-a"
    package = f"videomae-jax[batch,tpu] @ {SETTINGS['PACKAGE']}"
    host = ["bash", "videomae-host.sh"]
    assert on_hosts(setup) == [*host, "setup", package, SETTINGS["MODEL"].rstrip("/")]
    assert on_hosts(start)[:3] == [*host, "start"]
    check_run(on_hosts(start)[3:], f"model/{COPIED}")
    # A model that isn't in a bucket is on the hosts, or has an id: nothing is copied.
    _, _, setup, start = steps(dry("slice.sh", "run", "--", *EXTRA, MODEL="/mnt/small"))
    assert on_hosts(setup) == [*host, "setup", package, ""]
    check_run(on_hosts(start)[3:], "/mnt/small")


def test_resume_is_the_same_again():
    resumed = steps(dry("slice.sh", "resume", "--", *EXTRA))
    assert [words[4] for words in resumed[:2]] == ["delete", "create"]
    assert resumed[1:2] == steps(dry("slice.sh", "create"))
    assert resumed[2:] == steps(dry("slice.sh", "run", "--", *EXTRA))


def gcloud_that_says(state, tmp_path):
    """A folder with a gcloud that says the state of a slice, and notes what is asked of it."""
    program = tmp_path / "gcloud"
    program.write_text(
        f'#!/bin/sh\necho "$4 $5" >> {tmp_path}/called\n'
        f'[ "$4" != describe ] || {{ [ -n "{state}" ] && echo "{state}"; }}\n'
    )
    program.chmod(0o755)
    return tmp_path / "called"


def test_resume_leaves_a_slice_that_lives(tmp_path):
    called = gcloud_that_says("ACTIVE", tmp_path)
    run = launch("slice.sh", "resume", settings=SETTINGS, programs=tmp_path)
    assert run.returncode == 0
    verbs = [line.split()[0] for line in called.read_text().splitlines()]
    assert verbs == ["describe", "describe", "scp", "ssh", "ssh"]


def test_resume_asks_before_a_slice_that_is_gone_is_deleted(tmp_path):
    called = gcloud_that_says("SUSPENDED", tmp_path)
    run = launch("slice.sh", "resume", settings=SETTINGS, programs=tmp_path)
    assert run.returncode == 2
    assert "the slice my-job is SUSPENDED: delete it and ask for another?" in run.stderr
    assert called.read_text().splitlines() == ["describe my-job"]
    called.unlink()
    # The fake's slice stays SUSPENDED, so that it ends after all has been asked for.
    run = launch("slice.sh", "resume", "--yes", settings=SETTINGS, programs=tmp_path)
    assert "the slice my-job is SUSPENDED; resume asks anew" in run.stderr
    verbs = [line.split()[0] for line in called.read_text().splitlines()]
    assert verbs == ["describe", "delete", "create", "describe"]


def test_a_slice_that_is_not_there_is_not_run(tmp_path):
    called = gcloud_that_says("", tmp_path)
    run = launch("slice.sh", "run", settings=SETTINGS, programs=tmp_path)
    assert run.returncode == 2
    assert "there is no slice my-job in us-west4-a; create it first" in run.stderr
    assert called.read_text().splitlines() == ["describe my-job"]


def test_status_and_logs_of_a_slice():
    describe, status = steps(dry("slice.sh", "status"))
    assert "describe" in describe
    assert on_hosts(status) == ["bash", "videomae-host.sh", "status"]
    (logs,) = steps(dry("slice.sh", "logs", "--tail", "7"))
    assert on_hosts(logs) == ["bash", "videomae-host.sh", "logs", "7"]


@pytest.fixture
def host(tmp_path):
    """A host of a slice: a home, and programs that note what they are asked, state in a file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    note = f'printf "%s\\n" "$(basename "$0")" "$@" --- >> {tmp_path}/called\n'
    for program in ("sudo", "python3", "gcloud"):
        (programs / program).write_text(f"#!/bin/bash\n{note}")
    (programs / "systemctl").write_text(f"#!/bin/bash\n{note}cat {tmp_path}/state\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    (tmp_path / "state").write_text("dead\n")

    def run(*arguments):
        environment = {"PATH": f"{programs}:{TOOLS['path']}", "HOME": f"{tmp_path}/my home"}
        (tmp_path / "called").write_text("")
        done = subprocess.run(
            ["bash", LAUNCH / "host.sh", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = (tmp_path / "called").read_text().split("\n---\n")
        return done, [call.split("\n") for call in lines if call]

    return run


def test_a_host_is_set_up(host, tmp_path):
    done, calls = host("setup", "videomae-jax[batch,tpu] @ git+https://x", "gs://b/my model")
    assert (done.returncode, done.stderr) == (0, "")
    home = f"{tmp_path}/my home/videomae"
    *_, install, copy = calls
    assert install[-2:] == ["videomae-jax[batch,tpu] @ git+https://x", "gcsfs"]
    assert f"{home}/venv/bin/python" in install
    assert copy == ["gcloud", "storage", "cp", "--recursive", "gs://b/my model", f"{home}/model/"]
    assert host("setup", "x", "")[1][-1][0] == "python3"


def test_a_host_starts_the_job_once(host, tmp_path):
    done, calls = host("start", "run", "gs://b/my videos", "--distributed")
    assert (done.returncode, done.stderr) == (0, "")
    words = calls[-1]
    assert words[:2] == ["sudo", "systemd-run"]
    # SIGTERM comes first; the job needs up to 20 s.
    assert "--property=TimeoutStopSec=25" in words
    python = f"{tmp_path}/my home/videomae/venv/bin/python"
    command = [python, "-m", "tpu", "run", "gs://b/my videos", "--distributed"]
    assert words[words.index("--") + 1 :] == command
    (tmp_path / "state").write_text("running\n")
    done, calls = host("start", "run")
    assert done.returncode == 2
    assert "it runs already" in done.stderr
    assert [call[0] for call in calls] == ["systemctl"]


def test_host_status_logs_and_nonsense(host):
    done, calls = host("status")
    assert done.returncode == 0
    assert "dead" in done.stdout
    assert "_SYSTEMD_UNIT=videomae.service" in calls[-1]
    _, calls = host("logs", "5")
    assert calls[-1][:2] == ["sudo", "journalctl"]
    assert "--lines=5" in calls[-1]
    done, calls = host("frobnicate")
    assert (done.returncode, calls) == (2, [])


def check_run(words, model):
    """These are words of `python -m tpu`, those that were asked for."""
    assert words[:3] == ["run", SETTINGS["MANIFEST"], SETTINGS["OUT"]]
    options = parse(words)
    assert (options.manifest, options.out) == (SETTINGS["MANIFEST"], SETTINGS["OUT"])
    assert (options.model, options.views, options.root) == (model, EXTRA[1], EXTRA[3])
    assert options.distributed is True


def manifest_of(output):
    """The one document in what a dry run printed, comments and all."""
    (document,) = yaml.safe_load_all(output)
    return document


def pod_of_jobset(document):
    (hosts,) = document["spec"]["replicatedJobs"]
    return hosts["template"]["spec"]["template"]["spec"]


def test_the_jobset_is_what_kubernetes_demands():
    document = manifest_of(dry("jobset.sh", "create", "--", *EXTRA))
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert document["kind"] == "JobSet"
    assert document["metadata"]["name"] == "my-job"
    (hosts,) = document["spec"]["replicatedJobs"]
    assert set(hosts) == {"name", "replicas", "template"}
    job = hosts["template"]["spec"]
    # 4x4 chips, 4 a host; the ranks of jax.distributed are the indices.
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (4, 4, "Indexed")
    pod = job["template"]["spec"]
    # A podFailurePolicy demands Never.
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 30
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["image"] == SETTINGS["IMAGE"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    check_mounts(pod)


def test_pre_emption_restarts_a_jobset_and_a_mistake_ends_it():
    document = manifest_of(dry("jobset.sh", "create", MAX_RESTARTS="7"))
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    container = job["template"]["spec"]["containers"][0]["name"]
    codes = {"containerName": container, "operator": "In", "values": [2, 3]}
    assert rule == {"action": "FailJob", "onExitCodes": codes}
    policy = document["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert re.fullmatch("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", rule["name"])
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.parametrize(
    ("chip", "topology", "per_host", "hosts"),
    [
        ("v5e", "1x1", None, 1),
        ("v5e", "2x4", None, 2),
        ("v5e", "2x4", "8", 1),
        ("v6e", "16x16", None, 64),
        ("v4", "2x2x4", None, 4),
        ("v5p", "4x4x8", None, 32),
    ],
)
def test_hosts_of_a_topology(chip, topology, per_host, hosts):
    changes = {} if per_host is None else {"CHIPS_PER_HOST": per_host}
    document = manifest_of(
        dry("jobset.sh", "create", CHIP=chip, TOPOLOGY=topology, SPOT="no", **changes)
    )
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == hosts
    pod = pod_of_jobset(document)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert chips * hosts == math.prod(map(int, topology.split("x")))


def test_every_chip_has_its_nodes():
    nodes = [
        pod_of_jobset(manifest_of(dry("jobset.sh", "create", CHIP=chip)))["nodeSelector"]
        for chip in CHIPS
    ]
    names = [each["cloud.google.com/gke-tpu-accelerator"] for each in nodes]
    assert names == ["tpu-v4-podslice", "tpu-v5-lite-podslice", "tpu-v5p-slice", "tpu-v6e-slice"]


def expanded(text):
    """A container's argument or variable as Kubernetes makes it, where no variable is named."""
    assert not re.search(r"(?<!\$)\$\(", text), text
    return text.replace("$$(", "$(")


def test_the_job_of_a_jobset():
    document = manifest_of(dry("jobset.sh", "create", "--", *EXTRA))
    container = pod_of_jobset(document)["containers"][0]
    words = [expanded(word) for word in container["args"]]
    assert words[:3] == ["python", "-m", "tpu"]
    check_run(words[3:], f"/model/{COPIED}")
    variables = {each["name"]: each for each in container["env"]}
    package = f"videomae-jax[batch,tpu] @ {SETTINGS['PACKAGE']}"
    assert expanded(variables["REQUIREMENT"]["value"]) == package
    model = pod_of_jobset(document)["initContainers"][0]["env"][0]["value"]
    assert expanded(model) == SETTINGS["MODEL"].rstrip("/")


def check_mounts(pod):
    """What containers mount are volumes of the pod, and no name is there twice."""
    volumes = [volume["name"] for volume in pod.get("volumes", ())]
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    names = [container["name"] for container in containers]
    assert len(set(names)) == len(names)
    for container in containers:
        assert container["image"]
        for mount in container.get("volumeMounts", ()):
            assert mount["name"] in volumes
    for name in (*volumes, *names):
        assert re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)


@pytest.fixture
def entry(tmp_path):
    """Start the pod's own script with a fake pip and sleep, and a job in its place."""
    document = manifest_of(dry("jobset.sh", "create"))
    container = pod_of_jobset(document)["containers"][0]
    assert container["command"][:2] == ["bash", "-euc"]
    script = container["command"][2]
    checked = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "--shell=bash", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, "")
    for program, text in {
        "pip": f'printf "%s|" "$@" >> {tmp_path}/called; exit "${{PIP:-0}}"',
        "sleep": f'printf "sleep %s|" "$@" >> {tmp_path}/called',
    }.items():
        path = tmp_path / program
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def start(job, **variables):
        (tmp_path / "called").write_text("")
        return subprocess.Popen(
            [*container["command"], "bash", "-c", job],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "REQUIREMENT": "videomae-jax[batch] @ git+https://x",
                **variables,
            },
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_pod_ends_as_its_job_does(entry, tmp_path, code):
    process = entry(f"echo ran; exit {code}", RESTARTS="0")
    assert process.communicate()[0] == "ran\n"
    assert process.returncode == code
    installed = (tmp_path / "called").read_text()
    assert installed == "install|--quiet|videomae-jax[batch] @ git+https://x|gcsfs|"


def test_pip_s_failure_is_tried_again(entry):
    # 2 would end the JobSet.
    process = entry("echo ran", PIP="2")
    assert process.communicate()[0] == ""
    assert process.returncode == 1


def test_a_pod_that_starts_again_lets_old_locks_run_out(entry, tmp_path):
    from tpu.lock import GONE_AFTER

    process = entry("echo ran", RESTARTS="3")
    assert process.communicate()[0] == "ran\n"
    waited = re.search(r"sleep (\d+)\|$", (tmp_path / "called").read_text())
    assert waited
    assert int(waited[1]) > GONE_AFTER


@pytest.mark.parametrize(("ends", "code"), [(0, 143), (3, 3)])
def test_a_job_that_was_stopped_is_not_done(entry, ends, code):
    job = (
        f"trap 'echo flushed; exit {ends}' TERM; echo ready; while :; do read -t 0.05 <> <(:); done"
    )
    process = entry(job)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "flushed\n"
    assert process.returncode == code


def test_a_pod_that_is_stopped_before_its_job_starts_none(entry, tmp_path):
    (tmp_path / "pip").write_text(f"#!/bin/bash\ntouch {tmp_path}/begun\nread -t 1 <> <(:)\n")
    process = entry("echo ran")
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 143


def test_the_rayjob_is_what_kuberay_demands():
    document = manifest_of(
        dry("kuberay.sh", "create", TPU_WORKERS="3", CPU_WORKERS="5", CPUS="8", MEMORY="32Gi")
    )
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    assert document["metadata"]["name"] == "my-job"
    spec = document["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == SETTINGS["RAY_VERSION"]
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"tpu", "decode"}
    for name, many in (("tpu", 3), ("decode", 5)):
        group = groups[name]
        replicas = [group[key] for key in ("replicas", "minReplicas", "maxReplicas")]
        assert replicas == [many] * 3
        assert isinstance(group["rayStartParams"], dict)
    for group in (head, *groups.values()):
        pod = group["template"]["spec"]
        assert pod["containers"][0]["image"] == SETTINGS["IMAGE"]
        assert pod["terminationGracePeriodSeconds"] >= 30
        # KubeRay says when a pod starts again.
        assert "restartPolicy" not in pod
        check_mounts(pod)
    # In a shell, as `ray start --resources`; and as KubeRay reads it, which trims quotes alone.
    resources = groups["tpu"]["rayStartParams"]["resources"]
    assert [json.loads(word) for word in shlex.split(resources)] == [{"TPU": 4}]
    assert json.loads(resources.strip("'\"` ")) == {"TPU": 4}
    tpu = groups["tpu"]["template"]["spec"]
    assert tpu["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert tpu["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2"
    decode = groups["decode"]["template"]["spec"]["containers"][0]["resources"]
    assert decode["limits"] == decode["requests"] == {"cpu": 8, "memory": "32Gi"}
    # The head is not to be taken away.
    assert "nodeSelector" not in head["template"]["spec"]


def test_the_job_of_a_rayjob():
    document = manifest_of(dry("kuberay.sh", "create", "--", *EXTRA))
    template = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    (name,) = template["metadata"]["annotations"]
    (volume,) = (each for each in template["spec"]["volumes"] if "downwardAPI" in each)
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{name}']"
    (mount,) = (
        each
        for each in template["spec"]["containers"][0]["volumeMounts"]
        if each["name"] == volume["name"]
    )
    assert document["spec"]["entrypoint"] == f"bash {mount['mountPath']}/{item['path']}"
    words = shlex.split(template["metadata"]["annotations"][name])
    start = ["python", "-m", "tpu", "ray", SETTINGS["MANIFEST"], SETTINGS["OUT"], "--model"]
    assert words == [*start, f"/model/{COPIED}", *EXTRA]
    if (ROOT / "tpu" / "commands" / "ray.py").exists():
        options = parse(words[3:])
        assert (options.manifest, options.out) == (SETTINGS["MANIFEST"], SETTINGS["OUT"])
        assert (options.model, options.views) == (f"/model/{COPIED}", EXTRA[1])


@pytest.mark.parametrize(("script", "kind"), [("jobset.sh", "jobset"), ("kuberay.sh", "rayjob")])
def test_commands_of_a_cluster(script, kind):
    def commands(*arguments):
        lines = dry(script, *arguments, NAMESPACE="team-a", CONTEXT="my context").splitlines()
        marked = [shlex.split(line[2:]) for line in lines if line.startswith("# kubectl")]
        place = ["kubectl", "--context=my context", "--namespace=team-a"]
        assert all(words[:3] == place for words in marked)
        return [words[3:] for words in marked]

    assert commands("create") == [["apply", "--filename=-"]]
    delete, apply = commands("resume")
    assert delete == ["delete", kind, "my-job", "--ignore-not-found", "--wait"]
    assert apply == ["apply", "--filename=-"]
    get, pods = commands("status")
    assert get == ["get", kind, "my-job"]
    assert pods[:2] == ["get", "pods"]
    assert "my-job" in pods[2]
    (logs,) = commands("logs", "--tail", "9")
    assert "--tail=9" in logs
    assert commands("delete") == [["delete", kind, "my-job", "--wait"]]


@pytest.mark.parametrize("script", ["jobset.sh", "kuberay.sh"])
def test_a_manifest_is_handed_over_as_it_was_shown(script, tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncat > {tmp_path}/manifest\n')
    kubectl.chmod(0o755)
    settings = SETTINGS | ({"TOPOLOGY": "2x2"} if script == "kuberay.sh" else {})
    run = launch(script, "create", settings=settings, programs=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "words").read_text() == "--namespace=default apply --filename=-\n"
    shown = manifest_of(dry(script, "create"))
    assert manifest_of((tmp_path / "manifest").read_text()) == shown


def test_no_placeholder_is_left_and_none_is_forgotten():
    for template, script in (("jobset.yaml", "jobset.sh"), ("rayjob.yaml", "kuberay.sh")):
        text = (LAUNCH / template).read_text(encoding="utf-8")
        names = set(re.findall("%([A-Z_]+)%", text))
        assert len(names) > 8
        # %NAME% is left in OUT alone, where it is a part of the setting.
        assert set(re.findall("%[A-Z_]+%", dry(script, "create"))) == {"%NAME%"}


def test_the_readme_s_commands_are_those_of_the_scripts():
    text = (ROOT / "tpu" / "README.md").read_text(encoding="utf-8")
    settings, shown = {}, set()
    for line in re.findall(r"^\$ (.*)$", text, flags=re.MULTILINE):
        if line.startswith("export "):
            settings |= dict(word.split("=", 1) for word in shlex.split(line)[1:])
        elif line.startswith("tpu/launch/"):
            words = shlex.split(line)
            script, arguments = words[0].removeprefix("tpu/launch/"), words[1:]
            if "--dry-run" not in arguments:
                arguments.insert(1, "--dry-run")
            run = launch(script, *arguments, settings=settings)
            assert (run.returncode, run.stderr) == (0, ""), line
            shown.add((script, arguments[0]))
    assert {script for script, _ in shown} == set(COMMANDS)
    assert {command for script, command in shown if script == "slice.sh"} == set(
        COMMANDS["slice.sh"]
    )
