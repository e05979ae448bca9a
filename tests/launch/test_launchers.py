"""The launchers without daemons: what a dry run prints, what is refused, and that shellcheck has nothing to say."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ("local.sh", "ssh.sh", "slurm.sbatch")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that is valid; nothing here trains it."""
    file = tmp_path / "run.yaml"
    content = {"model": {"name_or_path": "none"}, "data": {"dataset": "sst2"}, "out": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump(content))
    return file


def launch(script: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)"""
    done = subprocess.run(
        ["bash", LAUNCH / script, *map(str, arguments)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_option(script: str) -> None:
    code, text, _ = launch(script, "--help")
    assert code == 0
    for option in ("--restarts N", "--cluster NAME", "--dry-run", "anit train CONFIG"):
        assert option in text
    assert "SBATCH" not in text


def test_a_local_dry_run_shows_each_rank_and_the_command_unchanged(config: Path) -> None:
    code, text, _ = launch(
        "local.sh", "--ranks", 2, "--master-port", 29501, "--dry-run", "anit", "train", config, "lora={r: 4}"
    )
    assert code == 0
    command = f"anit train {config} lora=\\{{r:\\ 4\\}}"
    common = "WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29501"
    assert text.splitlines() == [f"RANK={rank} LOCAL_RANK={rank} {common} {command}" for rank in (0, 1)]
    assert not (config.parent / "run").exists()


def test_an_ssh_dry_run_shows_each_host_s_ranks(tmp_path: Path, config: Path) -> None:
    (tmp_path / "hosts").write_text("# two nodes\nnode1 slots=8\n\nnode2 slots=4 # half of it")
    code, text, _ = launch("ssh.sh", "--hostfile", tmp_path / "hosts", "--dry-run", "anit", "train", config)
    assert code == 0
    one, two = text.splitlines()
    assert one.startswith("node1: RANK=0..7 LOCAL_RANK=0..7 WORLD_SIZE=12 MASTER_ADDR=node1 MASTER_PORT=DRAWN anit")
    assert two.startswith("node2: RANK=8..11 LOCAL_RANK=0..3 WORLD_SIZE=12 MASTER_ADDR=node1 ")


def test_a_slurm_dry_run_shows_what_sbatch_asks_for_and_the_step() -> None:
    code, text, _ = launch("slurm.sbatch", "--dry-run", "anit", "train", "c.yaml", "train.lr=1e-4")
    assert code == 0
    assert "sbatch: --signal=USR1@300" in text and "sbatch: --requeue" in text
    assert text.splitlines()[-1].endswith(
        "srun --export=ALL --kill-on-bad-exit=1 --label anit train c.yaml train.lr=1e-4"
    )
    _, text, _ = launch("slurm.sbatch", "--ranks", 8, "--dry-run", "anit", "train", "c.yaml")
    assert "launch/node.sh --first SLURM --ranks 8 --world SLURM" in text


def test_a_job_finds_its_script_in_a_folder_with_blanks(tmp_path: Path) -> None:
    copy = tmp_path / "my checkout" / "launch"
    shutil.copytree(LAUNCH, copy)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f"""#!/bin/sh
