//! Where the calling thread runs, and how much the scheduler favours it. Nothing here touches another
//! thread.

use std::ffi::CString;
use std::io;

use crate::CpuSet;

/// One bit for each CPU that Linux can have.
const WORDS: usize = (CpuSet::MAX as usize + 1) / 64;
type Mask = [u64; WORDS];

/// The CPUs on which the calling thread may run.
pub(crate) fn affinity() -> io::Result<CpuSet> {
    let mut mask: Mask = [0; WORDS];
    // SAFETY: `mask` is ours, and the kernel writes no more than the size that it is told.
    let result = unsafe {
        libc::sched_getaffinity(0, size_of::<Mask>(), mask.as_mut_ptr().cast::<libc::cpu_set_t>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let bit = |cpu: &u32| word(*cpu, &mask).is_some_and(|word| word >> (cpu % 64) & 1 == 1);
    Ok((0..=CpuSet::MAX).filter(bit).collect())
}

/// From now on, the calling thread runs on `cpus` only, as far as they are allowed.
pub(crate) fn set_affinity(cpus: &CpuSet) -> io::Result<()> {
    let mut mask: Mask = [0; WORDS];
    for cpu in cpus.iter() {
        if let Some(word) = usize::try_from(cpu / 64).ok().and_then(|index| mask.get_mut(index)) {
            *word |= 1 << (cpu % 64);
        }
    }
    set_mask(&mask)
}

/// The CPUs on which threads of this process can be made to run. **Changes** where the calling thread runs:
/// it must be one that is made for this.
pub(crate) fn allowed() -> io::Result<CpuSet> {
    // The kernel leaves out what is not there, offline, or outside the cpuset.
    set_mask(&[u64::MAX; WORDS])?;
    affinity()
}

/// From now on, the calling thread has this nice value.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    // The C libraries disagree about the type of the first.
    let process = libc::PRIO_PROCESS as _;
    // SAFETY: no memory is involved. In Linux 0 stands for the calling thread.
    let result = unsafe { libc::setpriority(process, 0, nice) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Names the calling thread; the kernel keeps the first 15 bytes.
pub(crate) fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: the kernel reads a C string, which `name` is.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

fn word(cpu: u32, mask: &Mask) -> Option<&u64> {
    mask.get(usize::try_from(cpu / 64).ok()?)
}

fn set_mask(mask: &Mask) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told, which `mask` has.
    let result = unsafe {
        libc::sched_setaffinity(0, size_of::<Mask>(), mask.as_ptr().cast::<libc::cpu_set_t>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_moved_leaves_the_others_where_they_are() {
        let before = affinity().unwrap();
        let last = CpuSet::from_iter(before.iter().last());
        let moved = std::thread::spawn({
            let last = last.clone();
            move || {
                set_affinity(&last).unwrap();
                set_nice(5).unwrap();
                affinity().unwrap()
            }
        });
        assert_eq!(moved.join().unwrap(), last);
        assert_eq!(affinity().unwrap(), before);
        let allowed = std::thread::spawn(|| allowed().unwrap()).join().unwrap();
        assert!(before.is_subset(&allowed));
        assert!(set_affinity(&CpuSet::default()).is_err());
    }
}
