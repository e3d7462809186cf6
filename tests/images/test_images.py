"""The images as they are used: built, and run confined as a pod is, without a network.

``make test-images`` asks for them. BUILDER, BUILD_ARGS and so on are docker/build.sh's.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from containers import CONFINED, Image, build_images, find_engine
from dockerfile import DOCKER
from kfp import compiler
from look import look
from s3_server import S3

from percmae import __version__
from percmae.jobs.schema import USER
from percmae.storage import StorePath

pytestmark = [pytest.mark.images, pytest.mark.slow]

NAMES = ("train", "pipeline")
# The smallest run of the demo recipe that learns at all.
TWO_STEPS = ["--recipe", "demo", "optim.max_steps=2", "data.workers=0"]


@pytest.fixture(scope="module")
def images() -> dict[str, Image]:
    if os.environ.get("PERCMAE_TEST_IMAGES") != "1":
        pytest.skip("builds images, which takes minutes: asked for by PERCMAE_TEST_IMAGES=1")
    engine = find_engine()
    if engine is None:
        pytest.skip("needs docker (with its daemon) or podman")
    return build_images(engine)


@pytest.fixture
def train(images: dict[str, Image]) -> Image:
    return images["train"]


@pytest.fixture
def pipeline(images: dict[str, Image]) -> Image:
    return images["pipeline"]


@pytest.fixture(params=NAMES)
def image(request: pytest.FixtureRequest, images: dict[str, Image]) -> Image:
    return images[request.param]


def test_it_runs_as_any_user_on_a_read_only_file_system(image: Image) -> None:
    found = image.shell(
        'id -u; cat /proc/1/comm; echo "$HOME"; pwd\n'
        "for name in tini percmae python python3; do command -v $name; done\n"
        "percmae --version; ! touch /opt/venv/x 2>/dev/null; touch /tmp/x"
    )
    bins = "/usr/bin/tini /opt/venv/bin/percmae /opt/venv/bin/python /opt/venv/bin/python3"
    version = image.run("percmae", "--version").stdout.split()
    assert found.split() == ["54321", "tini", "/tmp", "/tmp", *bins.split(), *version]
    assert __version__ in version[-1]


def test_its_own_user_is_not_root(image: Image) -> None:
    assert image.inspect()["Config"]["User"] == f"{USER}:{USER}"
    assert image.shell("id -u", options=(f"--user={USER}:{USER}",)).strip() == str(USER)


def test_it_is_labelled(image: Image) -> None:
    labels = image.inspect()["Config"]["Labels"]
    known = {key.rpartition("image.")[2]: value for key, value in labels.items()}
    assert known["version"] == image.name.rpartition(":")[2]
    assert known["title"] in image.name
    assert len(known["revision"].partition("-")[0]) == 40
    assert known["created"][:2] == "20"


def test_settings_of_the_build_do_not_stay(image: Image) -> None:
    kept = image.history() + json.dumps(image.inspect()["Config"])
    assert "PIP_" not in kept
    assert "INDEX_URL" not in kept


def test_byte_code_is_there_and_fits_the_source(image: Image) -> None:
    """As Python checks it: made from a file of this time and size."""
    found = image.python(
        "import importlib.util, os, struct, sys\n"
        "import percmae.stages.steps, percmae.report.page, percmae.ingest.verb, yaml, minio\n"
        "seen = 0\n"
        "for module in list(sys.modules.values()):\n"
        "    file = getattr(module, '__file__', None) or ''\n"
        "    if file.startswith('/opt/venv') and file.endswith('.py'):\n"
        "        head = open(importlib.util.cache_from_source(file), 'rb').read(16)\n"
        "        flags, mtime, size = struct.unpack('<4xIII', head)\n"
        "        stat = os.stat(file)\n"
        "        fits = flags == 0 and (mtime, size) == (int(stat.st_mtime), stat.st_size)\n"
        "        assert fits or flags, file\n"
        "        seen += 1\n"
        "print(seen)"
    )
    assert int(found) > 100


def test_no_package_is_there_twice(image: Image) -> None:
    """Layers lie upon each other: what one stage replaced would still be there from another."""
    found = image.python(
        "from importlib.metadata import distributions\n"
        "print(*sorted(d.name.lower().replace('_', '-') for d in distributions()), sep='\\n')"
    ).split()
    assert len(found) == len(set(found))
    assert "pip" not in found


def test_what_packages_need_is_locked_too(image: Image) -> None:
    """They are installed without looking at what they need: the lists have to be whole."""
    found = image.python(
        "from importlib.metadata import distributions, version\n"
        "from packaging.requirements import Requirement\n"
        "known = {d.metadata['Name'].lower().replace('_', '-'): d for d in distributions()}\n"
        "for name, d in known.items():\n"
        "    for wanted in map(Requirement, d.requires or ()):\n"
        "        if wanted.marker is None or wanted.marker.evaluate({'extra': ''}):\n"
        "            there = known.get(wanted.name.lower().replace('_', '-'))\n"
        "            if there is None or there.version not in wanted.specifier:\n"
        "                print(name, wanted.name)\n"
    )
    left_out = {"mlxtend"} if "train" in image.name else {"percmae"}  # docker/requirements.py
    assert {line.split()[0] for line in found.splitlines()} == left_out


def test_it_has_the_list_of_its_packages(image: Image) -> None:
    place = image.inspect()["Config"]["Labels"]["dev.percmae.sbom"]
    text = image.shell('cat "$1"', place)
    name = image.name.rpartition("/")[2].partition(":")[0]
    assert (DOCKER.parent / f"build/sbom/{name}.cdx.json").read_text() == text
    listed = {part["purl"] for part in json.loads(text)["components"]}
    there = image.python(
        "from importlib.metadata import version\n"
        "print(*(version(name) for name in ('minio', 'pydantic')))"
    ).split()
    assert {f"pkg:pypi/minio@{there[0]}", f"pkg:pypi/pydantic@{there[1]}"} <= listed
    assert any(purl.startswith("pkg:deb/debian/tini@") for purl in listed)


def test_the_first_process_hands_signals_on(image: Image) -> None:
    """A Python that is the first process and has no handler would not be ended by SIGTERM."""
    name = f"percmae-test-{os.getpid()}"
    code = "import time; print('up', flush=True); time.sleep(600)"
    run = [image.engine, "run", "--rm", f"--name={name}", "--network=none", *CONFINED]
    with subprocess.Popen(
        [*run, image.id, "python", "-c", code],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        subprocess.run(
            [image.engine, "kill", "--signal=TERM", name],
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert process.wait(30) == 128 + signal.SIGTERM


def test_train_has_no_kfp_and_the_pipeline_no_torch(train: Image, pipeline: Image) -> None:
    for name in ("kfp", "kubernetes"):
        assert "No module named" in train.run("python", "-c", f"import {name}", check=False).stderr
    for name in ("torch", "torchvision", "timm", "tensorboard"):
        failed = pipeline.run("python", "-c", f"import {name}", check=False)
        assert failed.returncode != 0
        assert "No module named" in failed.stderr


def test_the_doctor_finds_nothing_missing(train: Image) -> None:
    found = train.run("percmae", "doctor").stdout
    assert "ok      torch" in found
    assert "MISSING" not in found


def test_it_trains(train: Image) -> None:
    """From sample images to the figures of a probe, all below /tmp."""
    told = train.shell(
        "percmae sample-data --source mnist --out sample >&2\n"
        "percmae ingest --train sample/ILSVRC2012_img_train.tar"
        " --val sample/ILSVRC2012_img_val.tar --devkit sample/ILSVRC2012_devkit_t12.tar.gz"
        " --to data >&2\n"
        'percmae pretrain --data data/manifest.json --to runs --tag t "$@"\n'
        'percmae probe --run runs/t_mae --data data/manifest.json --to runs "$@"\n'
        "percmae evaluate --run runs/t_mae_probe --data data/manifest.json --json",
        *TWO_STEPS,
        options=("--shm-size=256m",),
    ).splitlines()
    assert told[:2] == ["/tmp/runs/t_mae", "/tmp/runs/t_mae_probe"]
    assert 0 <= json.loads(told[2])["top1"] <= 1


def test_torchrun_trains_in_two_processes(train: Image) -> None:
    """A pod's command, with PET_* variables as the training operator sets them."""
    told = train.shell(
        "percmae sample-data --source mnist --out sample >&2\n"
        "percmae ingest --train sample/ILSVRC2012_img_train.tar"
        " --val sample/ILSVRC2012_img_val.tar --devkit sample/ILSVRC2012_devkit_t12.tar.gz"
        " --to data >&2\n"
        "python -m percmae.engine.torchrun -- pretrain --data data/manifest.json --to runs"
        ' --tag t "$@"',
        *TWO_STEPS,
        options=("--shm-size=256m", "--env=PET_NPROC_PER_NODE=2", "--env=PET_STANDALONE=1"),
    ).splitlines()
    assert told == ["/tmp/runs/t_mae"]


