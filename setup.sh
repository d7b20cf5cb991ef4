# Sourced by ./run, ./test and .ci/run, which set `here`: makes .venv hold what a requirements file lists.

venv=$here/.venv

fail() {
    echo "asgilook: $1" >&2
    exit 1
}

# provide FILE: install what it lists, unless that is done. Our caller goes on only when it is.
provide() {
    is_provided "$1" && return
    command -v python3 >/dev/null || fail "python3 is missing: install Python 3.11 or later"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or later is needed, python3 is $(python3 --version 2>&1)"
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        fail "python3 has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)"
    echo "asgilook: installing $1 into .venv (once, about 20 seconds)" >&2
    # ./run and ./test may start at the same time. The lock is on descriptor 9 and goes with us, however we end.
    exec 9<"$here/setup.sh"
    python3 -c 'import fcntl; fcntl.flock(0, fcntl.LOCK_EX)' <&9
    is_provided "$1" || install_from "$1"
    exec 9<&-
}

# The copy in .venv is written last, so whatever was interrupted has none. The interpreter is tried because a
# system's upgrade may have replaced the one that .venv was made with.
is_provided() {
    cmp -s "$here/$1" "$venv/$1" && "$venv/bin/python" -c 'import pip' 2>/dev/null
}

install_from() {
    # Only on top of what is whole: half an installation, or an older one, is thrown away.
    if ! is_provided requirements-single.txt; then
        said=$(python3 -m venv --clear "$venv" 2>&1) || fail "python3 -m venv failed: $(echo "$said" | tail -n 1)"
    fi
    rm -f "$venv"/requirements*.txt
    # The list is whole (.ci/run checks that): left to resolve, pip 23.2, which Python 3.11 brings, would take the newest
    # release of whatever is asked for with extras, and then refuse it for want of a hash.
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --require-hashes --no-deps \
        -r "$here/$1" >"$venv/pip.log" 2>&1 ||
        fail "pip could not install $1 (all of it in .venv/pip.log): $(grep ERROR "$venv/pip.log" | tail -n 1)"
    # Each file holds all of the one before it, at the same versions.
    for list in requirements-single.txt requirements.txt requirements-dev.txt; do
        cp "$here/$list" "$venv/"
        [ "$list" != "$1" ] || break
    done
}
