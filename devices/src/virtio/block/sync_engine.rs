use std::collections::VecDeque;
use std::sync::Arc;

use super::engine::{Completion, Engine, Operation};
use super::file::DiskFile;
use super::sys::IoVecs;

/// Does each operation at once, with one system call, on the disk's own thread.
#[derive(Debug)]
pub(super) struct SyncEngine {
    file: Arc<DiskFile>,
    iovecs: IoVecs,
    ended: VecDeque<Completion>,
}

impl SyncEngine {
    pub(super) fn new(file: Arc<DiskFile>) -> Self {
        Self { file, iovecs: IoVecs::default(), ended: VecDeque::new() }
    }

    /// Puts a completion from elsewhere in line.
    #[cfg(feature = "io-uring")]
    pub(super) fn push(&mut self, completion: Completion) {
        self.ended.push_back(completion);
    }
}

impl Engine for SyncEngine {
    fn begin(&mut self, tag: u16, operation: Operation<'_>) {
        let file = &self.file;
        let result = match operation {
            Operation::Read { offset, data } => file.read(&data, offset, &mut self.iovecs),
            Operation::Write { offset, data } => file.write(&data, offset, &mut self.iovecs),
            Operation::Sync => file.sync().map(|()| 0),
            Operation::Discard { offset, len } => file.discard(offset, len).map(|()| 0),
            Operation::WriteZeroes { offset, len, unmap } => {
                file.write_zeroes(offset, len, unmap).map(|()| 0)
            }
        };
        self.ended.push_back(Completion { tag, result });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.ended.pop_front()
    }
}
