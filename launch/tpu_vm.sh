#!/usr/bin/env bash
# Trains on the workers of a slice of TPU VMs, one process each. It creates and deletes no machine.
set -euo pipefail

usage() {
  cat << 'END'
usage: launch/tpu_vm.sh --name NAME --zone ZONE [--project PROJECT] [--worker N] [--dry-run] COMMAND

  install             copy this checkout to ~/segjax of every worker and install it there
  run SHELL-COMMAND   run it in ~/segjax of every worker
  train ARGS          segjax train --distributed ARGS, in the background
  sweep ARGS          the same for each run that `segjax sweep ARGS` has, one after the other
  status              whether a training runs, and the last line of its log, ~/segjax.log
  stop                SIGTERM: the training saves and ends

train and sweep go on with what is half-done and skip what is finished, so they may be given again.
With several workers --workdir is on a file system that all of them share.
--worker N does it on one worker alone. --dry-run prints the gcloud commands instead.
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

tpu_vm() {  # a gcloud command on the workers, or what it would be
  local line=(gcloud compute tpus tpu-vm "$@" "--zone=$zone" "${project[@]}" "--worker=$worker")
  if [[ $dry ]]; then
    printf '%q ' "${line[@]}" && echo
  else
    "${line[@]}"
  fi
}

everywhere() { tpu_vm ssh "$name" "--command=$1"; }

# Its own session, so that it outlives this connection and is one group for `stop`.
in_background() {
  everywhere "if [ -f segjax.pid ] && kill -0 -- -\$(cat segjax.pid) 2> /dev/null; then
  echo 'a training runs already'
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
    # The images of TPU VMs may have an older Python than segjax takes.
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
    # All workers go through the same list; a run that fails, fails on all of them.
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
  echo "$(hostname): runs: $(tail -n 1 segjax.log)"
else
  echo "$(hostname): does not run: $(tail -n 1 segjax.log 2> /dev/null)"
fi'
    ;;
  stop)
    # shellcheck disable=SC2016
    everywhere 'if [ -f segjax.pid ] && kill -TERM -- -$(cat segjax.pid) 2> /dev/null; then
  for second in $(seq 300); do
    kill -0 -- -$(cat segjax.pid) 2> /dev/null || exit 0
    sleep 1
  done
  echo "$(hostname): still saving after five minutes" >&2
  exit 1
fi'
    ;;
  *) die "unknown command '$command'" ;;
esac
