"""When a run got a worker more or less."""

from mpi_rl.records.runfile import Run


def moves(run: Run) -> list[int]:
    """Return the rows of /events in which a run got a worker more or less than it had.

    Those who begin, and those who come again after a resumption, are none.
    """
    config, events = run.config, run.tables["events"]
    active, rows = set(range(config.initial_workers or len(run.tables["workers"]["node"]))), []
    for row, (kind, worker) in enumerate(zip(events["kind"], events["worker_id"].tolist())):
        if kind == "join" and worker not in active:
            active.add(worker)
            rows.append(row)
        elif kind == "leave":
            active.remove(worker)
            rows.append(row)
    return rows
