# What the scripts share; sourced, with the repository's root as the current folder.

# Prints the path of a Python of 3.11 or newer.
find_python() {
    local name
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$name" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    echo "Strongroom needs Python 3.11 or newer with the venv module (Debian: apt-get install python3-venv)." >&2
    return 1
}
