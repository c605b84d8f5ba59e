# The kernel source: Debian's linux-source package, unpacked once, or
# KERNEL_SOURCE=DIR. Sets $source_dir, $source_version and $build_dir.
# shellcheck shell=bash disable=SC2034,SC2154

package=linux-source-6.12
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
security_mirror=${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security}

# find_source UPDATE: with UPDATE=yes a newer version replaces a cached one.
find_source() {
    if [ -n "${KERNEL_SOURCE-}" ]; then
        use_given_source
        return
    fi
    local current=$cache/source-version
    if [ "$1" = yes ] || ! [ -e "$current" ]; then
        fetch_source
    fi
    source_version=$(<"$current")
    source_dir=$cache/source-$source_version
    build_dir=$cache/build-$source_version
}

# A tree that its owner may be editing: no version names its content, so make
# decides each time what there is to do.
use_given_source() {
    source_dir=$(realpath -e "$KERNEL_SOURCE" 2>/dev/null) || die "KERNEL_SOURCE=$KERNEL_SOURCE does not exist"
    [ -e "$source_dir/Kconfig" ] || die "KERNEL_SOURCE=$KERNEL_SOURCE holds no kernel source (no Kconfig in it)"
    local id
    id=$(sha256sum <<<"$source_dir")
    source_version=tree-${id:0:12}
    build_dir=$cache/build-$source_version
}

# Downloads the newest package with lists, sources and archives of our own, so
# that the system's apt configuration stays as it is (proxies from it are
# used), and unpacks it. apt verifies the signature.
fetch_source() {
    local tmp version
    need_space 4
    tmp=$(scratch_dir)
    say "looking for $package on $mirror"
    write_apt_conf "$tmp"
    private_apt "$tmp" update >"$tmp/log" 2>&1 || fetch_failed "$tmp" "cannot read Debian's package lists"
    version=$(APT_CONFIG=$tmp/apt.conf apt-cache policy "$package" 2>/dev/null | sed -n 's/^ *Candidate: *//p')
    case $version in
        '' | '(none)') fetch_failed "$tmp" "no package $package in Debian's lists" ;;
    esac

    if ! [ -d "$cache/source-$version" ]; then
        say "downloading $package $version (150 MB)"
        (cd "$tmp" && private_apt "$tmp" download "$package=$version") >>"$tmp/log" 2>&1 ||
            fetch_failed "$tmp" "cannot download $package $version"
        say "unpacking it (1.7 GB)"
        mkdir "$tmp/source"
        dpkg-deb --fsys-tarfile "$tmp/$package"_*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
            tar -xJ --strip-components=1 -C "$tmp/source" || fetch_failed "$tmp" "cannot unpack $package $version"
        mv "$tmp/source" "$cache/source-$version"
    fi
    echo "$version" >"$tmp/version"
    mv "$tmp/version" "$cache/source-version"
    rm -rf "$tmp"
    remove_other_sources "$version"
}

write_apt_conf() {
    local tmp=$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$tmp/lists/partial" "$tmp/archives/partial" "$tmp/empty"
    cat >"$tmp/sources.list" <<END
deb [signed-by=$keyring arch=amd64] $mirror trixie main
deb [signed-by=$keyring arch=amd64] $mirror trixie-updates main
deb [signed-by=$keyring arch=amd64] $security_mirror trixie-security main
END
    cat >"$tmp/apt.conf" <<END
Dir::Etc::sourcelist "$tmp/sources.list";
Dir::Etc::sourceparts "$tmp/empty";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$tmp/empty";
Dir::State::lists "$tmp/lists";
Dir::State::status "/dev/null";
Dir::Cache "$tmp";
Dir::Cache::archives "$tmp/archives";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "";
END
}

private_apt() {
    local tmp=$1
    shift
    APT_CONFIG=$tmp/apt.conf apt-get -q "$@" 9>&-
}

fetch_failed() {
    grep -E '^[EW]:' "$1/log" >&2 || tail -n 5 "$1/log" >&2
    rm -rf "$1"
    die "$2; check the network, or set KERNEL_SOURCE=DIR to a Linux 6.12 source tree"
}

# One version is enough: trees of 1.7 GB would pile up with every update.
remove_other_sources() {
    local dir
    for dir in "$cache"/source-[0-9]* "$cache"/build-[0-9]*; do
        case $dir in
            */source-"$1" | */build-"$1") ;;
            *) rm -rf "$dir" ;;
        esac
    done
}

# need_space GIB: fails unless the cache's file system has that much free.
need_space() {
    local free
    free=$(df --output=avail -BG "$cache" | tail -n 1 | tr -dc 0-9)
    [ "$free" -ge "$1" ] || die "$cache has $free GiB free, $1 GiB are needed for source and build; free some, or set XDG_CACHE_HOME"
}