def test_the_feature_networks_weights_are_there(train: Image) -> None:
    found = train.python(
        "from percmae.config import load_config\n"
        "from percmae.engine.features import feature_network\n"
        "config = load_config('perceptual', 'demo', 'pretrain')\n"
        "print(type(feature_network(config)).__name__)"
    )
    assert found.strip() == "EfficientNetLite0Features"


# Waits until TensorBoard, at the port given, shows a run; prints what it shows.
ASK = """
import json, sys, time, urllib.request
for _ in range(240):
    try:
        shown = json.load(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/data/runs"))
    except OSError:
        shown = []
    if shown:
        break
    time.sleep(0.5)
print(json.dumps(shown))
"""


def test_the_services_of_a_laptop_show_a_run(train: Image, s3: S3, tmp_path: Path) -> None:
    """The commands of docker/compose.yaml, with another S3 server and other places."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second, for this one test

    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    runs, port = s3.uri("runs"), str(free_port())
    places = {"s3://percmae": s3.uri().rpartition("/")[0], "s3://percmae/runs": runs}
    places |= {"/logs": "/tmp/logs", "--logdir=/logs": "--logdir=/tmp/logs"}
    command = {
        name: [places.get(part, part) for part in services[name]["command"]]
        for name in ("bucket", "follow", "tensorboard")
    }
    env = tuple(f"--env={name}={value}" for name, value in s3.environ.items())

    told = train.run(*command["bucket"], network="host", options=env).stdout
    assert told.startswith(f"{places['s3://percmae']}: is there")
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("train/loss", 0.5, 1)
    (file,) = tmp_path.iterdir()
    (StorePath(runs) / "t_mae/train_outputs/tensorboard_logs" / file.name).write_file(file)
    shown = train.shell(
        "code=$1 port=$2\n"
        "mkdir /tmp/logs\n"
        f"{shlex.join(command['follow'])} >&2 &\n"
        f"{shlex.join(command['tensorboard'])} --port=$port >&2 &\n"
        'python -c "$code" $port',
        ASK,
        port,
        network="host",
        options=env,
    )
    assert json.loads(shown) == ["t_mae"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_the_pipeline_compiles(pipeline: Image) -> None:
    text = pipeline.shell("python -m pipelines compile --output x.yaml >&2; cat x.yaml")
    assert next(yaml.safe_load_all(text))["pipelineInfo"]["name"] == "percmae-train"


@pytest.fixture
def component(tmp_path: Path) -> dict[str, list[str]]:
    """The container of a component, as a pipeline has it run."""
    output = tmp_path / "look.yaml"
    compiler.Compiler().compile(look, str(output))
    spec = yaml.safe_load(output.read_text())
    container: dict[str, list[str]] = spec["deploymentSpec"]["executors"]["exec-look"]["container"]
    return container


def test_a_component_runs_as_kfp_runs_it(
    pipeline: Image, component: dict[str, list[str]], tmp_path: Path
) -> None:
    given = {
        "inputs": {"parameterValues": {"name": "mnist"}},
        "outputs": {
            "parameters": {"Output": {"outputFile": "/tmp/out/Output"}},
            "artifacts": {
                "found": {
                    "artifacts": [
                        {
                            "name": "found",
                            "type": {"schemaTitle": "system.Artifact"},
                            "uri": "/tmp/out/found",
                            "metadata": {},
                        }
                    ]
                }
            },
            "outputFile": "/tmp/out/executor_output.json",
        },
    }
    filled = [
        json.dumps(given) if part == "{{$}}" else part
        for part in [*component["command"], *component["args"]]
    ]
    made = pipeline.shell(
        '"$@" >&2; cat /tmp/out/executor_output.json; echo; cat /tmp/out/found', *filled
    ).splitlines()
    assert json.loads(made[0])["parameterValues"] == {"Output": "None"}
    assert made[1] == "s3://bucket/datasets/mnist"
