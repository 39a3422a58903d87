#!/usr/bin/env bash
# A RayJob on GKE, decode workers on CPU nodes beside TPU workers: create, resume, status, ...
set -euo pipefail
shopt -s inherit_errexit

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=steps.sh
source "$HERE/steps.sh"
# shellcheck source=cluster.sh
source "$HERE/cluster.sh"

usage() {
  cat <<'HELP'
usage: kuberay.sh COMMAND [--dry-run] [--yes] [--tail N] [-- OPTION...]

  create   fill rayjob.yaml and apply it: a Ray cluster that ends with the job
  resume   delete a RayJob that has ended, after a question or with --yes, and create it again
  status   of the RayJob and its pods
  logs     the last lines of the job (--tail N)
  delete   the RayJob and its cluster, after a question or with --yes; OUT stays

  --dry-run   print the manifest and the commands, apply nothing; needs no kubectl
  -- OPTION   the rest goes to `python -m tpu ray`: -- --task embed --views 5x3

Settings, from the environment:
  NAME NAMESPACE CONTEXT   of the RayJob, its namespace, kubectl's context
                           (default: videomae, default, the current one)
  IMAGE RAY_VERSION        an image of that Ray with videomae-jax[ray,tpu] in it (create, resume)
  CHIP TOPOLOGY            of one TPU worker, a slice of one host: v5e and 2x2, v6e and 2x2, v4 and
                           2x2x1 (create, resume)
  CHIPS_PER_HOST           of the node pool's machine type (default: 4, or all of fewer)
  TPU_WORKERS CPU_WORKERS  how many of each (default: 1 and 1)
  CPUS MEMORY              of a CPU worker (default: 16 and 64Gi)
  SPOT                     yes (default) or no; the head is never on a spot node
  MANIFEST OUT MODEL       as for `python -m tpu ray`, seen by every pod: gs://... (create, resume)
  SERVICE_ACCOUNT          of Kubernetes, that may read and write the bucket (default: default)
HELP
}

manifest() {
  local model
  set_nodes
  ((HOSTS == 1)) || fail "TOPOLOGY must be of one host for a worker of Ray, got '$TOPOLOGY': $HOSTS"
  model=$(model_path /model)
  # shellcheck disable=SC2034 # `fill` reads them by name.
  {
    FILL_NAME=$(json "$NAME")
    FILL_IMAGE=$(json "$IMAGE")
    FILL_RAY_VERSION=$(json "$RAY_VERSION")
    FILL_SERVICE_ACCOUNT=$(json "$SERVICE_ACCOUNT")
    FILL_MODEL=$(container_text "${MODEL%/}")
    FILL_CHIPS=$CHIPS_PER_HOST
    FILL_TPU_WORKERS=$TPU_WORKERS
    FILL_CPU_WORKERS=$CPU_WORKERS
    FILL_CPUS=$CPUS
    FILL_MEMORY=$(json "$MEMORY")
    # For a shell, and for KubeRay, which takes the quotes off and reads JSON.
    FILL_RESOURCES=$(json "'{\"TPU\": $CHIPS_PER_HOST}'")
    FILL_CPU_NODES={}
    [[ $SPOT == no ]] || FILL_CPU_NODES='{"cloud.google.com/gke-spot": "true"}'
    FILL_COMMAND=$(words python -m tpu ray "$MANIFEST" "$OUT" --model "$model" "${EXTRA[@]}")
    FILL_COMMAND=$(json "$FILL_COMMAND")
  }
  fill "$HERE/rayjob.yaml"
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
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
TPU_WORKERS=${TPU_WORKERS:-1}
CPU_WORKERS=${CPU_WORKERS:-1}
CPUS=${CPUS:-16}
MEMORY=${MEMORY:-64Gi}
need_yes_or_no SPOT
need_numbers TPU_WORKERS CPU_WORKERS CPUS
need_name
set_cluster
case $COMMAND in
  create | resume)
    need CHIP TOPOLOGY IMAGE RAY_VERSION MANIFEST OUT MODEL
    need_shared MANIFEST OUT
    ;;
esac
need_program kubectl

case $COMMAND in
  create)
    FILLED=$(manifest)
    apply "$FILLED"
    ;;
  resume)
    FILLED=$(manifest)
    confirm "delete the RayJob $NAME and create it again"
    cluster_step delete rayjob "$NAME" --ignore-not-found --wait
    apply "$FILLED"
    ;;
  status)
    cluster_step get rayjob "$NAME"
    cluster_step get pods --selector="ray.io/originated-from-cr-name=$NAME" --output=wide
    ;;
  logs) cluster_step logs --selector="job-name=$NAME" --tail="$TAIL" ;;
  delete)
    confirm "delete the RayJob $NAME and its cluster"
    cluster_step delete rayjob "$NAME" --wait
    ;;
esac
