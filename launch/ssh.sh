#!/usr/bin/env bash
# Several machines that ssh reaches without a password, through pdsh. The checkout and the run's folder must be on a file
# system that all of them see under the same path.
#
#   launch/ssh.sh --hostfile FILE [options] anit train CONFIG [key=value ...]
#
#   --hostfile FILE   lines such as `node1 slots=8`: a host and how many ranks it gets (1)
#   --restarts N      after a failure start again, from the last checkpoint, at most N times (0)
#   --cluster NAME    variables of launch/clusters/NAME.env, or of a file; they are set on every host
#   --master-addr A   address of the first host as the others reach it; by default its name in FILE
#   --master-port P   where the ranks meet; by default drawn between 20000 and 29999, anew at every start
#   --grace S         seconds that ranks have to save after a signal before they are killed (300)
#   --dry-run         print what would be started
#   --help            this text
#
# PDSH_SSH_ARGS_APPEND holds further options of ssh (-p 2222). The variables listed below, those of --cluster and those
# that FORWARD names (NAME, or PREFIX*) go to the hosts in a file that only you can read, and that is gone afterwards.
# Ctrl-C, TERM, USR1 and USR2 make the run save and end with 0. If this script is killed the hosts' ranks save and end
# too; of a machine that loses its power they hear nothing. Exit code: 0 done, 1 failed, 2 wrong input.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# A list of what may go, as no list of names finds every secret.
forward=(
    PATH LD_LIBRARY_PATH 'NCCL_*' 'GLOO_*' 'TORCH_NCCL_*' 'PYTORCH_*' 'FI_*' 'UCX_*' 'OMP_*' 'MKL_*' 'CUDA_*'
    ANIT_KERNEL ANIT_WATCHDOG_SECRET DS_ACCELERATOR HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE HF_DATASETS_CACHE HF_DATASETS_OFFLINE TRANSFORMERS_OFFLINE TORCH_HOME
    TORCH_EXTENSIONS_DIR TRITON_CACHE_DIR
)
read -ra more <<<"${FORWARD:-}"
forward+=("${more[@]}")

parse_options "${BASH_SOURCE[0]}" "$@"
[[ -n $hostfile ]] || refuse "ssh.sh needs --hostfile; see --help"
[[ -r $hostfile ]] || refuse "cannot read the hostfile $hostfile"

# Not BASH_REMATCH's, which its caller still reads; pdsh would expand brackets, and read a leading - as an option.
host_name() { [[ $1 != *[!A-Za-z0-9._:@-]* && $1 == [A-Za-z0-9]* ]]; }

