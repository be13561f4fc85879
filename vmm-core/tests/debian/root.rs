//! Debian on a disk of its own, which its own init mounts, writes and leaves in good order.

use std::fs::File;
use std::io;
use std::process::Command;

use sparkler::Outcome;
use sparkler::virtio::block::Disk;

use crate::guest::{Job, debian, linux, run};

/// Files of many sizes, some of them removed again, and sums of those that stay.
const WRITE: &str = r"
mount -o remount,rw /
mkdir /srv/files
cp -r /etc /srv/copy
for number in $(seq 30); do
    head -c $((number * number * 797)) /dev/urandom >/srv/files/$number
done
rm -r /srv/copy /srv/files/*7
dpkg --list >/srv/packages
cd /srv && sha256sum files/* packages >sums
echo init: $(readlink -f /proc/1/exe), $(wc -l <packages) packages
busybox poweroff
";

const READ: &str = r"
cd /srv && sha256sum --check --quiet --strict sums
dpkg --list | cmp - packages
echo right: $(wc -l <sums) files
";

#[test]
#[ignore = "needs the lab"]
fn a_root_that_was_written_is_in_order_and_holds_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.ext4");
    // The original may be a device, which `fs::copy` refuses.
    io::copy(&mut File::open(debian()).unwrap(), &mut File::create(&root).unwrap()).unwrap();

    let job = Job::new(WRITE);
    let machine = linux("root=/dev/vda init=/sbin/init").disk(Disk::open(&root).unwrap());
    let (outcome, text) = run(machine.disk(job.disk()));
    assert_eq!(outcome, Outcome::PowerOff, "{text}");
    assert!(text.contains("init: /usr/bin/busybox"), "{text}");

    let check = Command::new("e2fsck").arg("-fn").arg(&root).output().unwrap();
    assert!(check.status.success(), "{check:?}\n{text}");

    let job = Job::new(READ);
    let machine = linux("root=/dev/vda ro").disk(Disk::open_read_only(&root).unwrap());
    let (outcome, text) = run(machine.disk(job.disk()));
    assert_eq!(outcome, Outcome::Exited(0), "{text}");
    assert!(text.contains("right: 28 files"), "{text}");
}
