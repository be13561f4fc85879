#!/bin/busybox sh
# First stage of the lab, /init of its initramfs: finds the disk and hands over to it.
/bin/busybox mkdir -p /proc /sys /dev /disk
/bin/busybox mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk; do
    /bin/busybox modprobe "$module"
done
/bin/busybox mount -t ext4 /dev/vda /disk || exec /bin/busybox poweroff -f
/bin/busybox umount /dev
exec /bin/busybox switch_root /disk /lab/host.sh
