# shellcheck shell=bash
# What the batch scripts share: settings, launcher, stop signals, going on, collecting.
#
#   . slurm/lib.sh
#   train jobs/x.toml [options of python -m mpi_rl train]
#
# One call trains one run: index SLURM_ARRAY_TASK_ID of the job's sweep, into results/x/<index>.h5.
# SIGUSR1 (sent ahead of the time limit, see --signal) and SIGTERM make it save and stop; it is then
# queued again until it is complete. Without Slurm, the same script trains index INDEX (0) here.
#
# Settings come from the environment, else from slurm/profiles/$PROFILE.env, else from default.env.
set -euo pipefail

say() { echo "$(date '+%F %T') slurm/lib.sh: $*"; }

load_profile() { # NAME=value lines; what the environment sets already stays
    local file=slurm/profiles/$1.env name value
    if [[ ! -f $file ]]; then
        say "PROFILE=$1: no $file" >&2
        exit 2
    fi
    while IFS='=' read -r name value; do
        [[ $name =~ ^[A-Z_]+$ && ! -v $name ]] && export "$name=$value"
    done <"$file"
    return 0
}

load_profile "${PROFILE:-default}"
load_profile default

if [[ $MODULES ]]; then
    # shellcheck disable=SC2086 # several modules
    module load $MODULES
fi
if [[ ! $PYTHON ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}} # srun forgets it
INDEX=${SLURM_ARRAY_TASK_ID:-${INDEX:-0}}
RANKS=${SLURM_NTASKS:-${RANKS:-$(($(nproc) + 1))}}
restarts=$((${SLURM_RESTART_COUNT:-0} + ${RESUBMISSIONS:-0}))

train() { # JOB [options]: train this task's run, and see to what comes after
    job=$1 name=$(basename "$1" .toml)
    shift
    case " $* " in
        *" --output"* | *" --index"* | *" --overwrite "*)
            say "--output, --index: set OUTPUT, INDEX or --array; --overwrite: remove the file" >&2
            exit 2
            ;;
    esac
    local output=${OUTPUT:-results/$name/$INDEX.h5} state
    arguments=(train "$job" "$@" --index "$INDEX" --output "$output")
    mkdir -p "$(dirname "$output")" || exit 2
    stop_file=$output.stop-${SLURM_JOB_ID:-$$} signalled=
    if ((restarts)); then # a node that lost its slurmd may still run this job's last start
        echo "its own next start" >"$stop_file"
        sleep 2
    fi
    rm -f "$stop_file"
    for signal in USR1 TERM INT; do
        # shellcheck disable=SC2064 # expanded now
        trap "stop_run $signal" "$signal"
    done
    state=$(standing) || exit 2
    if [[ $state == complete ]]; then
        say "$output is complete already"
        exit 0
    fi
    queue_successor "$@"
    status=0
    [[ $signalled ]] || launch
    trap '' USR1 TERM INT # nothing is left that could stop
    rm -f "$stop_file"
    state=$(standing) || exit 2
    if [[ $state == complete ]]; then
        drop_successor
        [[ ${OUTPUT:-} ]] || collect "$job" || true # the last run to end completes the file
        exit 0
    fi
    go_on "$state"
}

standing() { # print new, unfinished, stuck, failed or complete
    local answer
    answer=$("$PYTHON" -m mpi_rl "${arguments[@]}" --dry-run) || return
    echo "${answer%%:*}"
}

stop_run() { # SIGNAL: ask for a stop; rank 0 looks for the file once a second
    signalled=$1 interrupted=1
    say "SIG$1: saving and stopping"
    echo "SIG$1" >"$stop_file"
}

launch() { # run all ranks; `status` is how they ended
    find_launcher
    [[ $LAUNCHER != srun ]] || renumber_step
    say "job ${SLURM_JOB_ID:-none}, restart $restarts, ${SLURM_JOB_NODELIST:-$(hostname)}:" \
        "${launcher[*]} ... ${arguments[*]}"
    "${launcher[@]}" "$PYTHON" -m mpi_rl "${arguments[@]}" --stop-file "$stop_file" &
    while
        interrupted=
        wait $! && status=0 || status=$?
        [[ $interrupted ]] # a trap ends wait too soon
    do :; done
    say "ended with status $status${signalled:+ after SIG$signalled}"
}

