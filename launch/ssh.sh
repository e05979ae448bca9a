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
# PDSH_SSH_ARGS_APPEND holds further options of ssh (-p 2222). Variables that begin with one of FORWARD (see below) go to
# the hosts in OUT/launch/start.sh, except those that look like a secret. Ctrl-C, TERM, USR1 and USR2 make the run save
# and end with 0. If this machine dies the hosts' ranks save and end too. Exit code: 0 done, 1 failed, 2 wrong input.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
FORWARD=${FORWARD:-NCCL_ GLOO_ TORCH_ FI_ UCX_ OMP_ MKL_ CUDA_ DS_ HF_ TRANSFORMERS_ ANIT_ LD_LIBRARY_PATH TRITON_}

parse_options "${BASH_SOURCE[0]}" "$@"
[[ -n $hostfile ]] || refuse "ssh.sh needs --hostfile; see --help"
[[ -r $hostfile ]] || refuse "cannot read the hostfile $hostfile"

hosts=() slots=() firsts=() world=0
read_hostfile() {
    local host rest number=0
    while read -r host rest || [[ -n $host ]]; do
        number=$((number + 1))
        rest=${rest%%#*}
        if [[ -z $host || $host == \#* ]]; then continue; fi
        [[ ${rest:-slots=1} =~ ^slots=([1-9][0-9]*)[[:space:]]*$ ]] ||
            refuse "$hostfile:$number: expected 'host slots=N', found '$host $rest'"
        hosts+=("$host")
        slots+=("${BASH_REMATCH[1]}")
        firsts+=("$world")
        world=$((world + BASH_REMATCH[1]))
    done <"$hostfile"
    ((world > 0)) || refuse "$hostfile names no host"
}
read_hostfile
master_addr=${master_addr:-${hosts[0]}}
folder=$(run_folder) || exit 2
every_host=$(IFS=, && echo "${hosts[*]}")

forwarded() {
    local name prefix
    for name in PATH $(compgen -e); do
        if [[ $name =~ KEY|TOKEN|SECRET|PASSWORD ]]; then continue; fi
        for prefix in PATH $FORWARD; do
            if [[ $name == "$prefix"* ]]; then printf 'export %s=%q\n' "$name" "${!name}" && break; fi
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
    printf 'exec %q --first "${firsts[$1]}" --ranks "${slots[$1]}" --tied "%s"' "$repository/launch/node.sh" \
        "$(process_file '$1')"
    printf ' %q' --world "$world" --master "$master_addr:$port" --logs "$folder/launch" --grace "$grace" \
        "${command_line[@]}"
    echo
}

# node.sh notes its process id there, on the host's own disk, so that a signal can be sent after it.
process_file() { echo "/tmp/anit-launch-$$-$1.pid"; }

start_all() {
    local port=${master_port:-$((20000 + RANDOM % 10000))}
    mkdir -p "$folder/launch" || return 2
    start_script "$port" >"$folder/launch/start.sh"
    on_hosts -S "test -r '$folder/launch/start.sh'" || {
        say "not every host of $hostfile answers and sees $folder; ssh without a password and a shared folder are needed"
        return 2
    }
    # %n is the host's place in the list; the worst exit code counts (-S). In a session of its own pdsh does not see
    # Ctrl-C, which is passed on below.
    tether setsid pdsh -R ssh -N -S -w "$every_host" "bash '$folder/launch/start.sh' %n" &
    local child=$! code
    trap 'tell_hosts TERM' TERM INT HUP
    trap 'tell_hosts USR1' USR1
    trap 'tell_hosts USR2' USR2
    while kill -0 "$child" 2>/dev/null; do sleep 0.2; done
    wait "$child"
    code=$?
    trap - TERM INT HUP USR1 USR2
    end_what_is_left
    return "$code"
}

on_hosts() { pdsh -R ssh -N -w "$every_host" "$@"; }

# shellcheck disable=SC2317 # called by the traps
tell_hosts() {
    signalled=$1
    on_hosts "kill -s $1 \$(cat $(process_file %n))" 2>/dev/null || say "could not pass SIG$1 on to every host"
}

# After a failed start a host's ranks may still be on their way out: a second TERM makes node.sh kill them.
end_what_is_left() {
    local file
    file=$(process_file %n)
    on_hosts "while kill \$(cat $file); do sleep 0.5; done" 2>/dev/null
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
with_restarts start_all
