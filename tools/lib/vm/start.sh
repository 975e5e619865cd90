# PID 1 of the guest once the host's files are there: makes the machine ready, runs the command,
# ends its output with the mark and the exit status, and waits for the host to end the guest.
# busybox again: each program of the host's would cost time.
export PATH=/run/vm/bin
trap 'poweroff -f' EXIT
set -e
. /run/vm/settings.sh

# share TAG DIRECTORY: a directory of the host's whose changes survive.
share() {
    mkdir -p "$2"
    # mmap: the only mode with which files can be mapped for writing, and no writes are put off.
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=mmap "$1" "$2"
}

# end_stream STATUS: a write to a pipe, behind all that the command wrote there.
end_stream() {
    printf '%s%d\n' "$mark" "$1"
}

(sleep "$limit" && poweroff -f) &
hostname vm
ip link set lo up
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
ulimit -Hn 1048576
if [ "$load" = 1 ]; then
    # Nobody loads these when they are needed, without udev. File systems come by mounting them.
    /usr/sbin/modprobe -a configfs fuse loop uio target_core_user tcm_loop sd_mod
    mount -t configfs configfs /sys/kernel/config
    mount -t fusectl fusectl /sys/fs/fuse/connections
fi
if [ "$scratch" = 1 ]; then
    /usr/sbin/modprobe -a virtio_blk ext4
    mkdir -p /scratch
    mount -t ext4 /dev/vda /scratch
fi
share_all

# The host hears of the ports a moment after the driver is there.
tries=0
until [ -c /dev/vport0p1 ] && [ -c /dev/vport0p2 ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ]
    sleep 0.05
done
# A port can be opened once; a command that opens /dev/stdout needs a pipe.
mkfifo /run/vm/1 /run/vm/2
cat </run/vm/1 >/dev/vport0p1 &
cat </run/vm/2 >/dev/vport0p2 &
exec 8>/run/vm/1 9>/run/vm/2

status=0
setsid sh /run/vm/command.sh </dev/null >&8 2>&9 8>&- 9>&- || status=$?
# Of the shared directories only: a disk whose server is gone would never be done.
sync_shared() {
    share() { sync -f "$2"; }
    share_all
}
sync_shared
end_stream "$status" >&8
end_stream "$status" >&9
while :; do
    sleep 3600
done
