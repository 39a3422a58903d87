#!/usr/bin/env bash
# On each host of a TPU slice: `slice.sh` copies this there and runs it through ssh.
set -euo pipefail
shopt -s inherit_errexit

UNIT=videomae
HOME_OF_RUN=$HOME/videomae

usage() {
  cat <<'HELP'
host.sh setup REQUIREMENT MODEL   Python, the package, and MODEL where it is in a bucket (else "")
host.sh start ARGUMENT...         python -m tpu ARGUMENT... as a service of systemd
host.sh status | logs LINES       of that service
HELP
}

state() {
  systemctl show --property=SubState --value "$UNIT"
}

# TPU VMs may come with Python 3.10; uv brings a newer one. gcsfs is what opens gs://.
setup() {
  mkdir -p "$HOME_OF_RUN/model"
  # Newer Ubuntus refuse it without, also below the user's home.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user --upgrade uv
  [[ -d $HOME_OF_RUN/venv ]] ||
    python3 -m uv venv --quiet --python 3.12 "$HOME_OF_RUN/venv"
  python3 -m uv pip install --quiet --python "$HOME_OF_RUN/venv/bin/python" "$1" gcsfs
  if [[ -n $2 ]]; then
    gcloud storage cp --recursive "$2" "$HOME_OF_RUN/model/"
  fi
}

# A service outlives the ssh session, gets SIGTERM when the machine is taken away, and has time to
# write what it has done.
start() {
  if [[ $(state) == running ]]; then
    echo "launch: error: it runs already on $(hostname); see status and logs" >&2
    exit 2
  fi
  sudo systemctl stop "$UNIT" 2>/dev/null || true
  sudo systemctl reset-failed "$UNIT" 2>/dev/null || true
  sudo systemd-run --unit="$UNIT" --uid="$(id -u)" --gid="$(id -g)" --remain-after-exit \
    --property=TimeoutStopSec=25 --property=WorkingDirectory="$HOME_OF_RUN" \
    --setenv=HOME="$HOME" -- "$HOME_OF_RUN/venv/bin/python" -m tpu "$@"
}

case ${1:-} in
  setup) setup "$2" "$3" ;;
  start) start "${@:2}" ;;
  status)
    printf '%s: %s, exit code %s\n' "$(hostname)" "$(state)" \
      "$(systemctl show --property=ExecMainStatus --value "$UNIT")"
    # Of the job itself, not what systemd says about it.
    sudo journalctl _SYSTEMD_UNIT="$UNIT.service" --lines=1 --output=cat --no-pager
    ;;
  logs) sudo journalctl --unit="$UNIT" --lines="$2" --output=short-iso --no-pager ;;
  *)
    usage >&2
    exit 2
    ;;
esac
