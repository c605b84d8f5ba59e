# Finished kernels, kept by a hash of everything that went into them.
# shellcheck shell=bash disable=SC2154

# How many finished kernels are kept.
keep_results=4

result_key() {
    {
        echo "source $source_version"
        gcc -v 2>&1
        ld -v
        (cd "$room" && sha256sum build lib/* fragments/*.config)
    } | sha256sum | cut -c 1-16
}

# A given tree's content is not part of the key, so it never counts as done.
have_result() { [ -z "${KERNEL_SOURCE-}" ] && [ -e "$cache/result-$1/vmlinux" ]; }

# Keeps vmlinux without padding and symbols (what is loaded), System.map (to
# read an address in a trace) and the configuration.
store_result() {
    local tmp
    tmp=$(scratch_dir)
    "$room/lib/squeeze" "$build_dir/vmlinux" "$tmp/vmlinux" || die "the kernel could not be squeezed"
    cp "$build_dir/System.map" "$tmp/System.map"
    cp "$build_dir/.config" "$tmp/config"
    chmod 755 "$tmp"
    rm -rf "$cache/result-$1"
    mv "$tmp" "$cache/result-$1"
    remove_old_results
}

remove_old_results() {
    local dirs
    mapfile -t dirs < <(find "$cache" -maxdepth 1 -name 'result-*' -printf '%T@ %p\n' | sort -rn |
        tail -n +$((keep_results + 1)) | cut -d ' ' -f 2-)
    [ ${#dirs[@]} = 0 ] || rm -rf "${dirs[@]}"
}

# Copies into target/guest; an unchanged file keeps its time.
install_result() {
    local result=$cache/result-$1 file
    touch "$result"
    mkdir -p "$guest_dir"
    for file in vmlinux:vmlinux System.map:vmlinux.map config:vmlinux.config; do
        install_file "$result/${file%%:*}" "$guest_dir/${file##*:}"
    done
    echo "$result/vmlinux"
}

install_file() {
    cmp -s "$1" "$2" && return
    cp --reflink=auto "$1" "$2.tmp.$$"
    mv "$2.tmp.$$" "$2"
}
