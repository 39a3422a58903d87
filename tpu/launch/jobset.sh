#!/usr/bin/env bash
# A JobSet on GKE, a pod a TPU host: create, resume, status, logs, delete.
set -euo pipefail
shopt -s inherit_errexit

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=steps.sh
source "$HERE/steps.sh"
# shellcheck source=cluster.sh
source "$HERE/cluster.sh"

usage() {
  cat <<'HELP'
usage: jobset.sh COMMAND [--dry-run] [--yes] [--tail N] [-- OPTION...]

  create   fill jobset.yaml and apply it; pods that are pre-empted start again by themselves
  resume   delete a JobSet that has ended, after a question or with --yes, and create it again
  status   of the JobSet and its pods
  logs     the last lines of each pod (--tail N)
  delete   the JobSet, after a question or with --yes; OUT stays

  --dry-run   print the manifest and the commands, apply nothing; needs no kubectl
  -- OPTION   the rest goes to `python -m tpu run`: -- --task embed --views 5x3

Settings, from the environment:
  NAME NAMESPACE CONTEXT   of the JobSet, its namespace, kubectl's context
                           (default: videomae, default, the current one)
  CHIP TOPOLOGY            v5e and 4x4, v6e and 2x4, v4 and 2x2x2, ... (create, resume)
  CHIPS_PER_HOST           of the node pool's machine type (default: 4, or all of fewer)
  SPOT                     yes (default) or no
  MANIFEST OUT MODEL       as for `python -m tpu run`, seen by every pod: gs://... (create, resume)
  PACKAGE                  git+https://... or https://...whl of videomae-jax (create, resume)
  IMAGE                    with Python 3.11 or newer, and git (default: python:3.12)
  SERVICE_ACCOUNT          of Kubernetes, that may read and write the bucket (default: default)
  PRIVILEGED               yes or no (default): needed for TPUs by old versions of GKE
  MAX_RESTARTS             of the JobSet, pre-emptions among them (default: 100)
HELP
}

manifest() {
  local model requirement privileged=false
  set_nodes
  model=$(model_path /model)
  requirement=$(requirement batch,tpu)
  [[ $PRIVILEGED == no ]] || privileged=true
  # shellcheck disable=SC2034 # `fill` reads them by name.
  {
    FILL_NAME=$(json "$NAME")
    FILL_HOSTS=$HOSTS
    FILL_CHIPS=$CHIPS_PER_HOST
    FILL_IMAGE=$(json "$IMAGE")
    FILL_MAX_RESTARTS=$MAX_RESTARTS
    FILL_SERVICE_ACCOUNT=$(json "$SERVICE_ACCOUNT")
    FILL_PRIVILEGED=$privileged
    FILL_MODEL=$(container_text "${MODEL%/}")
    FILL_REQUIREMENT=$(container_text "$requirement")
    FILL_COMMAND=$(container_list python -m tpu run "$MANIFEST" "$OUT" --model "$model" \
      --distributed "${EXTRA[@]}")
  }
  fill "$HERE/jobset.yaml"
}

COMMAND=${1:-}
case $COMMAND in
  create | resume | status | logs | delete) shift ;;
  --help | -h)
    usage
    exit 0
    ;;
  *) fail "say create, resume, status, logs or delete; see --help" ;;
esac
parse_options "$@"
NAME=${NAME:-videomae}
SPOT=${SPOT:-yes}
IMAGE=${IMAGE:-python:3.12}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
PRIVILEGED=${PRIVILEGED:-no}
MAX_RESTARTS=${MAX_RESTARTS:-100}
need_yes_or_no SPOT PRIVILEGED
need_numbers MAX_RESTARTS
need_name
set_cluster
case $COMMAND in
  create | resume)
    need CHIP TOPOLOGY MANIFEST OUT MODEL PACKAGE
    need_shared MANIFEST OUT
    ;;
esac
need_program kubectl
PODS="jobset.sigs.k8s.io/jobset-name=$NAME"

case $COMMAND in
  create)
    FILLED=$(manifest)
    apply "$FILLED"
    ;;
  resume)
    FILLED=$(manifest)
    confirm "delete the JobSet $NAME and create it again"
    cluster_step delete jobset "$NAME" --ignore-not-found --wait
    apply "$FILLED"
    ;;
  status)
    cluster_step get jobset "$NAME"
    cluster_step get pods --selector="$PODS" --output=wide
    ;;
  logs)
    cluster_step logs --selector="$PODS" --container=run --prefix --tail="$TAIL" \
      --max-log-requests=1000
    ;;
  delete)
    confirm "delete the JobSet $NAME"
    cluster_step delete jobset "$NAME" --wait
    ;;
esac
