# Sourced by the other scripts: a virtual environment with this library in the tested versions.
#   RCA_VENV  its folder (default .venv), PYTHON  the interpreter to make it with (default python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${RCA_VENV:-.venv}"
python="${PYTHON:-python3}"

make_environment() { # $1: extras, comma-separated; $2: versions in the place of constraints.txt
  local constraints="${2:-constraints.txt}"
  if ! command -v "$python" > /dev/null; then
    echo "there is no $python here: name a Python 3.10 to 3.13 with PYTHON=python3.12" >&2
    exit 1
  fi
  if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "$python is $("$python" --version 2>&1): Python 3.10 to 3.13 is needed; name one with PYTHON=python3.12" >&2
    exit 1
  fi
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  # shellcheck disable=SC1091
  source "$venv/bin/activate"
  # torch by itself first, so that nothing else can decide on its version. Where it is found, and so whether it is the
  # build for CPUs or the larger one for CUDA, is for pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS) to say.
  python -m pip install --quiet --constraint "$constraints" torch
  python -m pip install --quiet --constraint "$constraints" --editable ".[$1]"
}
