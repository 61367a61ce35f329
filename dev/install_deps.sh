#!/bin/sh
# Installs what the build needs and the machine lacks, from the system's packages: as root, or through sudo. Elsewhere
# it prints the names of the packages and stops. Prints what it is about to install first.
set -eu
CXX=${CXX:-g++}

missing=""
need() { # need <package> <program or header>
    case "$2" in
    *.h | *.hpp) printf '#include <%s>\n' "$2" | "$CXX" $3 -x c++ -E - >/dev/null 2>&1 || missing="$missing $1" ;;
    *) command -v "$2" >/dev/null 2>&1 || missing="$missing $1" ;;
    esac
}
need g++ "$CXX" ""
need make make ""
need nlohmann-json3-dev nlohmann/json.hpp ""
need libcli11-dev CLI/CLI.hpp ""
need doctest-dev doctest/doctest.h ""
need libpcre2-dev pcre2.h "-DPCRE2_CODE_UNIT_WIDTH=8"
need libopenmpi-dev mpicc ""
need openmpi-bin mpirun ""
[ -z "$missing" ] && exit 0

echo "missing packages:$missing"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "install these (names of Debian and Ubuntu; your system may call them otherwise), then run make again" >&2
    exit 1
fi
run=""
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "not root and no sudo: ask an administrator for: apt-get install$missing" >&2
        exit 1
    fi
    run=sudo
fi
echo "+ $run apt-get update && $run apt-get install --yes --no-install-recommends$missing"
$run env DEBIAN_FRONTEND=noninteractive apt-get update -qq
$run env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq $missing >/dev/null
