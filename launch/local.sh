#!/usr/bin/env bash
# One machine, one process per GPU (or as many as you say on a CPU).
#
#   launch/local.sh [options] anit train CONFIG [key=value ...]
#
#   --ranks N         processes; by default the number of GPUs, else 1
#   --restarts N      after a failure start again, from the last checkpoint, at most N times (0)
#   --cluster NAME    variables of launch/clusters/NAME.env, or of a file
#   --master-port P   where the ranks meet; by default a free port, a new one at every start
#   --grace S         seconds that ranks have to save after a signal before they are killed (300)
#   --dry-run         print what would be started
#   --help            this text
#
# Ctrl-C, TERM, USR1 and USR2 make the run save and end with 0; the same line goes on from there.
# Exit code: 0 done, 1 failed, 2 wrong input. Rank 0 writes here, the others to OUT/launch/rank-N.txt.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_options "${BASH_SOURCE[0]}" "$@"
ranks=${ranks:-$(default_ranks)}
((ranks > 0)) || refuse "--ranks: at least one"
folder=$(run_folder) || exit 2

start_all() {
    local port=${master_port:-$(free_port)}
    supervise "$repository/launch/node.sh" --first 0 --ranks "$ranks" --world "$ranks" --master "127.0.0.1:$port" \
        --logs "$folder/launch" --grace "$grace" "${command_line[@]}"
}

if [[ $dry_run == yes ]]; then
    for ((rank = 0; rank < ranks; rank++)); do
        printf 'RANK=%d LOCAL_RANK=%d WORLD_SIZE=%d MASTER_ADDR=127.0.0.1 MASTER_PORT=%s' \
            "$rank" "$rank" "$ranks" "${master_port:-FREE}"
        printf ' %q' "${command_line[@]}"
        echo
    done
    exit 0
fi
with_restarts start_all
