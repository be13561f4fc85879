//! Every byte that fio writes, in all kinds of requests, is read back and compared.

use std::fs::File;

use sparkler::MemorySize;
use sparkler::virtio::block::Disk;

use crate::guest::script;

const MIB: u64 = 1 << 20;

/// Rounds of writing at random and verifying until the time is over. What is in a block and where it
/// goes depends on the round, so that nothing of an earlier round can pass for right. All I/O goes
/// around the guest's cache. In the end a damaged block must be found, or else nothing was verified.
const SCRIPT: &str = r"
uptime() {
    read -r now _ </proc/uptime
    echo ${now%.*}
}
verify() {
    fio --filename=/dev/vdb --direct=1 --thread --ioengine=libaio --rw=randwrite --randseed=$round \
        --verify=crc32c --verify_fatal=1 --minimal $* \
        --name=small --offset=0 --size=2m --bsrange=512-8k --blockalign=512 --iodepth=32 \
        --name=pages --offset=2m --size=4m --bs=4k --iodepth=128 \
        --name=large --offset=6m --size=16m --bsrange=4k-1m --blockalign=4k --iodepth=4 \
        --name=flush --offset=22m --size=5m --bsrange=4k-64k --ioengine=psync --fsync=8 \
        --name=mixed --offset=27m --size=5m --rw=randrw --bsrange=1k-128k --blockalign=1k --iodepth=16
}
cat /sys/block/vdb/mq/*/cpu_list | wc -l | sed 's/^/queues: /'
round=0
end=$(($(uptime) + SECONDS))
until [ $round -gt 0 ] && [ $(uptime) -ge $end ]; do
    round=$((round + 1))
    verify --do_verify=1
done
echo rounds: $round
verify --verify_only
dd if=/dev/urandom of=/dev/vdb bs=512 count=1 seek=$((20 << 11)) conv=fsync oflag=direct status=none
if verify --verify_only 2>/dev/null; then
    echo the damage was not found
    exit 1
fi
";

#[test]
#[ignore = "needs the lab"]
fn what_fio_writes_it_reads_back() {
    // Ten minutes by hand: SPARKLER_VERIFY_SECONDS=600.
    let seconds = std::env::var("SPARKLER_VERIFY_SECONDS").unwrap_or("20".to_owned());
    let script_text = format!("SECONDS={seconds}\n{SCRIPT}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    let disk = Disk::open(&path).unwrap().queues(2).unwrap();
    let stats = disk.handle();

    let text =
        script(&script_text, |machine| machine.vcpus(2).memory(MemorySize::mib(512)).disk(disk));
    assert!(text.contains("queues: 2"), "{text}");
    let stats = stats.stats();
    // One round writes 27 MiB and a part of the last 5; it is read back twice.
    assert!(stats.written_bytes >= 27 * MIB && stats.read_bytes >= 54 * MIB, "{stats:?}");
    assert!(stats.flushes > 0, "{stats:?}");
    assert_eq!(stats.errors, 0, "{stats:?}");
    let rounds = text.lines().find(|line| line.starts_with("rounds: "));
    println!("{}, {stats:?}", rounds.unwrap());
}
