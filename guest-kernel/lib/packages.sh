# Build dependencies, installed through apt when missing.
# shellcheck shell=bash disable=SC2154

build_packages=(gcc make libc6-dev flex bison bc libelf-dev perl binutils xz-utils cpio)
# Carries the keys that sign Debian's archive.
trixie_keyring=/usr/share/keyrings/debian-archive-trixie-stable.gpg

missing_packages() {
    local package
    for package in "${build_packages[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
    [ -n "${KERNEL_SOURCE-}" ] || [ -e "$trixie_keyring" ] || echo debian-archive-keyring
}

install_packages() {
    local missing as_root=()
    command -v dpkg-query >/dev/null || die "dpkg-query not found: this build installs its tools through apt and needs Debian 12 or newer"
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "packages missing: ${missing[*]}; install them as root and start again"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600)
    {
        "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
    } >"$cache/apt.log" 2>&1 9>&- || {
        tail -n 20 "$cache/apt.log" >&2
        die "apt could not install ${missing[*]} (full log: $cache/apt.log)"
    }
}
