# What the launchers share: options, where the run's folder is, and starting again. Sourced, never run.
# shellcheck shell=bash
# The launchers read what is set here, and set `folder`:
# shellcheck disable=SC2034,SC2154

# The repository's own environment, when there is one, before whatever `anit` the PATH has.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -x $repository/.venv/bin/anit ]]; then PATH=$repository/.venv/bin:$PATH; fi

restarts=0
dry_run=no
ranks=
cluster=
of_cluster=()
hostfile=
master_addr=
master_port=
grace=300
srun_args=

say() { printf 'launch: %s\n' "$*" >&2; }

refuse() {
    say "$*"
    exit 2
}

# The comment at the head of a launcher is its manual.
usage() { sed -n '2,/^[^#]/{/^##*SBATCH\|^# EDIT/d;s/^# \{0,1\}//p;}' "$1"; }

# Reads the options into the variables above, and the command after them into the array `command_line`.
parse_options() {
    local script=$1
    shift
    while [[ $# -gt 0 && $1 == -* ]]; do
        case $1 in
            -h | --help) usage "$script"; exit 0 ;;
            --dry-run) dry_run=yes; shift; continue ;;
        esac
        check_option "$script" "$@"
        case $1 in
            --ranks) whole_number "$1" "$2"; ranks=$2 ;;
            --restarts) whole_number "$1" "$2"; restarts=$2 ;;
            --grace) whole_number "$1" "$2"; grace=$2 ;;
            --master-port) port_number "$1" "$2"; master_port=$2 ;;
            --master-addr) master_addr=$2 ;;
            --hostfile) hostfile=$2 ;;
            --cluster) cluster=$2 ;;
            --srun-args) srun_args=$2 ;;
        esac
        shift 2
    done
    [[ ${1:-} == anit && $# -ge 2 ]] || refuse "expected the command to run, such as: anit train CONFIG; see --help"
    command_line=("$@")
    if [[ -n $cluster ]]; then load_cluster; fi
}

# A launcher takes the options that its manual lists, each with a value: check_option SCRIPT OPTION [VALUE ...]
check_option() {
    [[ $(usage "$1") == *$'\n'"  $2 "* ]] || refuse "no option $2; see --help"
    [[ $# -ge 3 ]] || refuse "$2 needs a value; see --help"
}

# Without leading zeros, which bash would take for octal.
whole_number() { [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || refuse "$1 takes a whole number, not '$2'"; }

port_number() {
    whole_number "$1" "$2"
    ((0 < $2 && $2 < 65536)) || refuse "$1 takes a port from 1 to 65535, not $2"
}

# A cluster's variables, by file or by the name of one of launch/clusters/*.env.
load_cluster() {
    if [[ ! -f $cluster ]]; then cluster=$repository/launch/clusters/$cluster.env; fi
    [[ -f $cluster ]] || refuse "no cluster file $cluster; there are $(cd "$repository/launch/clusters" && echo *.env)"
    cluster=$(realpath "$cluster")
    local before
    before=$(export -p)
    set -a
    # shellcheck disable=SC1090
    source "$cluster"
    set +a
    # What it has set is for every host, whatever its name.
    mapfile -t of_cluster < <(comm -13 <(sort <<<"$before") <(export -p | sort) |
        sed -n 's/^declare -[a-z]* \([A-Za-z_][A-Za-z0-9_]*\).*/\1/p')
}

# The folder of the run that `command_line` trains (or reads): `out` of the configuration, overrides applied.
run_folder() {
    local words=() word out
    command -v anit >/dev/null || refuse "there is no anit here: run make setup, or activate the environment that has it"
    if [[ ${command_line[1]} != train ]]; then
        # The run's folder is the first word that is one; options and their values may stand before it.
        for word in "${command_line[@]:2}"; do
            if [[ -d $word ]]; then realpath -m -- "$word"; return; fi
        done
        realpath -m -- "${command_line[2]:-.}"
        return
    fi
    for word in "${command_line[@]:2}"; do
        if [[ $word != --* ]]; then words+=("$word"); fi
    done
    out=$(anit config "${words[@]}" --get out) && realpath -ms -- "$out"
}

# A run that a signal ended early has saved its state and asks to be started again.
wants_requeue() { [[ -e $folder/requeue && ! -e $folder/summary.json ]]; }

# `anit train --fresh` empties the run's folder: right at the first start, fatal to the checkpoints at a restart.
without_fresh() {
    local word kept=()
    for word in "${command_line[@]}"; do
        if [[ $word != --fresh ]]; then kept+=("$word"); fi
    done
    command_line=("${kept[@]}")
}

# Runs the function $1 until it succeeds, at most 1 + $restarts times. Wrong input (2) is not tried again, nor is a run
# that a signal ended.
with_restarts() {
    local start_all=$1 attempt=0 code
    # What the ranks' watchdog asks of a rank. Never on a command line, which everybody on a machine can read.
    export ANIT_WATCHDOG_SECRET=${ANIT_WATCHDOG_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
    while true; do
        code=0
        "$start_all" "$attempt" || code=$?
        if ((code == 0)) && wants_requeue; then say "ended by a signal, state saved; the same line goes on from there"; fi
        if ((code == 0 || code == 2 || attempt >= restarts)) || [[ -n ${signalled:-} ]]; then return "$code"; fi
        attempt=$((attempt + 1))
        say "ended with code $code; restart $attempt of $restarts, from the last checkpoint"
        without_fresh
    done
}

# Between two looks at our children. Of two traps whose signals came together (a Ctrl-C from the terminal, and as TERM
# from a launcher) bash 5.2 may run one and keep the other until some further signal, and until then `wait` answers with
# the kept one's number and never with a child's exit code. So there is a further signal, one that stops nobody.
nap() {
    sleep 0.2
    run_kept_traps
}
trap : URG
run_kept_traps() { kill -s URG "$BASHPID"; }

# The exit code of a child that has ended. `wait` answers with the number of a trapped signal that came while it ran, or
# since the last one: it is asked twice, until no trap ran meanwhile. Every trap counts itself in `trapped`.
trapped=0
exit_code_of() {
    local code before
    while true; do
        run_kept_traps
        before=$trapped
        wait "$1"
        wait "$1"
        code=$?
        if ((trapped == before)); then return "$code"; fi
    done
}

# Runs a command that ends with us even if we are killed, passes signals on to it, and returns its exit code.
supervise() {
    tether "$@" &
    local child=$! code
    trap 'pass_on TERM '"$child" TERM INT HUP
    trap 'pass_on USR1 '"$child" USR1
    trap 'pass_on USR2 '"$child" USR2
    # Not a long `wait`: a trap interrupts it, and its answer is then the signal's and not the child's.
    while kill -0 "$child" 2>/dev/null; do nap; done
    exit_code_of "$child"
    code=$?
    trap - TERM INT HUP USR1 USR2
    return "$code"
}

pass_on() {
    trapped=$((trapped + 1))
    signalled=$1
    kill -s "$1" "$2" 2>/dev/null || true
}

# Only `setpriv` can ask the kernel for a signal when the parent dies, however it dies.
tether() {
    if command -v setpriv >/dev/null; then exec setpriv --pdeathsig TERM "$@"; fi
    exec "$@"
}

# Below the ports that the kernel gives out by itself: it will be some seconds until rank 0 has loaded and takes it.
free_port() {
    python - <<'PYTHON'
import contextlib, random, socket
port = None
while port is None:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("", random.randrange(20000, 30000)))
        port = probe.getsockname()[1]
print(port)
PYTHON
}

# A rank for each GPU that the ranks will see; nvidia-smi lists them all, whatever is visible.
default_ranks() {
    local gpus=0 visible=()
    if [[ ${DS_ACCELERATOR:-} == cpu ]]; then
        gpus=1
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        gpus=${#visible[@]}
    elif command -v nvidia-smi >/dev/null; then
        gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
    fi
    echo $((gpus > 0 ? gpus : 1))
}
