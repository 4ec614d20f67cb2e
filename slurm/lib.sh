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

refuse() {
    say "$*" >&2
    exit 2
}

load_profile() { # NAME=value lines; what the environment sets already stays
    local file=slurm/profiles/$1.env name value
    [[ -f $file ]] || refuse "PROFILE=$1: no $file"
    while IFS='=' read -r name value || [[ $name ]]; do
        [[ $name =~ ^[A-Z_]+$ && ! -v $name ]] && export "$name=$value"
    done <"$file"
    return 0
}

load_profile "${PROFILE:-default}"
load_profile default
[[ $LAUNCHER =~ ^(auto|srun|mpirun)$ ]] || refuse "LAUNCHER=$LAUNCHER: must be auto, srun or mpirun"
[[ $GO_ON =~ ^(requeue|resubmit|stop)$ ]] || refuse "GO_ON=$GO_ON: must be requeue, resubmit or stop"
[[ $MAX_RESTARTS =~ ^[0-9]+$ ]] || refuse "MAX_RESTARTS=$MAX_RESTARTS: must be a whole number"

if [[ $MODULES ]]; then
    set +eu # which a site's function need not bear
    # shellcheck disable=SC2086 # several modules
    module load $MODULES
    set -eu
fi
if [[ ! $PYTHON ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
threads=1 spare=0 # of the server; tasks that are cores for them, without a rank
INDEX=${SLURM_ARRAY_TASK_ID:-${INDEX:-0}}
RANKS=${SLURM_NTASKS:-${RANKS:-$(($(nproc) + 1))}}
requeues=${SLURM_RESTART_COUNT:-0}
restarts=$((requeues + ${RESUBMISSIONS:-0}))
STUCK_AFTER=3 # starts in a row that saved no step
# A bare SLURM_JOB_ID may be the id of the whole array.
task=${SLURM_JOB_ID:-}
[[ ! ${SLURM_ARRAY_JOB_ID:-} ]] || task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

train() { # JOB [options]: train this task's run, and see to what comes after
    job=$1 name=$(basename "$1" .toml)
    shift
    case " $* " in
        *" --output"* | *" --index"* | *" --overwrite "*)
            refuse "set OUTPUT, INDEX or --array for --output and --index; remove the file to --overwrite"
            ;;
    esac
    output=${OUTPUT:-results/$name/$INDEX.h5}
    arguments=(train "$job" "$@" --index "$INDEX" --output "$output")
    mkdir -p "$(dirname "$output")" || exit 2
    await_signals
    where=$(standing) || exit 2
    if [[ $where == complete:* ]]; then
        say "$where: nothing to train"
        finish_sweep
    fi
    count_ranks
    queue_successor "$@"
    status=0
    [[ $signalled ]] || launch
    trap '' USR1 TERM INT # nothing is left that could stop
    where=$(standing) || exit 2
    if [[ $where == complete:* ]]; then
        rm -f "$output.starts"
        drop_successor
        finish_sweep
    fi
    go_on
}

standing() { # print "new: ...", "unfinished: ...", "failed: ..." or "complete: ..." with the step saved
    "$PYTHON" -m mpi_rl "${arguments[@]}" --dry-run
}

count_ranks() { # of the job's tasks, all but the first of the server's threads are no ranks
    [[ $where =~ ,\ ([0-9]+)\ server\ threads$ ]] || return 0
    threads=${BASH_REMATCH[1]}
    [[ ${SLURM_NTASKS:-} ]] || return 0 # RANKS counts ranks, on a machine that is not shared out
    spare=$((threads - 1)) RANKS=$((SLURM_NTASKS - threads + 1))
    ((RANKS > 1)) ||
        refuse "--ntasks=$SLURM_NTASKS: must be server_threads = $threads plus the workers"
}

finish_sweep() { # the last run to end completes the collected file
    [[ ${OUTPUT:-} ]] || collect "$job" || true
    exit 0
}

await_signals() {
    local signal
    stop_file=$output.stop-${task:-$$}-$restarts signalled=
    stop_files=("$stop_file")
    trap 'rm -f "${stop_files[@]}"' EXIT
    stop_last_start
    for signal in USR1 TERM INT; do
        # shellcheck disable=SC2064 # expanded now
        trap "stop_run $signal" "$signal"
    done
}

stop_last_start() { # whose ranks may live on where a node has lost its slurmd
    local id
    ((restarts)) || return 0
    for id in "$task" ${PREDECESSOR:-}; do
        rm -f "$output.stop-$id-"*
        stop_files+=("$output.stop-$id-$((restarts - 1))")
    done
    # They stay for as long as this start runs: not every node sees a file at once.
    echo "its own next start" | tee "${stop_files[@]:1}" >/dev/null || true
    sleep 2
}

stop_run() { # SIGNAL: ask for a stop; rank 0 looks for the file once a second
    signalled=$1 interrupted=1
    say "SIG$1: saving and stopping"
    echo "SIG$1" >"$stop_file" || true
}

launch() { # run all ranks; `status` is how they ended
    find_launcher
    echo "$where" >>"$output.starts" || true
    run_ranks "${arguments[@]}" --stop-file "$stop_file"
    say "ended with status $status${signalled:+ after SIG$signalled}"
}

run_ranks() { # ARGUMENTS: of mpi_rl; `status` is how it ended
    say "job ${task:-none}, restart $restarts, ${SLURM_JOB_NODELIST:-$(hostname)}:" \
        "${launcher[*]} ... $*"
    "${launcher[@]}" "$PYTHON" -m mpi_rl "$@" &
    while
        interrupted=
        wait $! && status=0 || status=$?
        [[ $interrupted ]] # a trap ends wait too soon
    do :; done
}

evaluate() { # JOB [options]: play the snapshots of its runs, and collect them again
    local name
    name=$(basename "$1" .toml)
    job=$1 signalled=
    shift
    find_launcher
    # What has been played is saved every ten seconds, so the ranks need no warning.
    trap 'signalled=USR1 interrupted=1; kill -TERM $!' USR1
    run_ranks evaluate "results/$name/"*.h5 "$@"
    if ((status == 0)); then
        "$PYTHON" -m mpi_rl collect "$job"
    elif [[ $signalled && $GO_ON == requeue ]] && ((restarts < MAX_RESTARTS)); then
        say "queued again"
        scontrol requeue "$task"
    fi
    exit "$status"
}

find_launcher() { # set `launcher`, the words before the program, and see that it can start
    local mpirun options
    mpirun=$(dirname "$PYTHON")/mpirun
    [[ -x $mpirun ]] || mpirun=mpirun
    if [[ $LAUNCHER == auto ]]; then
        # Open MPI's wheels know no PMI of Slurm's, MPICH's know pmi2. That takes every rank for alone
        # on its node (no shared memory) where srun is told which rank goes where: see share_cores.
        LAUNCHER=srun
        if [[ ! $task ]] || ((spare && SLURM_JOB_NUM_NODES > 1)) ||
            "$mpirun" --version 2>&1 | grep -q "Open MPI"; then
            LAUNCHER=mpirun
        fi
    fi
    if [[ $LAUNCHER == srun ]]; then
        export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}} # srun forgets it
        launcher=(srun --kill-on-bad-exit=1 --wait=60) options=$SRUN_OPTIONS
        renumber_step
    else
        unset SRUN_CPUS_PER_TASK # with it, all ranks that mpirun starts on a node get one core
        launcher=("$mpirun" -n "$RANKS") options=$MPIRUN_OPTIONS
    fi
    # shellcheck disable=SC2206 # several options
    launcher+=($options)
    ((threads == 1)) || share_cores
}

