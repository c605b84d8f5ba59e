# The compile, with a log and a line of progress.
# shellcheck shell=bash disable=SC2154

# Objects of a build from nothing, for the progress line only.
usual_objects=1650

count_objects() { grep -cE '^  (AS|CC|AR|LD|HOSTCC|LDS|GEN|OBJCOPY) ' "$1" || true; }

compile() {
    local log=$cache/build.log jobs=${JOBS:-$(nproc)} ticker rc=0 of='' start=$SECONDS
    if ! [ -e "$build_dir/vmlinux.o" ]; then
        need_space 3
        of=" of about $usual_objects"
    fi
    say "compiling with $jobs jobs (log: $log)"
    : >"$log"
    report_progress "$log" "$of" $$ &
    ticker=$!
    compile_vmlinux "$jobs" >>"$log" 2>&1 || rc=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    [ -t 2 ] && printf '\r\033[K' >&2
    if [ "$rc" != 0 ]; then
        grep -E -m 5 'error|Error|undefined reference' "$log" >&2 || true
        tail -n 15 "$log" >&2
        die "the kernel did not compile (full log: $log)"
    fi
    say "$(count_objects "$log") objects in $((SECONDS - start)) s"
}

# Fixed names and times: the same inputs give the same bytes. The lock is left
# open in make: should this script be killed, nobody compiles in the same tree
# until make has ended too.
compile_vmlinux() {
    KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_USER=nacre KBUILD_BUILD_HOST=nacre \
        KBUILD_BUILD_VERSION=1 kernel_make -j"$1" vmlinux
}

# A line that is rewritten each second on a terminal, a new one each half
# minute elsewhere. Ends with the build that started it.
report_progress() {
    local log=$1 of=$2 parent=$3 start=$SECONDS text every=30
    exec 9>&-
    [ -t 2 ] && every=1
    while sleep "$every" >/dev/null 2>&1 && kill -0 "$parent" 2>/dev/null; do
        text=$(printf '%d objects%s, %d:%02d min' "$(count_objects "$log")" "$of" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)))
        if [ -t 2 ]; then
            printf '\r\033[Kguest-kernel: %s' "$text" >&2
        else
            say "$text"
        fi
    done
}
