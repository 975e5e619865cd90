#!/bin/sh
# PID 1 of the guest until the host's files are there. busybox, in the kernel's first root.
# The root that the command sees: the host's / (9p, read-only) under a tmpfs that takes all writes.
export PATH=/bin
# Whatever fails here ends the guest; what was said on the console is what the host reports.
trap 'poweroff -f' EXIT
set -e

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    insmod "$module"
done
. /settings.sh

# keep NUMBER DIRECTORY: show a directory of the host at its place in a fresh one, on a layer of
# writes of its own. Bound to a plain name first, as overlay's options give meaning to : and ,
keep() {
    mkdir -p "/writes/kept/$1/upper" "/writes/kept/$1/work" "/bound/$1" "/new$2"
    mount -o bind "/lower$2" "/bound/$1"
    mount -t overlay -o "lowerdir=/bound/$1,upperdir=/writes/kept/$1/upper,workdir=/writes/kept/$1/work" \
        overlay "/new$2"
}

mount -t 9p -o "ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose" root /lower
mount -t tmpfs -o mode=755 writes /writes
mkdir /writes/upper /writes/work
mount -t overlay -o lowerdir=/lower,upperdir=/writes/upper,workdir=/writes/work overlay /new
for directory in proc sys dev; do
    mount -o move "/$directory" "/new/$directory"
done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
for directory in dev/shm tmp var/tmp; do
    mount -t tmpfs -o mode=1777 tmpfs "/new/$directory"
done
mount -t tmpfs -o mode=755 tmpfs /new/run
mkdir -m 1777 /new/run/lock
keep_all

mkdir -p /new/lib/modules
mount -o bind "/lower$modules" /new/lib/modules
mkdir /new/run/vm
cp -a /bin /start.sh /settings.sh /command.sh /new/run/vm
exec switch_root -c /dev/console /new /run/vm/bin/sh /run/vm/start.sh
