#!/usr/bin/env bash
# The ranks of one node: starts them, passes signals on, and ends when they do. local.sh, ssh.sh and slurm.sbatch call
# it; where no ssh leads from node to node, start it by hand on each.
#
#   launch/node.sh --first RANK --ranks N --world W --master ADDR:PORT --logs FOLDER [options] COMMAND...
#
#   --first RANK       the rank of this node's first process, which start at 0 on the first node
#   --ranks N          processes on this node
#   --world W          processes on all nodes
#   --master ADDR:PORT a free port on the first node, where the ranks meet
#   --logs FOLDER      rank 0 keeps this terminal, the others write to FOLDER/rank-N.txt
#   --grace S          seconds that ranks have to save after a signal before they are killed (300)
#   --tied FILE        the end of standard input (a lost ssh connection) counts as TERM; FILE holds our process id
#   As a task of srun give the word SLURM as RANK and W.
#
# When one rank fails the others get ten seconds to say why, then are killed with all their children. TERM, USR1 and
# USR2 go to every rank, which saves and ends; a second TERM kills them.
# Exit code: 0 all ranks ended well, 2 one said its input is wrong, 1 otherwise.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

failure_grace=10
tied=
first=
world=
master=
logs=
while [[ ${1:-} == -* ]]; do
    if [[ $1 == -h || $1 == --help ]]; then usage "${BASH_SOURCE[0]}"; exit 0; fi
    check_option "${BASH_SOURCE[0]}" "$@"
    case $1 in
        --first) [[ $2 == SLURM ]] || whole_number "$1" "$2"; first=$2 ;;
        --ranks) whole_number "$1" "$2"; ranks=$2 ;;
        --world) [[ $2 == SLURM ]] || whole_number "$1" "$2"; world=$2 ;;
        --master) [[ $2 == *:* ]] && port_number "$1" "${2##*:}"; master=$2 ;;
        --logs) logs=$2 ;;
        --grace) whole_number "$1" "$2"; grace=$2 ;;
        --tied) tied=$2 ;;
    esac
    shift 2
done
[[ $# -gt 0 && -n $first && -n $ranks && -n $world && $master == *:* && -n $logs ]] ||
    refuse "node.sh needs --first, --ranks, --world, --master ADDR:PORT, --logs and a command; see --help"

if [[ $first == SLURM ]]; then first=$((SLURM_PROCID * ranks)); fi
if [[ $world == SLURM ]]; then world=$((SLURM_STEP_NUM_TASKS * ranks)); fi
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}
export WORLD_SIZE=$world MASTER_ADDR=${master%:*} MASTER_PORT=${master##*:}
running=() # rank -> process id
code=0
deadline=

end_by() {
    local at=$((SECONDS + $1))
    if [[ -z $deadline ]] || ((at < deadline)); then deadline=$at; fi
}

signal_ranks() {
    local rank
    for rank in "${!running[@]}"; do kill -s "$1" "$2${running[$rank]}" 2>/dev/null; done
}

told_at=
# shellcheck disable=SC2317 # called by the traps
tell_ranks() {
    trapped=$((trapped + 1))
    signal_ranks "$1" ""
    # One Ctrl-C comes twice, from the terminal and from the launcher that passes it on: only a later one means "now".
    if [[ $1 == TERM && -n $told_at ]] && ((SECONDS - told_at >= 2)); then end_by 0; else end_by "$grace"; fi
    told_at=${told_at:-$SECONDS}
}
trap 'tell_ranks TERM' TERM INT HUP
trap 'tell_ranks USR1' USR1
trap 'tell_ranks USR2' USR2

start_ranks() {
    local local_rank rank
    for ((local_rank = 0; local_rank < ranks; local_rank++)); do
        rank=$((first + local_rank))
        (
            if ((rank > 0)); then exec >>"$logs/rank-$rank.txt" 2>&1; fi
            export RANK=$rank LOCAL_RANK=$local_rank
            # A session of its own makes the rank's process group hold its children and nothing else.
            tether setsid "$@" </dev/null
        ) &
        running[rank]=$!
    done
}

# Takes note of ranks that have ended; the first failure starts the others' last ten seconds.
collect() {
    local rank ended
    for rank in "${!running[@]}"; do
        if kill -0 "${running[$rank]}" 2>/dev/null; then continue; fi
        exit_code_of "${running[$rank]}"
        ended=$?
        kill -s KILL -- "-${running[$rank]}" 2>/dev/null # children it left behind
        unset 'running[rank]'
        if ((ended == 0)); then continue; fi
        say "rank $rank ended with code $ended$(signal_name "$ended")"
        if ((code == 0)); then show_end_of "$rank"; fi
        if ((ended == 2)); then code=2; elif ((code == 0)); then code=1; fi
        end_by "$failure_grace"
    done
}

signal_name() { if (($1 > 128)); then echo " (SIG$(kill -l $(($1 - 128))))"; fi; }

show_end_of() {
    if [[ -s $logs/rank-$1.txt ]]; then
        say "the end of $logs/rank-$1.txt:"
        tail -n 5 "$logs/rank-$1.txt" >&2
    fi
}

mkdir -p "$logs" || exit 2
if [[ -n $tied ]]; then
    echo $$ >"$tied"
    # The reader must not hold our output open, or the ssh connection would outlive us.
    exec 3<&0
    (while read -r _ <&3; do :; done; kill -s TERM $$) >/dev/null 2>&1 &
    reader=$!
    disown "$reader"
    exec 3<&-
fi
start_ranks "$@"
while ((${#running[@]})); do
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then signal_ranks KILL -; fi
    nap
    collect
done
if [[ -n $tied ]]; then
    kill -s KILL "$reader" 2>/dev/null
    rm -f "$tied"
fi
exit "$code"
