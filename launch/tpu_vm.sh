#!/usr/bin/env bash
# Train on the workers of a slice of TPU VMs, one process each. No machine is created or deleted.
set -euo pipefail

usage() {
  cat << 'END'
usage: launch/tpu_vm.sh --name NAME --zone ZONE [--project PROJECT] [--worker N] [--dry-run] COMMAND

  install             copy this checkout to ~/segjax on every worker and install it there
  run SHELL-COMMAND   run a shell command in ~/segjax on every worker
  train ARGS          run `segjax train --distributed ARGS` in the background
  sweep ARGS          train the runs of `segjax sweep ARGS` in the background, one after the other
  status              print whether a run is in progress, and the last line of its log, ~/segjax.log
  stop                send SIGTERM, on which a run saves and exits

Repeating train or sweep resumes stopped runs and skips finished ones. With several workers --workdir
must be on a file system that all of them share. --worker N acts on one worker only; --dry-run prints
the gcloud commands and runs none.
END
}

die() {
  echo "tpu_vm.sh: $*; see launch/tpu_vm.sh --help" >&2
  exit 2
}

name='' zone='' project=() worker=all dry=''
while (($#)); do
  case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry=yes && shift ;;
    --name | --zone | --project | --worker)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --name) name=$2 ;;
        --zone) zone=$2 ;;
        --project) project=("--project=$2") ;;
        --worker) worker=$2 ;;
      esac
      shift 2
      ;;
    -*) die "unknown argument '$1'" ;;
    *) break ;;
  esac
done
[[ $name ]] || die '--name is missing'
[[ $zone ]] || die '--zone is missing'
(($#)) || die 'a command is missing: install, run, train, sweep, status or stop'
command=$1 && shift

tpu_vm() {  # run or print a gcloud command for the workers
  local line=(gcloud compute tpus tpu-vm "$@" "--zone=$zone" "${project[@]}" "--worker=$worker")
  if [[ $dry ]]; then
    printf '%q ' "${line[@]}" && echo
  else
    "${line[@]}"
  fi
}

everywhere() { tpu_vm ssh "$name" "--command=$1"; }

# A session of its own outlives this connection, and is one process group for `stop`.
in_background() {
  everywhere "if [ -f segjax.pid ] && kill -0 -- -\$(cat segjax.pid) 2> /dev/null; then
  echo 'a run is in progress already'
  exit
fi
cd segjax || exit
export PATH=\$PWD/.venv/bin:\$PATH JAX_PLATFORMS=tpu,cpu
setsid bash -c $(printf '%q' "$1") >> ../segjax.log 2>&1 < /dev/null &
echo \$! > ../segjax.pid"
}

case $command in
  install)
    (($# == 0)) || die 'install takes no argument'
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    [[ $dry ]] || tar --create --gzip --file="$archive" --directory="$(dirname "$0")/.." \
      --exclude='./.*' --exclude=./runs .
    tpu_vm scp "$archive" "$name:segjax.tar.gz"
    # The default Python of a TPU VM image may be too old for segjax.
    # shellcheck disable=SC2016  # expanded on the workers
    everywhere 'set -e
mkdir -p segjax && tar --extract --gzip --file=segjax.tar.gz --directory=segjax
python=$(command -v python3.13 python3.12 python3.11 | head -n 1) || true
if [ -z "$python" ]; then
  sudo apt-get update -qq && sudo apt-get install -qq --yes python3.11-venv
  python=python3.11
fi
"$python" -m venv segjax/.venv
segjax/.venv/bin/pip install --quiet --editable "./segjax[tpu]"'
    ;;
  run)
    (($#)) || die 'run needs a command'
    everywhere "cd segjax || exit
export PATH=\$PWD/.venv/bin:\$PATH
$*"
    ;;
  train)
    (($#)) || die 'train needs the arguments of segjax train'
    in_background "exec segjax train --distributed $(printf '%q ' "$@")"
    ;;
  sweep)
    (($#)) || die 'sweep needs the arguments of segjax sweep'
    # All workers go through the same list: a run that fails, fails on all of them.
    in_background "runs=\$(segjax sweep --commands $(printf '%q ' "$@")) || exit
while IFS= read -r run; do
  eval \"\$run --distributed\" < /dev/null
  status=\$?
  echo \"exit status \$status: \$run\"
  [ \$status = 143 ] && exit 143
done <<< \"\$runs\""
    ;;
  status)
    # shellcheck disable=SC2016
    everywhere 'if [ -f segjax.pid ] && kill -0 -- -$(cat segjax.pid) 2> /dev/null; then
  echo "$(hostname): running: $(tail -n 1 segjax.log)"
else
  echo "$(hostname): not running: $(tail -n 1 segjax.log 2> /dev/null)"
fi'
    ;;
  stop)
    # shellcheck disable=SC2016
    everywhere 'if [ -f segjax.pid ] && kill -TERM -- -$(cat segjax.pid) 2> /dev/null; then
  for second in $(seq 300); do
    kill -0 -- -$(cat segjax.pid) 2> /dev/null || exit 0
    if [ "$second" = 3 ]; then echo "$(hostname): waiting for the run to save ..."; fi
    sleep 1
  done
  echo "$(hostname): still saving after five minutes" >&2
  exit 1
fi'
    ;;
  *) die "unknown command '$command'" ;;
esac
