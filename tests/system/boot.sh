#!/bin/sh
# Boots a systemd of its own on a private overlay of this system's root: `boot.sh prepare CGROUP SOURCE DIR` from
# outside, which goes on as the pid 1 of new namespaces. What is mounted is in a mount namespace of its own and what is
# written in memory, so that nothing is left when pid 1 has ended, but the cgroup CGROUP, which is its caller's.

set -eu

# In a new mount namespace: a cgroup for all that follows, then the other namespaces, whose first process we become.
prepare() {
    mount --make-rprivate /
    mount -t tmpfs -o mode=0755 tmpfs "$3"
    mkdir "$3/cgroup"
    mount -t cgroup2 cgroup2 "$3/cgroup"
    mkdir "$3/cgroup/$1"
    echo $$ >"$3/cgroup/$1/cgroup.procs"
    umount "$3/cgroup"
    exec unshare --pid --fork --kill-child --uts --ipc --cgroup --mount -- "$0" root "$2" "$3"
}

# As pid 1: the root, and on it what a system has of its own. What would set something of the kernel that no namespace
# holds is masked, or cannot be written.
root() {
    source=$1 dir=$2 root=$2/root
    mkdir "$dir/upper" "$dir/work" "$dir/source" "$dir/source-work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
    mount -t proc proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    devices "$root/dev"
    for place in run tmp var/tmp etc/systemd/system var/lib/systemd; do
        mkdir -p "$root/$place"
        mount -t tmpfs -o mode=0755 tmpfs "$root/$place"
    done
    chmod 1777 "$root/tmp" "$root/var/tmp"
    mkdir -p "$root/run/old" "$root/src"
    mount -t overlay overlay -o "lowerdir=$source,upperdir=$dir/source,workdir=$dir/source-work" "$root/src"
    rm -f "$root/etc/machine-id"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    for unit in systemd-modules-load.service systemd-sysctl.service systemd-journald-audit.socket dbus.socket; do
        ln -s /dev/null "$root/etc/systemd/system/$unit"
    done
    cd "$root"
    pivot_root . run/old
    umount -l /run/old
    exec unshare --net -- /src/tests/system/boot.sh init <"/dev/null"
}

devices() {
    mount -t tmpfs -o mode=0755 tmpfs "$1"
    for device in null zero full random urandom tty; do
        touch "$1/$device"
        mount --bind "/dev/$device" "$1/$device"
    done
    mkdir "$1/pts" "$1/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$1/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$1/shm"
    ln -s pts/ptmx "$1/ptmx"
    for name in fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
        ln -s "/proc/self/${name#*:}" "$1/${name%%:*}"
    done
}

# Nothing of what this system starts by itself; `container` tells systemd that the hardware is somebody else's.
init() {
    exec env -i container=orpheus-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        /usr/lib/systemd/systemd --system --unit=basic.target
}

"$@"
