"""The service on machines that share nothing but a network, and the same tests as on one machine, run on them.

    ./test tests/apart -n 3 --dist loadfile                          what CI runs: a selection, and what moves
    ASGI_LOOK_TEST_APART=1 ./test tests/integration                  all end-to-end tests, apart
    ASGI_LOOK_TEST_APART=1 ./test tests/crash -n 4 --dist loadfile   the whole crash suite, apart
    python -m tests.apart                                            failovers under hundreds of uploads, and figures

With the switch each web process and each worker of `services.deploy()` has a machine of its own: a network namespace
with an address, and a mount namespace in which `ASGI_LOOK_STORAGE_PATH` is an empty disk that nobody else sees. Whoever
is started again is started on another machine. What they share they reach over the network: PostgreSQL, an object
store, a TLS Redis for the queue and another one for the cache.

- `machines`: the namespaces. They have no names anywhere and end with whoever lives in them, however a test ends.
- `stores`, `door`: PostgreSQL and the object store of a test run; TLS in front of a Valkey, as a process.
- `deployment`: what `services.deploy()` returns with the switch on.
- `objects`: what is in the object store, looked at as if it were files.

Tests that are about one machine's disk, its SQLite or ./run say so with the mark `one_machine("why")`; with the switch
they are skipped, and the report tells why.
"""
