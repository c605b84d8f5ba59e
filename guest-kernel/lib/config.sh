# The configuration: everything off, then the fragments, then proof that every
# line of every fragment holds.
# shellcheck shell=bash disable=SC2154

fragments=("$room"/fragments/*.config)

kernel_make() {
    make -C "$source_dir" O="$build_dir" ARCH=x86_64 "$@"
}

# Prints every setting of the fragments as `FILE:LINE SYMBOL VALUE`; "is not
# set" is the value n.
fragment_settings() {
    awk '
        FNR == 1 { file = FILENAME; sub(".*/", "", file) }
        function put(symbol, value) { printf "%s:%d %s %s\n", file, FNR, symbol, value }
        /^# CONFIG_[A-Za-z0-9_]+ is not set$/ { put($2, "n"); next }
        /^#/ || /^[ \t]*$/ { next }
        /^CONFIG_[A-Za-z0-9_]+=/ { i = index($0, "="); put(substr($0, 1, i - 1), substr($0, i + 1)); next }
        { printf "guest-kernel: error: %s:%d: not a setting: %s\n", file, FNR, $0 >"/dev/stderr"; bad = 1 }
        END { exit bad }
    ' "$@"
}

# A symbol in two fragments: the one read last would win in silence.
repeated_settings() {
    awk '$2 in seen { printf "guest-kernel: error: %s is set in %s and again in %s\n", $2, seen[$2], $1; bad = 1 }
         { seen[$2] = $1 }
         END { exit !bad }'
}

# unmet_settings CONFIG, settings on standard input: a line for each setting
# that CONFIG does not have. Succeeds when there is one.
unmet_settings() {
    awk -v config="$1" '
        BEGIN {
            while ((getline line <config) > 0)
                if (line ~ /^CONFIG_/) { i = index(line, "="); have[substr(line, 1, i - 1)] = substr(line, i + 1) }
        }
        {
            place = $1; symbol = $2; want = $0
            sub(/^[^ ]+ [^ ]+ /, "", want)
            is = symbol in have ? have[symbol] : "n"
            if (is != want) {
                printf "guest-kernel: error: %s: %s=%s was asked for, the kernel made it %s\n", place, symbol, want, is
                bad = 1
            }
        }
        END { exit !bad }
    '
}

# Writes $build_dir/.config, and touches it only when it changed: make
# recompiles from there only what depends on a changed symbol.
configure() {
    local tmp settings
    tmp=$(scratch_dir)
    mkdir -p "$build_dir"
    settings=$(fragment_settings "${fragments[@]}") || die "the fragments cannot be read"
    ! repeated_settings <<<"$settings" >&2 || die "each symbol belongs into one fragment"
    cat "${fragments[@]}" >"$tmp/wanted"
    KCONFIG_ALLCONFIG=$tmp/wanted KCONFIG_CONFIG=$tmp/config kernel_make -s allnoconfig >"$tmp/log" 2>&1 || {
        tail -n 20 "$tmp/log" >&2
        die "configuring the kernel failed"
    }
    ! unmet_settings "$tmp/config" <<<"$settings" >&2 ||
        die "the settings above do not hold: the symbol does not exist in this kernel, lacks a dependency, or is selected by another"
    cmp -s "$tmp/config" "$build_dir/.config" || mv "$tmp/config" "$build_dir/.config"
    rm -rf "$tmp"
}
