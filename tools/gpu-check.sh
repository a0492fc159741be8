#!/usr/bin/env bash
# Packs tfcheck for a machine that has a GPU but no network access, and runs `tfcheck gpu-check` there. See docs/cuda.md.
#
#   tools/gpu-check.sh pack            on this machine: builds, strips and compresses the program into .gpu-check/
#   tools/gpu-check.sh run [OPTIONS]   on the GPU machine: unpacks it and runs `tfcheck gpu-check OPTIONS`
set -euo pipefail
cd "$(dirname "$0")/.."
packed=.gpu-check/tfcheck.gz

case "${1:-}" in
pack)
    cargo build --release --locked --workspace --bins
    mkdir -p .gpu-check
    strip -o .gpu-check/tfcheck "${CARGO_TARGET_DIR:-target}/release/tfcheck"
    bytes="$(stat -c %s .gpu-check/tfcheck)"
    gzip -f .gpu-check/tfcheck
    echo "$packed: $(stat -c %s "$packed") bytes, $bytes unpacked; copy .gpu-check with the working tree"
    ;;
run)
    shift
    [ -f "$packed" ] || { echo "no $packed: run 'tools/gpu-check.sh pack' on the machine that builds the program" >&2; exit 2; }
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    gzip -dc "$packed" > "$folder/tfcheck"
    chmod +x "$folder/tfcheck"
    "$folder/tfcheck" --version || { echo "the program does not start on this machine: build it here" >&2; exit 5; }
    export TFCHECK_CACHE="$folder/cache" TMPDIR="$folder"
    out="${OUT:-results}"
    mkdir -p "$out"
    # The script exits with the program's exit code.
    status=0
    "$folder/tfcheck" gpu-check --out "$out/gpu_check" "$@" 2>&1 | tee "$out/gpu_check.log" || status="${PIPESTATUS[0]}"
    exit "$status"
    ;;
*)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
