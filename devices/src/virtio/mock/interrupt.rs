use std::io;
use std::sync::{Arc, Condvar, Mutex};

use super::PATIENCE;
use crate::Interrupt;

/// An interrupt line that counts its edges, and on which a test can wait.
#[derive(Debug, Clone, Default)]
pub struct MockInterrupt(Arc<(Mutex<u64>, Condvar)>);

impl Interrupt for MockInterrupt {
    fn trigger(&self) -> io::Result<()> {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
        Ok(())
    }
}

impl MockInterrupt {
    /// How often it was raised.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.0.0.lock().unwrap()
    }

    /// Asks `question` now and after every edge, until it has an answer. It panics after [`PATIENCE`];
    /// a device that fails to interrupt is found out.
    pub fn wait_until<T>(&self, what: &str, mut question: impl FnMut() -> Option<T>) -> T {
        let (count, raised) = &*self.0;
        loop {
            let before = *count.lock().unwrap();
            if let Some(answer) = question() {
                return answer;
            }
            let count = count.lock().unwrap();
            let wait = raised.wait_timeout_while(count, PATIENCE, |now| *now == before).unwrap();
            assert!(!wait.1.timed_out(), "no interrupt while waiting for {what}");
        }
    }
}
