#!/bin/sh
# Makes the virtual environment named by $1 with the first Python 3.11+ that can make one; $PYTHON overrides the search.
set -eu

target=$1
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
    # Some distributions ship Python without ensurepip: another one on the PATH may still have it.
    if "$candidate" -m venv --clear "$target" >/dev/null 2>&1; then
        echo "Made $target with $("$candidate" --version) ($candidate)"
        exit 0
    fi
    rm -rf "$target"
done

echo "Holdfast needs Python 3.11 or later with the venv module (on Debian and Ubuntu: apt install python3-venv)." >&2
echo "Name another interpreter with: make install PYTHON=/path/to/python3" >&2
exit 1