share_cores() { # bind no rank, and start none in `spare` tasks of rank 0's node
    local first=${SLURM_TASKS_PER_NODE:-}
    unset SRUN_CPUS_PER_TASK SLURM_NTASKS_PER_NODE # by which srun would hold ranks to fewer cores
    if [[ $LAUNCHER == srun ]]; then
        launcher+=(--ntasks="$RANKS" --cpu-bind=none)
    elif [[ ${launcher[*]} != *-bind-to* ]]; then # mpirun takes one only
        launcher+=(--bind-to none)
    fi
    ((spare && SLURM_JOB_NUM_NODES > 1)) || return 0
    first=${first%%[,(]*}
    ((first >= threads)) || say "$threads server threads, but rank 0's node has $first of the tasks"
    if [[ $LAUNCHER == srun ]]; then
        launcher+=(--distribution=arbitrary --nodelist="$(node_of_each_rank | paste -sd,)")
    else
        launcher+=(--host "$(node_of_each_rank | uniq -c | awk '{print $2 ":" $1}' | paste -sd,)")
    fi
}

node_of_each_rank() { # in Slurm's order of nodes, which MPICH's mpirun wants
    scontrol show hostnames "$SLURM_JOB_NODELIST" |
        awk -v tasks="$SLURM_TASKS_PER_NODE" -v spare="$spare" -v ranks="$RANKS" '
            BEGIN {
                num_parts = split(tasks, parts, ",") # like 4(x2),1
                for (i = 1; i <= num_parts; i++) {
                    split(parts[i] "(x1", part, /\(x/)
                    for (j = 0; j < part[2] + 0; j++) places[++num_nodes] = part[1]
                }
                places[1] = places[1] > spare ? places[1] - spare : 1
            }
            { for (i = 0; i < places[NR] && ranks-- > 0; i++) print }'
}

renumber_step() { # make the next srun's step number the count of requeues
    # MPICH names its shared memory after job and step. A killed run leaves it behind, and a requeued
    # one of the same name on the same node attaches to it and waits in MPI_Init for ever.
    local step
    for ((step = 0; step < requeues; step++)); do
        srun --ntasks=1 --nodes=1 --mpi=none true || true
    done
}

go_on() { # queue the unfinished run again, if there is use in it
    local stood_here=0
    [[ ! -f $output.starts ]] || stood_here=$(grep -cFx "$where" "$output.starts" || true)
    # See mpi_rl/__main__.py. Who still writes the file may be this task's last start.
    if ((status == 2 || status == 74 || (status == 75 && !restarts))) || [[ $where == failed:* ]]; then
        give_up "it would fail again"
    elif ((stood_here >= STUCK_AFTER)); then
        give_up "$STUCK_AFTER starts in a row have saved no step"
    elif [[ ! $task ]]; then
        say "stopped: the same command goes on"
    elif ((restarts >= MAX_RESTARTS)); then
        give_up "MAX_RESTARTS=$MAX_RESTARTS reached"
    elif [[ $successor ]]; then
        say "job $successor goes on"
    elif [[ $GO_ON != requeue ]]; then
        say "GO_ON=$GO_ON: not queued again"
    elif [[ $(field "$task" JobState) != RUNNING || $(field "$task" Restarts) != "$requeues" ]]; then
        say "ended by Slurm, which decides what comes next" # cancelled, preempted or requeued
    else
        say "queued again"
        scontrol requeue "$task" || give_up "not allowed here; GO_ON=resubmit is for such sites"
    fi
    exit "$status"
}

give_up() { # REASON
    say "not queued again: $*"
    rm -f "$output.starts"
    drop_successor
    exit $((status ? status : 1))
}

# Where a preempted job may not be requeued (PreemptMode=CANCEL), GO_ON=resubmit queues a successor
# before the run starts, because there may be no time for it later.

queue_successor() { # [options]
    successor=
    [[ $GO_ON == resubmit && $task ]] || return 0
    if [[ ${PREDECESSOR:-} && $(end_of "$PREDECESSOR") == CANCELLED* ]]; then
        say "job $PREDECESSOR was cancelled by hand: not going on"
        exit 1
    fi
    ((restarts < MAX_RESTARTS)) || return 0
    local options constraint
    constraint=$(field "$task" Features)
    options=( # as this job, with the same log; what else it needs belongs in SBATCH_OPTIONS
        --parsable
        --job-name="$name-$INDEX"
        --dependency="singleton,afterany:$task"
        --array="$INDEX"
        --ntasks="$((RANKS + spare))"
        --nodes="$SLURM_JOB_NUM_NODES"
        --partition="$SLURM_JOB_PARTITION"
        --time="$(squeue --noheader --job="$task" --format=%l)"
        --output="$(field "$task" StdOut)"
        ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"}
        ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"}
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}
    )
    [[ ! $constraint || $constraint == "(null)" ]] || options+=(--constraint="$constraint")
    # shellcheck disable=SC2086,SC2206 # several options
    options+=($SBATCH_OPTIONS)
    if successor=$(env -u SLURM_RESTART_COUNT -u SLURM_CPUS_PER_TASK -u SRUN_CPUS_PER_TASK \
        JOB="$job" PREDECESSOR="$task" RESUBMISSIONS=$((restarts + 1)) \
        sbatch "${options[@]}" "$0" "$@"); then
        successor=${successor%%;*} # without the cluster's name
        say "job $successor goes on if this one ends before the run is complete"
    else
        successor=
        say "no successor could be queued: submit again, should this job end too early"
    fi
}

drop_successor() {
    [[ ! $successor ]] || scancel "$successor" || true
}

end_of() { # JOB_ID: how it ended, also once slurmctld has forgotten it
    local state
    state=$(field "$1" JobState)
    echo "${state:-$(sacct --noheader --allocations --format=State --jobs="$1" 2>/dev/null || true)}"
}

field() { # JOB_ID FIELD: one value of scontrol show job; a path may have spaces
    scontrol --oneliner show job "$1" 2>/dev/null |
        sed -En "s/^.* $2=//; T; s, [A-Za-z:/]+=.*,,; p" || true
}

collect() { # JOB: merge the sweep's complete runs; once there are all of them, draw them
    local name
    name=$(basename "$1" .toml)
    "$PYTHON" -m mpi_rl collect "$1" &&
        "$PYTHON" -m mpi_rl plot "results/$name.h5" \
            --output "results/$name/learning_curves.png"
}
