# shellcheck shell=bash
# What the suites of other projects share: the host where they run, and the judgement.
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

logs=$repo/target/conformance
mkdir -p "$logs"
# One order for sort and comm.
export LC_ALL=C

# use_host MEMORY: brings up what is tested and a host for it, which goes at the end unless
# NACRE_TEST_HOST names one that is kept.
use_host() {
    [ "${BUILD:-}" = no ] || scripts/build
    export NACRE_TEST_HOST_MEMORY=${NACRE_TEST_HOST_MEMORY:-$1}
    if [ -z "${NACRE_TEST_HOST:-}" ]; then
        export NACRE_TEST_HOST=conformance
        trap tests/host/down EXIT
    fi
}

# record SUITE RUNTIME VERSION PASSED TOTAL SKIPPED: takes down what a run of a whole suite said,
# and writes docs/support.md anew. It takes the place of what was said of the same suite and
# runtime, where SERIES is set only of a version that begins so or has it after ", ".
record() {
    local results=tests/conformance/results.tsv
    [ -z "${FILTER:-}" ] || return 0
    {
        grep '^#' "$results"
        {
            awk -F '\t' -v suite="$1" -v runtime="$2" -v series="${SERIES:-}" '
                /^#/ { next }
                $1 == suite && $2 == runtime &&
                    (index($3, series) == 1 || index($3, ", " series)) { next }
                { print }' "$results"
            (IFS=$'\t' && printf '%s\n' "$*")
        } | sort
    } >"$results.new"
    mv "$results.new" "$results"
    tests/conformance/support
}

# names_in LIST [RUNTIME]: what a list of expected failures names; its lines are NAME: REASON.
# What follows a line [RUNTIME] is of that one alone.
names_in() {
    awk -v runtime="${2:-}" '/^\[.*\]$/ { of = substr($0, 2, length($0) - 2) }
        !/^#/ && (of == "" || of == runtime) && (end = index($0, ": ")) {
            print substr($0, 1, end - 1)
        }' "$1" | sort -u
}

# judge LIST RUNTIME FAILED PASSED: compares what failed with what is expected to. The last two
# are files with names of tests, sorted.
judge() {
    local surprises
    surprises=$(
        comm -23 "$3" <(names_in "$1" "$2") | sed "s/^/$2, fails, and is not expected to: /"
        comm -12 "$4" <(names_in "$1" "$2") | sed "s/^/$2, passes, and is expected to fail: /"
    )
    [ -n "$surprises" ] || return 0
    printf '%s\n' "$surprises" >&2
    return 1
}
