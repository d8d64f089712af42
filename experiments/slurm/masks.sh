#!/usr/bin/env bash
# `rca masks` on a large folder of photographs: jobs that follow each other, of which two or three are arrays. From any
# folder that all nodes see, with the environment of this library active; the first word is the number of parts, the others
# are those of `rca masks`:
#   RCA_SBATCH="--partition=gpu --gpus=1 --cpus-per-task=8 --mem=32G --time=12:00:00" \
#     bash experiments/slurm/masks.sh 16 photographs/ --out masks/ --weights resnet50.pth
#
# features (array) -> model -> labels (array) -> report; with --segmenter: labels -> segmenter -> its labels (array) -> report.
# Download weights before, for nodes without a network: rca weights fetch resnet50.
# Each job takes up what is there: after a failure, or with photographs added, start the same chain again. Do not add
# photographs while it runs. RCA_SBATCH are options of sbatch for every job; logs are rca-masks-<job>.log.
set -euo pipefail

parts="${1:?usage: bash experiments/slurm/masks.sh PARTS PHOTOGRAPHS --out FOLDER [options of rca masks]}"
shift
: "${1:?usage: bash experiments/slurm/masks.sh PARTS PHOTOGRAPHS --out FOLDER [options of rca masks]}"
read -ra own <<< "${RCA_SBATCH:-}"
command="$(printf '%q ' rca masks "$@")"
before=""

# A job of the chain, which starts when all tasks of the one before have ended well.
submit() {
  local name="$1" words=("${@:2}") after=()
  [[ -z "$before" ]] || after=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
  before="$(sbatch --parsable --ntasks=1 --job-name="rca-$name" --output="rca-masks-%j.log" ${own[@]+"${own[@]}"} \
    ${after[@]+"${after[@]}"} "${words[@]}")"
  before="${before%%;*}"  # without the name of the cluster
  echo "$name: job $before"
}

array() {
  submit "$1" --array="1-$parts" --wrap "$command--shard \"\$SLURM_ARRAY_TASK_ID/$parts\""
}

array features
submit model --wrap "$command"
array labels
if [[ " $* " == *" --segmenter "* ]]; then
  submit segmenter --wrap "$command"
  array drawn
fi
submit report --wrap "$command"
