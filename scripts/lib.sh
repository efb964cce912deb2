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

# Makes .venv hold what the named requirements files pin, and this clone as the package strongroom; quick if it does.
# A file's name is that of requirements/NAME.txt or a path. Every package is a wheel whose hash is known.
prepare_venv() {
    local files=() name python wanted
    for name in "$@"; do
        if [ -f "$name" ]; then files+=("$name"); else files+=("requirements/$name.txt"); fi
    done
    python=$(find_python)
    wanted=$( (echo "$PWD" "$python"; cat pyproject.toml requirements/build.txt "${files[@]}") | sha256sum)
    if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ] || ! .venv/bin/python -c 'import strongroom' 2>/dev/null; then
        echo "Installing into .venv …" >&2
        .venv/bin/python -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
        rm -f .venv/installed
        local flags=() file
        for file in requirements/build.txt "${files[@]}"; do flags+=(-r "$file"); done
        .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: "${flags[@]}"
        .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --editable .
        echo "$wanted" >.venv/installed
    fi
}

# Prints the pinned requirement of one package of requirements/engines.txt, with its hashes.
pinned_engine() {
    awk -v name="$1" '/^[a-z]/ { on = index($0, name "==") == 1 } on' requirements/engines.txt
}

# Whether PostgreSQL's server is installed.
have_postgres() {
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null
}

# Style and types of everything. Call it by its name alone, so that its first failure ends the script.
check_style_and_types() {
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    MYPYPATH=scripts .venv/bin/mypy --strict -p strongroom -m demo
}
