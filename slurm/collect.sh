#!/usr/bin/env bash
# Merge the runs of a job's sweep into results/<job>.h5 and draw them; fails if any is missing.
#
#   JOB=jobs/x.toml sbatch --dependency=afterany:<array's job id> slurm/collect.sh
#SBATCH --job-name=collect
#SBATCH --ntasks=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=00:30:00
#SBATCH --output=results/logs/%x-%j.log
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit 2
# shellcheck source=slurm/lib.sh
. slurm/lib.sh
collect "${JOB:-jobs/space_invaders.toml}"
