"""Test units on a real Slurm of one node, which the test starts from Debian's packages.

    apt-get install slurmctld slurmd slurm-client munge
    pytest -m slow tests/data/engine/test_slurm.py

Skipped if the packages are not installed. Key, configuration and state are in one folder.
"""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from maya_vlm.training.data.engine.executors import ExecutorPlan, run_jobs
from maya_vlm.training.data.engine.journal import read_journal
from maya_vlm.training.data.engine.unit_files import Job
from tests.data.engine.tiny_worker import TinyWorker, make, read, sources

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(shutil.which(name) for name in NEEDED),
        reason="needs root and Debian's slurmctld, slurmd, slurm-client and munge",
    ),
]

CONFIGURATION = """\
ClusterName=maya
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Start a node with two cores; return its plan."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            ports=free_ports(2),
            cores=os.cpu_count(),
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        )
    )
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munged += [f"--{n}-file={folder}/munge.{n}" for n in ("pid", "log", "seed")]
    commands = [[*munged, f"--socket={folder}/munge.socket"], ["slurmctld", "-D"], ["slurmd", "-D"]]
    with contextlib.ExitStack() as stack:
        for command in commands:
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            time.sleep(1)
        for _ in range(120):
            state = subprocess.run(
                ["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, check=False
            )
            if state.stdout.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"the node is {state.stdout} {state.stderr}: see {folder}")
        options = {"partition": "all", "time": "00:10:00", "mem_per_cpu_gb": 1}
        yield ExecutorPlan("slurm", 2, options=options)
        subprocess.run(["scancel", "--user=root"], check=False)


def queued() -> list[str]:
    answer = subprocess.run(
        ["squeue", "--noheader", "--format=%A"], capture_output=True, text=True, check=True
    )
    return answer.stdout.split()


def test_a_killed_job_continues(tmp_path, slurm):
    jobs = [Job("translate/fr", *pair) for pair in sources(tmp_path, 4, 60)]
    factory = functools.partial(make, pause=0.1, concurrency=2)
    journals = jobs[0].target.parent / "journal"

    def run():
        return run_jobs(factory, jobs, slurm, tmp_path / "logs", progress=False)

    def kill():
        while sum(path.stat().st_size > 1000 for path in journals.glob("*.jsonl")) < 2:
            time.sleep(0.05)
        for number in queued():
            subprocess.run(["scancel", "--signal=KILL", "--full", number], check=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(OSError, match="of 4 units are not finished"):
        run()
    killer.join()
    kept = sum("n" in r for path in journals.glob("*.jsonl") for _, r in read_journal(path))
    assert kept >= 2
    manifests = run()
    assert [read(job.target) for job in jobs] == [
        [TinyWorker().answer(row) for row in read(job.source)] for job in jobs
    ]
    assert sum(manifest.sessions for manifest in manifests) > len(jobs)
