# shellcheck shell=bash
# What the launch scripts do alike: settings, quoting, --dry-run. Sourced, never run.
# shellcheck disable=SC2034,SC2153 # EXTRA, TAIL and NAME are of the script that sources this.
true

DRY_RUN=no
YES=no
EXTRA=()

# One line on stderr, exit code 2.
fail() {
  printf 'launch: error: %s\n' "$*" >&2
  exit 2
}

# Sets DRY_RUN, YES, TAIL, and EXTRA: what comes after --, for `python -m tpu`.
TAIL=20
parse_options() {
  while (($#)); do
    case $1 in
      --dry-run) DRY_RUN=yes ;;
      --yes) YES=yes ;;
      --tail)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--tail takes a number of lines"
        TAIL=$2
        shift
        ;;
      --help | -h)
        usage
        exit 0
        ;;
      --)
        shift
        EXTRA=("$@")
        return
        ;;
      *) fail "unknown option $1; see --help" ;;
    esac
    shift
  done
}

# All that is missing at once.
need() {
  local name missing=()
  for name in "$@"; do
    [[ -n ${!name:-} ]] || missing+=("$name")
  done
  if ((${#missing[@]})); then
    fail "set ${missing[*]} in the environment; see --help"
  fi
}

need_name() {
  [[ ${#NAME} -le 40 && $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "NAME must be lower-case letters, digits and hyphens, at most 40, got '$NAME'"
}

# Every host must see the same: a bucket, or a folder that is mounted on all of them.
need_shared() {
  local name
  for name in "$@"; do
    [[ ${!name} == *://* || ${!name} == /* ]] ||
      fail "$name must be seen by every host, as gs://bucket/path, got '${!name}'"
  done
}

need_program() {
  [[ $DRY_RUN == yes ]] || command -v "$1" >/dev/null ||
    fail "$1 is not installed, or not on PATH; --dry-run works without"
}

# Words as a shell has to read them.
words() {
  local word separator=''
  for word in "$@"; do
    [[ $word =~ ^[a-zA-Z0-9_./:=@,+-]+$ ]] || word=${word@Q}
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# Run a command, or with --dry-run print it.
step() {
  if [[ $DRY_RUN == yes ]]; then
    words "$@"
    printf '\n'
  else
    "$@"
  fi
}

confirm() {
  local answer
  [[ $YES == no && $DRY_RUN == no ]] || return 0
  [[ -t 0 ]] || fail "$1? nobody is there to be asked: say --yes"
  read -r -p "$1? [y/N] " answer
  [[ $answer == [yY] ]] || fail "not confirmed, nothing was deleted"
}

# What pip installs: PACKAGE with the extras in $1.
requirement() {
  case $PACKAGE in
    git+* | https://*) printf 'videomae-jax[%s] @ %s' "$1" "$PACKAGE" ;;
    *) fail "PACKAGE must be git+https://... or https://...whl, got '$PACKAGE'" ;;
  esac
}

# Where MODEL is on a host, once $1 holds a copy of what comes from a bucket.
model_path() {
  case $MODEL in
    gs://*/?*) printf '%s/%s' "$1" "$(basename "$MODEL")" ;;
    gs://*) fail "MODEL must be a folder in the bucket, as gs://bucket/small-k400, got '$MODEL'" ;;
    *) printf '%s' "$MODEL" ;;
  esac
}

# A string of JSON, which YAML reads, too.
json() {
  local text=$1
  [[ $text != *[[:cntrl:]]* ]] || fail "settings can't hold control characters, got '$text'"
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "$text"
}

# The template in file $1 with each %NAME% replaced by the variable FILL_NAME: once, so that what a
# value holds is never replaced itself.
fill() {
  local rest done='' name value
  rest=$(<"$1")
  while [[ $rest =~ ^([^%]*)%([A-Z_]+)%(.*)$ ]]; do
    name=FILL_${BASH_REMATCH[2]}
    value=${!name-}
    [[ -v $name ]] || fail "$1 has %${BASH_REMATCH[2]}%, which nothing fills"
    done+=${BASH_REMATCH[1]}$value
    rest=${BASH_REMATCH[3]}
  done
  [[ $rest != *%* ]] || fail "$1 has a % that belongs to no placeholder"
  printf '%s%s\n' "$done" "$rest"
}
