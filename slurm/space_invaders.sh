#!/usr/bin/env bash
# Train the whole Space Invaders sweep, one array task per run, and collect it into one file.
#
#   sbatch slurm/space_invaders.sh                              # from the project's root
#   sbatch --array=0-3 --ntasks=41 slurm/space_invaders.sh --total-steps 1000000
#   bash slurm/space_invaders.sh                                # without Slurm: run 0, here
#
# 16 workers, as the A3C paper's 16 threads, and the server. Runs go to results/space_invaders/, the
# collected file is results/space_invaders.h5. A run that reaches its time limit is saved and requeued.
#SBATCH --job-name=space_invaders
#SBATCH --array=0-11
#SBATCH --ntasks=17
#SBATCH --mem-per-cpu=1G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=results/logs/%x-%A_%a.log
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit 2
# shellcheck source=slurm/lib.sh
. slurm/lib.sh
train "${JOB:-jobs/space_invaders.toml}" "$@"
