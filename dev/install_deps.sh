#!/bin/sh
# Installs what the build needs and the machine lacks, from the system's packages: as root, or through sudo. Elsewhere
# it prints the names of the packages and stops. Prints what it is about to install first.
#   MPI=1 dev/install_deps.sh                 Open MPI, too, whose 60 packages only ranks need (README, Many ranks)
#   dev/install_deps.sh --check need-build    installs nothing: fails, in one line, if nothing can be compiled
#   dev/install_deps.sh --check need-tests    if the tests cannot be
set -eu
CXX=${CXX:-g++}

missing=""
need() { # need <package> <program or header>
    # $CXX without quotes: it may be two words, "ccache g++".
    case "$2" in
    *.h | *.hpp) printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$2" | $CXX -x c++ -E - ;;
    "$CXX") $CXX --version ;;
    *) command -v "$2" ;;
    esac >/dev/null 2>&1 || missing="$missing $1"
}
need g++ "$CXX"
need libcrypt-dev crypt.h
need nlohmann-json3-dev nlohmann/json.hpp
need libtomlplusplus-dev toml++/toml.h
[ "$*" = "--check need-build" ] || need doctest-dev doctest/doctest.h
if [ "${1-}" = --check ]; then
    [ -z "$missing" ] && exit 0
    echo "missing packages:$missing; make deps installs them" >&2
    exit 1
fi
need make make
need xz-utils xz
need libpcre2-dev pcre2.h
need libedit-dev histedit.h # 0.9 MB, with what it needs
case "${MPI:-0}" in
0) ;;
1)
    need libopenmpi-dev mpicc
    need openmpi-bin mpirun
    ;;
*)
    echo "MPI: expected 1 or 0, found '$MPI'" >&2
    exit 1
    ;;
esac
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
