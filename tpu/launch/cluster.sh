# shellcheck shell=bash
# What jobset.sh and kuberay.sh do alike on a Kubernetes cluster. Sourced, never run.
# shellcheck disable=SC2034,SC2154 # Settings of the script that sources this, and what it fills.
true

KUBECTL=(kubectl)

set_cluster() {
  NAMESPACE=${NAMESPACE:-default}
  [[ -z ${CONTEXT:-} ]] || KUBECTL+=(--context="$CONTEXT")
  KUBECTL+=(--namespace="$NAMESPACE")
}

# A string for an argument or a variable of a container, where Kubernetes replaces $(NAME) and takes
# $$( for a plain $(.
container_text() {
  local open="\$("
  json "${1//"$open"/"\$$open"}"
}

container_list() {
  local word separator='' list='['
  for word in "$@"; do
    list+=$separator$(container_text "$word")
    separator=', '
  done
  printf '%s]' "$list"
}

# Sets FILL_NODES, HOSTS and CHIPS_PER_HOST for CHIP, TOPOLOGY and SPOT.
set_nodes() {
  local accelerator side chips=1
  case $CHIP in
    v4) accelerator=tpu-v4-podslice ;;
    v5e) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v6e) accelerator=tpu-v6e-slice ;;
    *) fail "CHIP must be v4, v5e, v5p or v6e, got '$CHIP'" ;;
  esac
  [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    fail "TOPOLOGY must be the sides of the slice, as in 4x4 or 2x2x1, got '$TOPOLOGY'"
  for side in ${TOPOLOGY//x/ }; do
    chips=$((chips * side))
  done
  CHIPS_PER_HOST=${CHIPS_PER_HOST:-$((chips < 4 ? chips : 4))}
  if [[ ! $CHIPS_PER_HOST =~ ^[1-8]$ ]] || ((chips % CHIPS_PER_HOST)); then
    fail "CHIPS_PER_HOST must divide the $chips chips of $TOPOLOGY, got '$CHIPS_PER_HOST'"
  fi
  HOSTS=$((chips / CHIPS_PER_HOST))
  FILL_NODES="{\"cloud.google.com/gke-tpu-accelerator\": \"$accelerator\""
  FILL_NODES+=", \"cloud.google.com/gke-tpu-topology\": \"$TOPOLOGY\""
  [[ $SPOT == no ]] || FILL_NODES+=', "cloud.google.com/gke-spot": "true"'
  FILL_NODES+='}'
}

# Hand a manifest to the cluster; with --dry-run it is printed, and all of it is YAML.
apply() {
  if [[ $DRY_RUN == yes ]]; then
    printf '# %s\n%s\n' "$(words "${KUBECTL[@]}" apply --filename=-)" "$1"
  else
    "${KUBECTL[@]}" apply --filename=- <<<"$1"
  fi
}

# With --dry-run a comment, beside a manifest.
cluster_step() {
  if [[ $DRY_RUN == yes ]]; then
    printf '# '
  fi
  step "${KUBECTL[@]}" "$@"
}

# Each of the settings named must be a whole number.
need_numbers() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name must be a whole number, got '${!name}'"
  done
}

need_yes_or_no() {
  local name
  for name in "$@"; do
    [[ ${!name} == yes || ${!name} == no ]] || fail "$name must be yes or no, got '${!name}'"
  done
}
