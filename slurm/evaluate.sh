#!/usr/bin/env bash
# Play episodes with every snapshot of a job's runs, which must be complete, and collect them again.
#
#   JOB=jobs/x.toml sbatch slurm/evaluate.sh                    # 500 episodes each
#   JOB=jobs/x.toml sbatch slurm/evaluate.sh --episodes 100 --greedy
#
# Options are evaluate's. All ranks but the first play, each a snapshot at a time. A job that reaches
# its time limit is requeued, and goes on with what is missing.
#SBATCH --job-name=evaluate
#SBATCH --ntasks=17
#SBATCH --mem-per-cpu=1G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=results/logs/%x-%j.log
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit 2
# shellcheck source=slurm/lib.sh
. slurm/lib.sh
evaluate "${JOB:?must be a job file}" "$@"
