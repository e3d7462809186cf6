"""How the processes of a job meet: under SLURM as under torchrun, and what ends it when they do
not, in real processes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from percmae.cli import verbs
from percmae.config import load_config
from percmae.data.shards import Dataset
from percmae.engine import distributed
from percmae.engine.distributed import JOIN_VARIABLE, World
from percmae.engine.place import VARIABLES, Place, find_place
from percmae.errors import ConfigError, PeerLost, UserError

from .forked import Environment, free_port, percmae, torchrun_says
from .test_processes import command, figures


def srun_says(size: int) -> list[Environment]:
    """What srun tells each task of a step on one node; of a job whose port is free."""
    for job in range(100, 1000):
        tasks = [
            {
                "SLURM_JOB_ID": job,
                "SLURM_STEP_ID": 0,
                "SLURM_STEP_NUM_TASKS": size,
                "SLURM_STEP_NUM_NODES": 1,
                "SLURM_STEP_NODELIST": "no-such-host-[1-2]",
                "SLURM_NTASKS": size,
                "SLURM_PROCID": rank,
                "SLURM_LOCALID": rank,
            }
            for rank in range(size)
        ]
        said = [{name: str(value) for name, value in task.items()} for task in tasks]
        place = find_place(said[0])
        assert place is not None
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", place.port)):
                return said
    raise AssertionError("no free port")


def test_srun_gives_what_torchrun_gives(tiny_dataset: Dataset, tmp_path: Path) -> None:
    runs = []
    for by, told in (("torchrun", None), ("srun", srun_says(2))):
        to = tmp_path / by
        arguments = command(tiny_dataset, to, "data.batch_size=8", "optim.max_steps=2")
        first, second = percmae(arguments, to / "said", 2, told)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert (first.stdout, second.stdout) == (f"{to}/mae\n", "")
        runs.append(figures(to / "mae"))
    assert runs[0] == runs[1]


@pytest.fixture
def other_program() -> Iterator[int]:
    """The port of a program that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("rank", "there", "address", "code", "said"),
    [
        (0, False, "127.0.0.1", PeerLost.exit_code, "the other processes did not come to 127.0.0."),
        (1, False, "127.0.0.1", PeerLost.exit_code, "process 0 did not come to 127.0.0.1:"),
        (1, True, "127.0.0.1", PeerLost.exit_code, "(another program is there)"),
        (0, True, "127.0.0.1", 2, "is taken by another program on this machine: set MASTER_PORT"),
        (1, False, "no.such.host.invalid", 2, "MASTER_ADDR=no.such.host.invalid: no host of that"),
        (1, False, "a..b", 2, "MASTER_ADDR=a..b: no host of that name"),
    ],
)
def test_processes_that_do_not_meet_end_in_one_line(
    tiny_dataset: Dataset,
    tmp_path: Path,
    other_program: int,
    rank: int,
    there: bool,
    address: str,
    code: int,
    said: str,
) -> None:
    told = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(other_program if there else free_port()),
        JOIN_VARIABLE: "1",
    }
    (done,) = percmae(command(tiny_dataset, tmp_path / "runs"), tmp_path, told=[told])
    if "Temporary failure in name resolution" in done.stderr:  # no name server to ask: may pass
        code = PeerLost.exit_code
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "runs").exists()


def test_half_of_the_variables_ends_in_one_line(tiny_dataset: Dataset, tmp_path: Path) -> None:
    (done,) = percmae(command(tiny_dataset, tmp_path / "runs"), tmp_path, told=[{"RANK": "0"}])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("percmae: error: RANK=0, but WORLD_SIZE and MASTER_ADDR and ")
    assert len(done.stderr.splitlines()) == 1


def test_a_network_that_is_not_there(tiny_dataset: Dataset, tmp_path: Path) -> None:
    told = [one | {"GLOO_SOCKET_IFNAME": "none0"} for one in torchrun_says(2)]
    for done in percmae(command(tiny_dataset, tmp_path / "runs"), tmp_path, told=told):
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert "Unable to find address for: none0; set GLOO_SOCKET_IFNAME" in line


@pytest.mark.parametrize("text", ["soon", "0", "nan", "1e9"])
def test_how_long_to_wait_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOIN_VARIABLE, text)
    with pytest.raises(UserError, match=f"{JOIN_VARIABLE}={text}: expected seconds"):
        distributed._join_seconds()


def test_what_is_not_shared_is_refused_to_several_processes(tmp_path: Path) -> None:
    """Each would do the whole of it, and write over the other."""
    arguments = ["report", "--runs", str(tmp_path), "--to", str(tmp_path / "report")]
    for told in (srun_says(2)[1], {"OMPI_COMM_WORLD_SIZE": "2"}, {"WORLD_SIZE": "2"}):
        (done,) = percmae(arguments, tmp_path, told=[told])
        assert done.returncode == 2
        assert done.stderr.startswith("percmae: error: report is the work of one process")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_process_takes_the_gpu_of_its_number(two_gpus: None) -> None:
    config = load_config()
    place = Place(3, 4, 1, 2, "node-0", 29500, slurm=False)
    assert distributed._device(config, place) == torch.device("cuda", 1)
    assert distributed._device(config, None) == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=2: there is no GPU 2 here, there are 2"):
        distributed._device(config, Place(2, 4, 2, 1, "node-0", 29500, slurm=False))


def test_a_training_starts_over_under_our_torchrun(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose exit codes are true."""
    begun: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: begun.append(arguments))
    monkeypatch.setattr(sys, "argv", ["percmae", "pretrain", "--tag", "t"])
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    verbs._spread_over_gpus(load_config())
    launcher = ["-m", "percmae.engine.torchrun", "--standalone", "--nproc-per-node=2", "--"]
    assert begun == [[sys.executable, *launcher, "pretrain", "--tag", "t"]]
    for name, value in srun_says(2)[1].items():
        monkeypatch.setenv(name, value)
    verbs._spread_over_gpus(load_config())
    assert len(begun) == 1  # srun has spread it


def test_srun_may_show_each_task_a_gpu_of_its_own(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    place = Place(3, 4, 1, 2, "node-0", 29500, slurm=True)
    assert distributed._device(load_config(), place) == torch.device("cuda", 0)


def test_two_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = World(0, 3, torch.device("cpu"))
    monkeypatch.setattr(World, "gather", lambda self, value: ["GPU-a", "GPU-b", "GPU-a"])
    with pytest.raises(UserError, match="processes 0 and 2 have the same GPU"):
        distributed._refuse_shared_gpus(here)
    monkeypatch.setattr(World, "gather", lambda self, value: [None, None, "GPU-a"])
    distributed._refuse_shared_gpus(here)
