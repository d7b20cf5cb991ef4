"""The crash suite: the service broken on purpose, and what became of all that it had acknowledged.

    ./test tests/crash                    all of it, in its short form, as CI runs it
    ASGI_LOOK_TEST_APART=1 ./test tests/crash -n 4 --dist loadfile        on machines that share nothing
    python -m tests.crash                 the long form: a storm of all faults at once, its table and its timeline
    python -m tests.crash.backlog         10,000 images of three days ago, worked off by two workers
    python -m tests.crash.planted         which test finds which fault that is planted in our own code

- `test_storm`: each fault alone, then all at once, under a steady stream of uploads. `storm` has the course of it,
  `faults` what is done, `clients` who uploads, `numbered` pictures that cannot be mixed up, `timeline` the picture.
- `test_crash_points`, `test_stalled`: a process dies, or stalls, at each step there is; `points` names them all,
  `arming` and `hook` bring a process to one.
- `test_power_cut`, `test_disk_full`: on file systems of `disks`, whose copy is what a power cut leaves.
- `test_cache_truth`: a `crowd` at several web processes, none of which may lie about the past; `sightings` judges,
  `distance` puts a stretch of network between a worker and its Redis.
- `test_redis_away`, `test_deploys`, `test_backlog`: `absence` of Redis, `retrying` clients, a `backlog` of any length,
  a `clock` that is wrong.
- `journal`: every step of every image, by triggers in the ledger.
"""
