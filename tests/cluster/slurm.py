"""A SLURM cluster of two nodes on one machine, without systemd, cgroups or a database."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from daemons import Daemons, free_port
from runs import LAUNCH, Launches, TinyRun

NODES = ("n1", "n2")


class Slurm:
    """munged, slurmctld and two slurmd with all they write under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._daemons = Daemons(folder)
        self._folder = folder
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Slurm:
        folder = self._folder
        folder.chmod(0o755)
        key, socket = folder / "munge.key", folder / "munge.socket"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(self._configuration(socket))
        try:
            # --force: it would refuse pytest's temporary folder, which others may enter.
            self._daemons.start(
                "munged", "munged", "--foreground", "--force", "--key-file", key, "--socket", socket,
                "--pid-file", folder / "munged.pid", "--log-file", folder / "munge.txt", "--seed-file", folder / "seed",
            )  # fmt: skip
            self._daemons.wait_until(socket.exists, "munged")
            self._daemons.start("slurmctld", "slurmctld", "-D", "-i", "-f", folder / "slurm.conf", **self.variables)
            for node in NODES:
                self._daemons.start(node, "slurmd", "-D", "-N", node, "-f", folder / "slurm.conf", **self.variables)
            self._daemons.wait_until(lambda: self.query("sinfo", "-h", "-o", "%D %t") == "2 idle", "slurm")
        except BaseException:
            self._daemons.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.query("scancel", "--user", "root", "--signal", "KILL", "--full")
        self.query("scancel", "--user", "root")
        time.sleep(1)
        self._daemons.stop()

    def query(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        done = subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True, text=True, check=False
        )  # fmt: skip
        return done.stdout.strip()

    def submit(self, launches: Launches, run: TinyRun, *options: object, sbatch: tuple[str, ...] = ()) -> str:
        """The id of a job of two nodes, one task each, as README starts it; `sbatch` overrides the file's settings."""
        run.out.mkdir(exist_ok=True)
        small = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=15")
        code, output = launches.run(
            "sbatch", "--parsable", *small, *sbatch, f"--output={run.out}/slurm.out",
            LAUNCH / "slurm.sbatch", *options, "anit", "train", run.config, **self.variables,
        )  # fmt: skip
        assert code == 0, output
        return output.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED ..."""
        fields = dict(f.partition("=")[::2] for f in self.query("scontrol", "show", "job", job).split())
        return fields.get("JobState", "unknown")

    def finished(self, job: str, timeout: float) -> str:
        """The state in which a job ends."""
        until = time.monotonic() + timeout
        while (state := self.state(job)) not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            if time.monotonic() > until:
                raise TimeoutError(f"job {job} is still {state} after {timeout:g} s")
            time.sleep(0.5)
        return state

    def _configuration(self, socket: Path) -> str:
        folder, host = self._folder, os.uname().nodename.split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        lines = [
            "ClusterName=anit",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={free_port()}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # A job queued again waits until its first credential is over: two minutes unless said.
            f"AuthInfo=socket={socket},cred_expire=5",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool/%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/none",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "KillWait=5",
            "OverTimeLimit=0",
            "SchedulerParameters=sched_interval=1,bf_interval=1",
        ]
        for node in NODES:
            lines.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2")
        lines.append(f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP")
        return "\n".join(lines) + "\n"
