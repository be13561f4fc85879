//! Where the threads of a machine run, as the kernel tells.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use sparkler::virtio::block::EngineKind;
use sparkler::{BuildError, Console, CpuSet, Placement, PlacementError, VmBuilder};

use crate::common::{Captured, disks, guest};

/// What the kernel says of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    cpus: CpuSet,
    nice: i32,
}

/// The threads of this process by name; of several with one name, the last.
fn threads() -> BTreeMap<String, Seen> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // One may end meanwhile.
    tasks.filter_map(|task| look(&task.unwrap().path())).collect()
}

fn look(task: &std::path::Path) -> Option<(String, Seen)> {
    let read = |name| fs::read_to_string(task.join(name)).ok();
    let status = read("status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    // After the name in parentheses; nice is the 19th field in all.
    let stat = read("stat")?;
    let nice = stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().unwrap();
    let seen = Seen { cpus: line?.trim().parse().unwrap(), nice };
    Some((read("comm")?.trim().to_owned(), seen))
}

fn own() -> Seen {
    // SAFETY: it has no precondition and cannot fail.
    let id = unsafe { libc::gettid() };
    look(format!("/proc/self/task/{id}").as_ref()).unwrap().1
}

/// A guest with two vCPUs, a disk that stays in use, and a console; when its threads are all there.
fn running(placement: Placement, prefix: &str) -> (sparkler::RunningVm, BTreeMap<String, Seen>) {
    let file = disks::file(1 << 20);
    let captured = Captured::default();
    let console = Console::new(std::io::empty(), captured.clone());
    let builder: VmBuilder = guest("quiet test=iops requests=10 end=hang")
        .vcpus(2)
        .disk(disks::open(file.path(), EngineKind::Sync))
        .console(console)
        .placement(placement);
    let running = builder.build().unwrap().start().unwrap();
    // The guest prints when its disk has served it.
    for _ in 0..3000 {
        if captured.text().contains("iops") {
            let seen = threads();
            assert!(seen.contains_key(&format!("{prefix}vcpu-1")), "{seen:?}");
            return (running, seen);
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the guest printed only {:?}", captured.text());
}

/// One test: it looks at all threads of the process.
#[test]
#[ignore = "needs /dev/kvm"]
fn threads_run_where_they_were_put() {
    let before = own();
    let allowed: Vec<_> = before.cpus.iter().collect();
    let set = |cpu: u32| CpuSet::from_iter([cpu]);
    let (first, last) = (set(allowed[0]), set(allowed[allowed.len() - 1]));

    let placement = Placement::new()
        .vcpu(0, first.clone())
        .vcpus(last.clone())
        .devices(first.clone())
        .nice(before.nice + 3)
        .name_prefix("t1");
    let (machine, seen) = running(placement, "t1/");
    let at = |cpus: &CpuSet| Seen { cpus: cpus.clone(), nice: before.nice + 3 };
    assert_eq!(seen["t1/vcpu-0"], at(&first));
    assert_eq!(seen["t1/vcpu-1"], at(&last));
    assert_eq!(seen["t1/virtio-2"], at(&first));
    assert_eq!(seen["t1/console-out"], at(&first));
    drop(machine);
    assert_eq!(own(), before, "nothing changes for the caller");

    // A device is started by a vCPU, and yet is not bound to that vCPU's place.
    let (machine, seen) = running(Placement::new().vcpus(last.clone()), "");
    assert_eq!(seen["vcpu-0"], Seen { cpus: last, nice: before.nice });
    assert_eq!(seen["virtio-2"], before);
    assert_eq!(seen["console-out"], before);
    drop(machine);

    let (machine, seen) = running(Placement::new(), "");
    assert_eq!((&seen["vcpu-0"], &seen["virtio-2"]), (&before, &before));
    drop(machine);

    let nowhere = guest("").placement(Placement::new().vcpu(0, set(CpuSet::MAX)));
    let error = nowhere.build().unwrap_err();
    assert!(matches!(error, BuildError::Placement(PlacementError::Cpus { .. })), "{error}");
    assert_eq!(own(), before);
}
