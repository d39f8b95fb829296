#!/usr/bin/env bash
# Train on a Cloud TPU VM slice: the same command on every host, which find each other by themselves.
# Fill in these six, then: launch/tpu_pod.sh create | train | delete
# Nothing is created while a placeholder (OWNER, /mnt/FILL_IN) is unfilled. TYPE is the smallest slice: one host.
set -euo pipefail

NAME=vae-jax
ZONE=us-west4-a
TYPE=v5litepod-4 # chips: 4, 8, 16 ... 256
VERSION=v2-alpha-tpuv5-lite
WORKDIR=/mnt/FILL_IN/runs/pod # a file system that every host has mounted at this place (Filestore, Parallelstore)
REPOSITORY=https://github.com/OWNER/vae_jax
FLAGS="" # of train.py: --config=configs/mnist.py ...
[ $# -lt 2 ] || FLAGS=$(printf " %q" "${@:2}")

case "$WORKDIR$REPOSITORY" in
*FILL_IN* | */OWNER/*)
    echo "error: launch/tpu_pod.sh: REPOSITORY=$REPOSITORY, WORKDIR=$WORKDIR: want both filled in; nothing was created" >&2
    exit 2
    ;;
esac

tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
everywhere() { tpu ssh --worker=all --command="$1"; }

case "${1:-}" in
create)
    tpu create --accelerator-type="$TYPE" --version="$VERSION"
    everywhere "git clone $REPOSITORY vae_jax && cd vae_jax && python3 -m venv .venv &&
        .venv/bin/pip install -q -r requirements.lock 'jax[tpu]' -c requirements.lock"
    ;;
train)
    # 75: stopped on request and saved; 2: bad input. Anything else is a death: all begin again from the last checkpoint.
    for pause in 10 20 40 60 60 60; do
        code=0
        everywhere "cd vae_jax && GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv/bin/python train.py --workdir=$WORKDIR$FLAGS" || code=$?
        case $code in 0 | 2 | 75) exit "$code" ;; esac
        everywhere "pkill -9 -f '[t]rain.py --workdir=$WORKDIR' || true" # hosts that have not noticed yet
        sleep "$pause"
    done
    exit "$code"
    ;;
delete) tpu delete --quiet ;;
*) echo "usage: launch/tpu_pod.sh create | train [--config=...] | delete" >&2; exit 2 ;;
esac
