"""What the environment says about a process's place among others."""

from __future__ import annotations

import itertools

import pytest

from percmae.engine.place import VARIABLES, Place, copies, find_place, first_host, unused_tasks
from percmae.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29500",
}
PETTY = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
# As srun sets them for one task (SLURM 24.05), less what is of no use here.
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "1",
    "SLURM_STEPID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "gpu[01,07-08]",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}
# What a batch script and salloc's shell have: the job, and themselves as its first process.
BATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def test_alone() -> None:
    assert find_place({}) is None
    assert find_place(dict.fromkeys(TORCHRUN, "")) is None
    assert copies({}) == 1


def test_torchruns_variables() -> None:
    assert find_place(TORCHRUN) == Place(3, 4, 1, 2, "node-0", 29500, slurm=False)
    # As a training operator sets them: one process in each pod.
    pod = {name: value for name, value in TORCHRUN.items() if name not in PETTY}
    assert find_place(pod) == Place(3, 4, 0, 4, "node-0", 29500, slurm=False)
    # torchrun, started by srun on each node.
    assert find_place(SRUN | TORCHRUN) == find_place(TORCHRUN)


HALVES = [
    chosen
    for size in range(1, len(VARIABLES))
    for chosen in itertools.combinations(VARIABLES, size)
    if set(VARIABLES) - set(chosen) != set(PETTY)
]


@pytest.mark.parametrize("chosen", HALVES, ids="-".join)
def test_any_half_of_them_is_refused(chosen: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="belong together") as error:
        find_place({name: TORCHRUN[name] for name in chosen})
    assert "\n" not in str(error.value)
    missing = set(VARIABLES[:4]) - set(chosen)
    assert all(name in str(error.value) for name in missing)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": "x"}, "RANK=x: expected a whole number from 0 to 3 (WORLD_SIZE=4)"),
        ({"RANK": "4"}, "RANK=4: expected a whole number from 0 to 3"),
        ({"RANK": "-1"}, "RANK=-1: expected"),
        ({"RANK": "9" * 5000}, "expected a whole number from 0 to 3"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected"),
        ({"WORLD_SIZE": "4.0"}, "WORLD_SIZE=4.0: expected"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2: expected a whole number from 0 to 1"),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5: expected"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: expected"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536: expected a whole number from 1 to 65535"),
    ],
)
def test_values_that_make_no_sense(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        find_place(TORCHRUN | wrong)
    assert said in str(error.value)
    assert "torchrun" in str(error.value)


def test_a_step_of_sruns() -> None:
    place = find_place(SRUN)
    assert place is not None
    assert place == Place(3, 4, 1, 2, "gpu07", place.port, slurm=True)
    # All tasks of a step agree on the port; two steps of a job may run at the same time.
    assert find_place(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port == place.port  # type: ignore[union-attr]
    assert find_place(SRUN | {"SLURM_STEP_ID": "2"}).port != place.port  # type: ignore[union-attr]
    # What is said oneself counts.
    meeting = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "12345"}
    assert find_place(SRUN | meeting) == Place(3, 4, 1, 2, "10.0.0.7", 12345, slurm=True)
    by_hand = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"} | meeting
    assert find_place(SRUN | by_hand) == Place(3, 4, 1, 2, "10.0.0.7", 12345, slurm=False)


def test_a_step_on_one_node_needs_no_name() -> None:
    place = find_place(SRUN | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu07"})
    assert place is not None
    assert (place.address, place.nodes) == ("127.0.0.1", 1)


def test_the_least_that_a_step_may_say() -> None:
    least = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOBID": "5"}
    assert find_place(least) == Place(1, 2, 0, 1, "127.0.0.1", 15005, slurm=True)
    with pytest.raises(UserError, match="MASTER_PORT is not set"):
        find_place({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"})
    with pytest.raises(UserError, match=r"RANK=2: expected a whole number from 0 to 1"):
        find_place(least | {"SLURM_PROCID": "2"})


@pytest.mark.parametrize(
    "step",
    [
        {},  # sbatch's script, salloc's shell
        # salloc's shell where the cluster has it on a node, and srun --ntasks=1
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},
    ],
)
def test_one_process_in_a_job_of_several_tasks_is_alone(step: dict[str, str]) -> None:
    env = BATCH | step
    assert find_place(env) is None
    assert copies(env) == 1
    # What a script says for its other steps does not matter.
    if step:
        assert find_place(env | {"MASTER_ADDR": "gpu07", "MASTER_PORT": "12345"}) is None
    assert unused_tasks(env) == (0 if step else 4)
    assert unused_tasks(env | TORCHRUN) == 0


@pytest.mark.parametrize(
    "env",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
        {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"},
        # mpirun in a batch script
        BATCH | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        # mpirun whose daemons were started by srun
        SRUN | {"PMI_SIZE": "8", "PMI_RANK": "1"},
    ],
)
def test_copies_started_by_mpi_are_refused_with_the_way_to_start_them(env: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"mpirun .* several copies.*torchrun.*srun"):
        find_place(env)
    assert copies(env) > 1
    # Whoever translates the variables himself knows what he does.
    assert find_place(env | TORCHRUN) is not None


def test_srun_for_programs_that_use_mpi() -> None:
    assert find_place(SRUN | {"PMI_SIZE": "4", "PMI_RANK": "3"}) == find_place(SRUN)
    assert find_place({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) is None


def test_copies() -> None:
    assert copies(SRUN) == copies(TORCHRUN) == 4
    assert copies({"WORLD_SIZE": "many"}) == 1


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[3,5-9]", "gpu3"),
        ("rack[1-2]node[04-07]", "rack1node04"),
        ("rack[1-2]-ib,x", "rack1-ib"),
        ("a,b[1-2]", "a"),
        ("n[001]", "n001"),
        ("10.0.0.[1-2]", "10.0.0.1"),
        ("", ""),
    ],
)
def test_the_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host
