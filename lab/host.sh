#!/bin/sh
# Second stage of the lab, process 1 of its root disk: makes a host with /dev/kvm, runs /lab/command
# once, reports how it ended, and switches the machine off.
#
# Each virtio-serial port is a channel of its own, so that nothing has to be parsed out of a console:
#   stdin, stdout, stderr   the command's
#   status                  one line each: "up", then "exit N" or "fail REASON"
#   results                 a tar of /results, where results were asked for
# A file /lab/terminal says that the command gets the terminal /dev/hvc0 instead of the first three.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

status() {
    echo "$*" >/dev/lab/status
}

fail() {
    status "fail $*"
    poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/lab
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
ln -s /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
    ln -s "fd/${stream%:*}" "/dev/${stream#*:}"
done
echo lab >/proc/sys/kernel/hostname
ip link set lo up

# The ports' names appear one after another, "status" last (see xtask/src/lab/qemu.rs).
modprobe virtio_console
tries=0
until [ -c /dev/lab/status ]; do
    for port in /sys/class/virtio-ports/*/name; do
        read -r name <"$port" && ln -sf "../$(basename "$(dirname "$port")")" "/dev/lab/$name"
    done 2>/dev/null
    tries=$((tries + 1))
    [ "$tries" -lt 200 ] || poweroff -f
    # The kernel announces the ports by itself in its own time; there is nothing to wait on.
    [ -c /dev/lab/status ] || sleep 0.05
done

modprobe kvm-amd && [ -c /dev/kvm ] || fail "the lab's kernel gives no /dev/kvm"
tar -x -f /dev/vdb -C / || fail "cannot unpack the files of this run"
cd /root || fail "no /root"

status up
if [ -e /lab/terminal ]; then
    setsid -c /lab/command </dev/hvc0 >/dev/hvc0 2>&1
    code=$?
else
    # A port can be opened only once; pipes between let scripts write to /dev/stderr and the like.
    # Opening a FIFO both ways does not wait for a peer, which a signal might interrupt.
    mkfifo /run/stdout /run/stderr
    exec 3<>/run/stdout 4<>/run/stderr
    exec 5</run/stdout 6</run/stderr 7>/run/stdout 8>/run/stderr 3>&- 4>&-
    cat <&5 >/dev/lab/stdout 5<&- 6<&- 7>&- 8>&- & stdout=$!
    cat <&6 >/dev/lab/stderr 5<&- 6<&- 7>&- 8>&- & stderr=$!
    exec 5<&- 6<&-
    setsid /lab/command </dev/lab/stdin >&7 2>&8 7>&- 8>&-
    code=$?
    exec 7>&- 8>&-
    # What the command left running must not hold the pipes open.
    for process in /proc/[0-9]*; do
        case ${process#/proc/} in
        1 | "$stdout" | "$stderr") ;;
        *) kill -9 "${process#/proc/}" ;;
        esac
    done 2>/dev/null
    wait "$stdout" && wait "$stderr" || fail "the command killed the lab's own processes"
fi

if [ -c /dev/lab/results ]; then
    tar -c -C /results . >/dev/lab/results || fail "cannot bring out /results"
fi
status "exit $code"
poweroff -f
