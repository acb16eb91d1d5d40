#!/bin/sh
# boot.sh FOLDER CGROUP SOURCES PROGRAMS: a machine of its own, made of this one, and the real systemd as its first process. To be called by
#   unshare --fork --kill-child --pid --mount --uts --ipc --net sh boot.sh …
# It sees this machine's file system beneath a layer in memory, which takes all that is written and goes with it; of the units that are
# installed here only those below, no generator, no /var, no devices but the harmless ones; /sys and /proc/sys are read-only, as in any
# container. Its cgroups are those beneath CGROUP. Its first process stands in FOLDER/pid as this machine numbers it, and FOLDER/booting
# is there once all is made and systemd begins.
set -eu

if [ "$1" = within ]; then
    root=$2
    mount -t proc proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    : >"$3/booting"
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
    # What concerns the whole machine it may not do.
    exec setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-sys_boot,-syslog \
        env -i container=meterd-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target
fi

folder=$1 cgroup=$2 sources=$3 programs=$4
# /proc is still this machine's.
read -r pid _ </proc/self/stat
echo "$pid" >"$folder/pid"
echo 0 >"$cgroup/cgroup.procs"

disk=$folder/disk
root=$disk/root
mkdir -p "$disk"
mount -t tmpfs -o mode=755 meterd-test "$disk"
mkdir "$disk/upper" "$disk/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" meterd-test "$root"

for hidden in dev etc/systemd run tmp var usr/lib/systemd/system usr/lib/systemd/system-generators; do
    mount -t tmpfs -o mode=755 meterd-test "$root/$hidden"
done
for device in full null random tty urandom zero; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
mkdir "$root/var/cache" "$root/var/lib" "$root/var/log" "$root/var/spool" "$root/var/tmp" "$root/etc/systemd/system"
ln -s /run "$root/var/run"
chmod 1777 "$root/tmp" "$root/var/tmp"

units=/usr/lib/systemd/system
for unit in basic.target final.target local-fs-pre.target local-fs.target multi-user.target network-online.target network.target paths.target \
    shutdown.target slices.target sockets.target sysinit.target timers.target umount.target \
    systemd-journald-dev-log.socket systemd-journald.service systemd-journald.socket; do
    cp "$units/$unit" "$root$units/"
done
mkdir "$root$units/sysinit.target.wants"
ln -s ../systemd-journald.service "$root$units/sysinit.target.wants/"

rm -f "$root/etc/machine-id" "$root/etc/hostname"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
echo node >"$root/etc/hostname"

# As somebody who builds from the sources has them.
work=$root/usr/src/meterd
mkdir -p "$work/packaging" "$work/systemd" "$work/target/release"
lend() {
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}
lend "$sources/packaging" "$work/packaging"
lend "$sources/systemd" "$work/systemd"
lend "$programs" "$work/target/release"

exec unshare --cgroup sh "$0" within "$root" "$folder"