echo "JobId=7 JobName=anit"
echo "   Command={copy}/slurm.sbatch --ranks 8 anit train conf/c.yaml"
""")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    spooled = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    code, text, said = launch(spooled, "--ranks", 8, "--dry-run", "anit", "train", "c.yaml", **job)
    assert code == 0, said
    assert "launch/node.sh --first SLURM --ranks 8" in text and "checkout" in text.splitlines()[-1]
    shutil.rmtree(copy.parent)
    code, _, said = launch(spooled, "--dry-run", "anit", "train", "c.yaml", **job)
    assert code == 2 and "no common.sh beside" in said


def test_the_shell_of_salloc_is_no_job_with_a_script(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "   Command=(null)"\n')
    (tmp_path / "scontrol").chmod(0o755)
    shell = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    code, text, said = launch("slurm.sbatch", "--dry-run", "anit", "train", "c.yaml", **shell)
    assert code == 0 and "srun" in text, said


@pytest.mark.parametrize(
    "variables, ranks",
    [({}, 3), ({"CUDA_VISIBLE_DEVICES": "0,2"}, 2), ({"CUDA_VISIBLE_DEVICES": ""}, 1), ({"DS_ACCELERATOR": "cpu"}, 1)],
)
def test_there_is_a_rank_for_each_gpu_that_is_visible(
    variables: dict[str, str], ranks: int, tmp_path: Path, config: Path
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nseq 3\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DS_ACCELERATOR": "cuda", **variables}
    _, text, _ = launch("local.sh", "--dry-run", "anit", "train", config, **path)
    assert sum("LOCAL_RANK=" in line for line in text.splitlines()) == ranks


def test_options_may_stand_before_a_run_s_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, _, said = launch("local.sh", "--ranks", 1, "anit", "eval", "--split", "dev", tmp_path / "run")
    assert code == 2 and f"{tmp_path}/run" in said and "realpath" not in said


def test_srun_gets_the_job_s_cpus_and_options_of_its_own() -> None:
    image = "--container-image=a/b:1 --mpi=none"
    line = ("--srun-args", image, "--dry-run", "anit", "train", "c.yaml")
    _, text, _ = launch("slurm.sbatch", *line, SLURM_CPUS_PER_TASK="6")
    assert text.splitlines()[-1].endswith(f"--label --cpus-per-task=6 {image} anit train c.yaml")


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("local.sh", [], "expected the command to run"),
        ("local.sh", ["train", "c.yaml"], "expected the command to run"),
        ("local.sh", ["--rank", "2", "anit", "train", "c.yaml"], "no option --rank"),
        ("local.sh", ["--ranks", "two", "anit", "train", "c.yaml"], "--ranks takes a whole number, not 'two'"),
        ("local.sh", ["--restarts", "08", "anit", "train", "c.yaml"], "--restarts takes a whole number, not '08'"),
        ("local.sh", ["--master-port", "99999", "anit", "train", "c.yaml"], "takes a port from 1 to 65535, not 99999"),
        ("node.sh", ["--grace", "08"], "--grace takes a whole number, not '08'"),
        ("node.sh", ["--master", "node1:0"], "--master takes a port from 1 to 65535, not 0"),
        ("local.sh", ["--restarts"], "--restarts needs a value"),
        ("local.sh", ["--hostfile", "hosts", "anit", "train", "c.yaml"], "no option --hostfile"),
        ("ssh.sh", ["--ranks", "8", "anit", "train", "c.yaml"], "no option --ranks"),
        ("node.sh", ["--first"], "--first needs a value"),
        ("local.sh", ["--cluster", "moon", "anit", "train", "c.yaml"], "a100-ib.env"),
        ("local.sh", ["anit", "train", "missing.yaml"], "missing.yaml: cannot read the configuration"),
        ("ssh.sh", ["anit", "train", "c.yaml"], "needs --hostfile"),
        ("ssh.sh", ["--hostfile", "missing", "anit", "train", "c.yaml"], "cannot read the hostfile missing"),
        ("slurm.sbatch", ["anit", "train", "c.yaml"], "start it with sbatch"),
    ],
)
def test_what_is_wrong_is_said_and_ends_with_2(script: str, arguments: list[str], said: str) -> None:
    code, _, text = launch(script, *arguments)
    assert code == 2
    assert said in text


def test_a_hostfile_s_wrong_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1 slots=8\nnode2 gpus=8\n")
    code, _, text = launch("ssh.sh", "--hostfile", tmp_path / "hosts", "anit", "train", "c.yaml")
    assert code == 2
    assert f"{tmp_path}/hosts:2: expected 'host slots=N', found 'node2 gpus=8'" in text


def test_wrong_input_is_not_tried_again(tmp_path: Path, config: Path) -> None:
    code, _, text = launch("local.sh", "--restarts", 3, "--ranks", 1, "anit", "train", config, HF_HUB_OFFLINE="1")
    assert code == 2
    assert "restart" not in text


@pytest.mark.parametrize("cluster", sorted((LAUNCH / "clusters").glob("*.env")), ids=lambda path: path.stem)
def test_a_cluster_s_variables_keep_what_is_set_already(cluster: Path) -> None:
    show = f"set -a; source {cluster}; env"
    given = {"PATH": os.environ["PATH"], "GLOO_SOCKET_IFNAME": "mine0"}
    shown = subprocess.run(["bash", "-euc", show], env=given, capture_output=True, text=True, check=True).stdout
    assert "GLOO_SOCKET_IFNAME=mine0" in shown
    assert "EDIT" in cluster.read_text(), "what depends on the site is marked"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_is_silent() -> None:
    scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


PDSH = """#!/usr/bin/env bash
# What pdsh -R ssh does, without ssh: the command for a host's shell, on this one.
while [[ $# -gt 0 ]]; do
    case $1 in
        -R | -w) shift 2 ;;
        -f) echo "$2" >>"$SEEN.at-once"; shift 2 ;;
        -N | -S) shift ;;
        *) command+=" $1"; shift ;;
    esac