find_launcher() { # set `launcher`, the words before the program
    local mpirun
    mpirun=$(dirname "$PYTHON")/mpirun
    [[ -x $mpirun ]] || mpirun=mpirun
    if [[ $LAUNCHER == auto ]]; then # Open MPI's wheels know no PMI of Slurm's, MPICH's know pmi2
        LAUNCHER=srun
        if [[ ! ${SLURM_JOB_ID:-} ]] || "$mpirun" --version 2>&1 | grep -q "Open MPI"; then
            LAUNCHER=mpirun
        fi
    fi
    case $LAUNCHER in
        srun) launcher=(srun --kill-on-bad-exit=1 --wait=60) options=$SRUN_OPTIONS ;;
        mpirun) launcher=("$mpirun" -n "$RANKS") options=$MPIRUN_OPTIONS ;;
        *)
            say "LAUNCHER=$LAUNCHER: must be auto, srun or mpirun" >&2
            exit 2
            ;;
    esac
    # shellcheck disable=SC2206 # several options
    launcher+=($options)
}

renumber_step() { # make this srun's step number the count of requeues
    # MPICH names its shared memory after job and step. A killed run leaves it behind, and a requeued
    # one of the same name on the same node attaches to it and waits in MPI_Init for ever.
    local step
    for ((step = 0; step < ${SLURM_RESTART_COUNT:-0}; step++)); do
        srun --ntasks=1 --nodes=1 --mpi=none true || true
    done
}

go_on() { # STATE: queue the unfinished run again, if there is use in it
    if ((status == 2 || status == 74)) || [[ $1 == failed ]]; then # see mpi_rl/__main__.py
        say "not queued again: it would fail again"
        drop_successor
        exit $((status ? status : 1))
    elif [[ $1 == stuck || ($1 == new && ! $signalled) ]]; then
        say "not queued again: no step was saved"
        drop_successor
        exit 1
    elif [[ ! ${SLURM_JOB_ID:-} ]]; then
        say "stopped: the same command goes on"
    elif ((restarts >= MAX_RESTARTS)); then
        say "not queued again: MAX_RESTARTS=$MAX_RESTARTS reached"
        drop_successor
        exit 1
    elif [[ $successor ]]; then
        say "job $successor goes on"
    elif [[ $GO_ON != requeue ]]; then
        say "GO_ON=$GO_ON: not queued again"
    elif [[ $(job_field "$SLURM_JOB_ID" JobState) != RUNNING ]]; then
        say "ended by Slurm, which decides what comes next" # cancelled, preempted or requeued
    else
        say "queued again"
        if ! scontrol requeue "$SLURM_JOB_ID"; then
            say "may not be requeued here: GO_ON=resubmit is for such sites"
            exit 1
        fi
    fi
    exit "$status"
}

# Where a preempted job may not be requeued (PreemptMode=CANCEL), GO_ON=resubmit queues a successor
# before the run starts, because there may be no time for it later.

queue_successor() { # [options]
    successor=
    [[ $GO_ON == resubmit && ${SLURM_JOB_ID:-} ]] || return 0
    if [[ ${PREDECESSOR:-} && $(job_field "$PREDECESSOR" JobState) == CANCELLED ]]; then
        say "job $PREDECESSOR was cancelled by hand: not going on"
        exit 1
    fi
    ((restarts < MAX_RESTARTS)) || return 0
    local options=(
        --parsable
        --job-name="$name-$INDEX"
        --dependency="singleton,afterany:$SLURM_JOB_ID"
        --array="$INDEX"
        --ntasks="$RANKS"
        --nodes="$SLURM_JOB_NUM_NODES"
        --partition="$SLURM_JOB_PARTITION"
        --time="$(squeue --noheader --job="$SLURM_JOB_ID" --format=%l)"
        --output="$(job_field "$SLURM_JOB_ID" StdOut)"
    )
    [[ ${SLURM_JOB_ACCOUNT:-} ]] && options+=(--account="$SLURM_JOB_ACCOUNT")
    [[ ${SLURM_JOB_QOS:-} ]] && options+=(--qos="$SLURM_JOB_QOS")
    successor=$(JOB=$job PREDECESSOR=$SLURM_JOB_ID RESUBMISSIONS=$((restarts + 1)) \
        sbatch "${options[@]}" "$0" "$@")
    successor=${successor%%;*} # without the cluster's name
    say "job $successor goes on if this one ends before the run is complete"
}

drop_successor() {
    [[ ! $successor ]] || scancel "$successor"
}

job_field() { # JOB_ID FIELD: one value of scontrol show job
    scontrol --oneliner show job "$1" 2>/dev/null | grep -o " $2=[^ ]*" | head -n 1 | cut -d= -f2- || true
}

collect() { # JOB: merge the sweep's complete runs; once there are all of them, draw them
    local name
    name=$(basename "$1" .toml)
    "$PYTHON" -m mpi_rl collect "$1"
    "$PYTHON" -m analysis.learning_curves "results/$name.h5" --output "results/$name/learning_curves.png"
}
