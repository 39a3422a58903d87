#!/usr/bin/env bash
# A slice of TPU VMs through queued resources: create, run, resume, status, logs, delete.
set -euo pipefail
shopt -s inherit_errexit

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=steps.sh
source "$HERE/steps.sh"

usage() {
  cat <<'HELP'
usage: slice.sh COMMAND [--dry-run] [--yes] [--tail N] [-- OPTION...]

  create   ask for the slice; it is yours once `status` says ACTIVE
  run      wait until it is ACTIVE, install the package and the model on each host, start the job
  resume   the same again after a pre-emption: a slice that is gone is deleted and asked for anew
  status   of the request, and of the job on each host
  logs     the last lines of each host (--tail N)
  delete   the slice and the request, after a question or with --yes; OUT stays

  --dry-run   print the commands, run none; needs no gcloud
  -- OPTION   the rest goes to `python -m tpu run`: -- --task embed --views 5x3

Settings, from the environment:
  PROJECT ZONE        of Google Cloud
  NAME                of the slice (default: videomae)
  ACCELERATOR_TYPE    v5litepod-16, v6e-16, v4-32, v5p-32, ... (create, resume)
  RUNTIME_VERSION     v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, tpu-ubuntu2204-base, ... (create, resume)
  SPOT                yes (default) or no: on demand
  MANIFEST OUT MODEL  as for `python -m tpu run`, seen by every host: gs://... (run, resume)
  PACKAGE             git+https://... or https://...whl of videomae-jax (run, resume)
HELP
}

QUEUED=(gcloud compute tpus queued-resources)
VM=(gcloud compute tpus tpu-vm)
PLACE=()

# On every host at once.
on_hosts() {
  step "${VM[@]}" ssh "$NAME" "${PLACE[@]}" --worker=all \
    --command="$(words bash videomae-host.sh "$@")"
}

request_state() {
  "${QUEUED[@]}" describe "$NAME" "${PLACE[@]}" --format='value(state.state)'
}

create() {
  local tier=()
  [[ $SPOT == no ]] || tier=(--spot)
  step "${QUEUED[@]}" create "$NAME" "${PLACE[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${tier[@]}"
}

delete() {
  step "${QUEUED[@]}" delete "$NAME" "${PLACE[@]}" --force --quiet
}

wait_until_active() {
  local state
  if [[ $DRY_RUN == yes ]]; then
    echo "# every 30 s, until it says ACTIVE:"
    words "${QUEUED[@]}" describe "$NAME" "${PLACE[@]}" --format='value(state.state)'
    printf '\n'
    return
  fi
  while state=$(request_state) && [[ $state != ACTIVE ]]; do
    case $state in
      FAILED | SUSPENDED | SUSPENDING | DELETING) fail "the slice $NAME is $state; resume asks anew" ;;
    esac
    echo "the slice $NAME is $state" >&2
    sleep 30
  done
  [[ ${state:-} == ACTIVE ]] || fail "there is no slice $NAME in $ZONE; create it first"
}

start() {
  local model requirement copied=
  # Below the folder in which host.sh starts the job.
  model=$(model_path model)
  requirement=$(requirement batch,tpu)
  [[ $MODEL != gs://* ]] || copied=${MODEL%/}
  wait_until_active
  step "${VM[@]}" scp "$HERE/host.sh" "$NAME:videomae-host.sh" "${PLACE[@]}" --worker=all
  on_hosts setup "$requirement" "$copied"
  on_hosts start run "$MANIFEST" "$OUT" --model "$model" --distributed "${EXTRA[@]}"
}

resume() {
  local state=
  if [[ $DRY_RUN == yes ]]; then
    echo "# if the slice was taken away:"
  else
    state=$(request_state 2>/dev/null) || state=
  fi
  case $state in
    ACTIVE | ACCEPTED | PROVISIONING | CREATING | WAITING_FOR_RESOURCES) ;;
    *)
      if [[ -n $state || $DRY_RUN == yes ]]; then
        confirm "the slice $NAME is $state: delete it and ask for another"
        delete
      fi
      create
      ;;
  esac
  start
}

COMMAND=${1:-}
case $COMMAND in
  create | run | resume | status | logs | delete) shift ;;
  --help | -h)
    usage
    exit 0
    ;;
  *) fail "say create, run, resume, status, logs or delete; see --help" ;;
esac
parse_options "$@"
NAME=${NAME:-videomae}
SPOT=${SPOT:-yes}
[[ $SPOT == yes || $SPOT == no ]] || fail "SPOT must be yes or no, got '$SPOT'"
need_name
REQUIRED=(PROJECT ZONE)
case $COMMAND in
  create | resume) REQUIRED+=(ACCELERATOR_TYPE RUNTIME_VERSION) ;;
esac
case $COMMAND in
  run | resume) REQUIRED+=(MANIFEST OUT MODEL PACKAGE) ;;
esac
need "${REQUIRED[@]}"
case $COMMAND in
  run | resume) need_shared MANIFEST OUT ;;
esac
need_program gcloud
PLACE=(--project="$PROJECT" --zone="$ZONE")

case $COMMAND in
  create) create ;;
  run) start ;;
  resume) resume ;;
  status)
    step "${QUEUED[@]}" describe "$NAME" "${PLACE[@]}" --format='value(state.state)'
    on_hosts status
    ;;
  logs) on_hosts logs "$TAIL" ;;
  delete)
    confirm "delete the slice $NAME in $ZONE"
    delete
    ;;
esac