done
command=${command//%%/@percent@} command=${command//%n/0} command=${command//@percent@/%}
script=$(find "$RUNS" -name start.sh)
(stat -c %a "$(dirname "$script")" "$script"; cat "$script") >"$SEEN"
[[ -p $SEEN.in ]] || mkfifo "$SEEN.in"
exec bash -c "$command" <>"$SEEN.in" # an input that never ends, as ssh's: its end would be told to the ranks as TERM
"""


def test_ssh_runs_no_text_of_the_user_s_as_a_command_and_forwards_only_what_is_listed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pdsh").write_text(PDSH)
    (tmp_path / "bin" / "pdsh").chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\n" + "".join(f"node{n} slots=1\n" for n in range(32)))
    runs = tmp_path / "runs"
    (tmp_path / "own.env").write_text("RDMAV_FORK_SAFE=1\n")
    given = {"HF_AUTH": "hunter2", "HF_TOKEN": "hunter3", "NCCL_DEBUG": 'it\'s "quoted"', "MINE": "hunter4"}
    given |= {"RUNS": str(runs), "SEEN": str(tmp_path / "seen"), "FORWARD": "MINE"}
    code, _, said = launch(
        "ssh.sh", "--hostfile", tmp_path / "hosts", "--cluster", tmp_path / "own.env", "anit", "config",
        f"{runs}/a'; touch {tmp_path}/pwned; echo 'b $(touch {tmp_path}/pwned) 100%n",
        PATH=f"{tmp_path}/bin:{os.environ['PATH']}", **given,
    )  # fmt: skip
    seen = (tmp_path / "seen").read_text()
    assert not (tmp_path / "pwned").exists()
    assert code == 2 and "cannot read the configuration" in said, said  # the host's ranks ran
    assert seen.splitlines()[:2] == ["700", "600"]
    assert "hunter2" not in seen and "hunter3" not in seen and "MINE=hunter4" in seen and "NCCL_DEBUG=" in seen
    assert "RDMAV_FORK_SAFE=1" in seen, "it stands in the cluster's file"
    assert not list(runs.glob("**/ssh.*")), "nothing of it is left"
    assert set((tmp_path / "seen.at-once").read_text().split()) == {"33"}, "pdsh would keep the last host waiting"


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "node[1-3]", "a;b", "^file"])
def test_what_is_no_host_is_refused(tmp_path: Path, config: Path, host: str) -> None:
    (tmp_path / "hosts").write_text(f"{host} slots=1\n")
    code, _, said = launch("ssh.sh", "--hostfile", tmp_path / "hosts", "--dry-run", "anit", "train", config)
    assert code == 2 and f"hosts:1: '{host}' is no name or address of a host" in said


def node(logs: Path, program: str, ranks: int = 2) -> tuple[int, str, str]:
    """A node whose ranks are shell programs."""
    place = ["--first", 0, "--ranks", ranks, "--world", ranks, "--master", "127.0.0.1:29500", "--logs", logs]
    return launch("node.sh", *place, "bash", "-c", program)


def test_a_node_gives_each_rank_its_place(tmp_path: Path) -> None:
    code, out, _ = node(tmp_path, "echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT")
    assert (code, out) == (0, "0 0 2 127.0.0.1 29500\n")
    assert (tmp_path / "rank-1.txt").read_text() == "1 1 2 127.0.0.1 29500\n"


@pytest.mark.parametrize(("program", "code"), [("exit $((RANK * 3))", 1), ("exit $((RANK * 2))", 2)])
def test_a_node_s_exit_code_tells_failure_from_wrong_input(tmp_path: Path, program: str, code: int) -> None:
    assert node(tmp_path, program)[0] == code


def test_a_failed_rank_is_named_with_its_last_words_and_the_others_are_ended(tmp_path: Path) -> None:
    code, _, said = node(tmp_path, "if ((RANK)); then echo out of luck; kill -KILL $$; fi; sleep 300")
    assert code == 1
    assert "rank 1 ended with code 137 (SIGKILL)" in said and "out of luck" in said
    assert "rank 0 ended with code 137 (SIGKILL)" in said, "killed after ten seconds"


def test_a_signal_beside_a_child_s_end_does_not_change_its_exit_code() -> None:
    # Each child has its own burst: a machine that is slower than an endless storm would never get past one of them.
    bursts = """
        source common.sh
        trap 'trapped=$((trapped + 1))' TERM INT
        for _ in {1..300}; do
            (exit 7) &
            child=$!
            (for _ in {1..50}; do kill -s TERM $$; done) &
            while kill -0 $child 2>/dev/null; do :; done
            exit_code_of $child
            echo $?
        done
        ((trapped > 50)) && echo trapped
    """
    done = subprocess.run(["bash", "-c", bursts], cwd=LAUNCH, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["7"] * 300 + ["trapped"], done.stderr