hosts=() slots=() firsts=() world=0
read_hostfile() {
    local host rest number=0
    while read -r host rest || [[ -n $host ]]; do
        number=$((number + 1))
        rest=${rest%%#*}
        if [[ -z $host || $host == \#* ]]; then continue; fi
        [[ ${rest:-slots=1} =~ ^slots=([1-9][0-9]*)[[:space:]]*$ ]] ||
            refuse "$hostfile:$number: expected 'host slots=N', found '$host $rest'"
        host_name "$host" || refuse "$hostfile:$number: '$host' is no name or address of a host"
        hosts+=("$host")
        slots+=("${BASH_REMATCH[1]}")
        firsts+=("$world")
        world=$((world + BASH_REMATCH[1]))
    done <"$hostfile"
    ((world > 0)) || refuse "$hostfile names no host"
}
read_hostfile
master_addr=${master_addr:-${hosts[0]#*@}}
host_name "$master_addr" || refuse "--master-addr: '$master_addr' is no name or address of a host"
folder=$(run_folder) || exit 2
every_host=$(IFS=, && echo "${hosts[*]}")

forwarded() {
    local name pattern
    for name in $(compgen -e); do
        for pattern in "${forward[@]}" "${of_cluster[@]}"; do
            # shellcheck disable=SC2053 # a pattern is meant
            if [[ $name == $pattern ]]; then printf 'export %s=%q\n' "$name" "${!name}" && break; fi
        done
    done
}

# The script that every host runs with its place in the hostfile: a file, because pdsh strips quotes from arguments.
start_script() {
    local port=$1
    echo '#!/usr/bin/env bash'
    forwarded
    printf 'slots=(%s)\nfirsts=(%s)\n' "${slots[*]}" "${firsts[*]}"
    printf 'cd %q || exit 2\n' "$PWD"
    # shellcheck disable=SC2016 # the host expands $1
    printf 'exec %q --first "${firsts[$1]}" --ranks "${slots[$1]}" --tied %q/"$1".pid' "$repository/launch/node.sh" \
        "$private"
    printf ' %q' --world "$world" --master "$master_addr:$port" --logs "$folder/launch" --grace "$grace" \
        "${command_line[@]}"
    echo
}

# A word for the hosts' shells, past pdsh, which puts something in for each %.
remote() {
    local word
    printf -v word %q "$1"
    echo "${word//%/%%}"
}

# What is in there is nobody else's to read, and no name in it can be guessed: the script, and where node.sh notes its
# process id, so that a signal can be sent after it.
make_private() {
    mkdir -p "$folder/launch" && private=$(mktemp -d "$folder/launch/ssh.XXXXXXXXXX") || return 2
    trap 'rm -rf -- "$private"' EXIT
}

start_all() {
    local port=${master_port:-$((20000 + RANDOM % 10000))}
    (umask 077 && start_script "$port" >"$private/start.sh") || return 2
    on_hosts -S "test -r $(remote "$private/start.sh")" || {
        say "not every host of $hostfile answers and sees $folder; ssh without a password and a shared folder are needed"
        return 2
    }
    # %n is the host's place in the list; the worst exit code counts (-S). In a session of its own pdsh does not see
    # Ctrl-C, which is passed on below.
    tether setsid pdsh -R ssh -N -S -f "${#hosts[@]}" -w "$every_host" "bash $(remote "$private/start.sh") %n" &
    local child=$! code
    trap 'tell_hosts TERM' TERM INT HUP
    trap 'tell_hosts USR1' USR1
    trap 'tell_hosts USR2' USR2
    while kill -0 "$child" 2>/dev/null; do nap; done
    exit_code_of "$child"
    code=$?
    trap - TERM INT HUP USR1 USR2
    end_what_is_left
    return "$code"
}

# -f: at all hosts at once; 32 by itself, and the 33rd would wait for ranks that wait for its own.
on_hosts() { pdsh -R ssh -N -f "${#hosts[@]}" -w "$every_host" "$@"; }

# shellcheck disable=SC2317 # called by the traps
tell_hosts() {
    trapped=$((trapped + 1))
    signalled=$1
    on_hosts "kill -s $1 \$(cat $(remote "$private")/%n.pid)" 2>/dev/null || say "could not pass SIG$1 on to every host"
}

# After a failed start a host's ranks may still be on their way out: a second TERM makes node.sh kill them.
end_what_is_left() {
    on_hosts "while kill \$(cat $(remote "$private")/%n.pid); do sleep 0.5; done" 2>/dev/null
}

if [[ $dry_run == yes ]]; then
    for place in "${!hosts[@]}"; do
        printf '%s: RANK=%d..%d LOCAL_RANK=0..%d WORLD_SIZE=%d MASTER_ADDR=%s MASTER_PORT=%s' "${hosts[place]}" \
            "${firsts[place]}" $((firsts[place] + slots[place] - 1)) $((slots[place] - 1)) "$world" \
            "$master_addr" "${master_port:-DRAWN}"
        printf ' %q' "${command_line[@]}"
        echo
    done
    exit 0
fi
command -v pdsh >/dev/null || refuse "pdsh is not installed (apt-get install pdsh)"
# A host that has lost power or network answers nothing, which ssh by itself takes two hours to see.
export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=15 -o ServerAliveCountMax=8 ${PDSH_SSH_ARGS_APPEND:-}"
make_private || exit 2
with_restarts start_all
