#!/usr/bin/env bash
# Train the default job, LunarLander-v3 with eight workers: minutes, to try a cluster out.
#
#   sbatch slurm/lunar_lander.sh                                # from the project's root
#   JOB=jobs/cartpole.toml sbatch --job-name=cartpole --ntasks=5 slurm/lunar_lander.sh
#   bash slurm/lunar_lander.sh                                  # without Slurm, here
#SBATCH --job-name=lunar_lander
#SBATCH --array=0
#SBATCH --ntasks=9
#SBATCH --mem-per-cpu=1G
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=results/logs/%x-%A_%a.log
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit 2
# shellcheck source=slurm/lib.sh
. slurm/lib.sh
train "${JOB:-jobs/lunar_lander.toml}" "$@"
