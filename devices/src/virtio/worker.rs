use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::session::Session;
use super::shared::Shared;
use super::{DeviceError, VirtioDevice};
use crate::{THREAD_STACK_SIZE, sys};

/// A device, and the thread that it has while it is live.
pub(super) struct Worker {
    /// Locked by the thread for as long as it runs, by nobody else.
    device: Arc<Mutex<Box<dyn VirtioDevice>>>,
    thread: Option<JoinHandle<()>>,
    name: String,
    /// What log lines call it.
    pub(super) log_name: String,
    pub(super) panic_sink: Option<PanicSink>,
    pub(super) thread_start: Option<ThreadStart>,
    /// A guest can bring about failure after failure: only the first of each kind is logged.
    logged: Arc<Logged>,
}

/// Hears the thread's name and what a panic said.
type PanicSink = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// Hears the thread's name, in the thread.
type ThreadStart = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Logged {
    driver: AtomicBool,
    device: AtomicBool,
}

impl Worker {
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let name = format!("virtio-{}", device.device_type());
        let device = Arc::new(Mutex::new(device));
        Self {
            device,
            thread: None,
            log_name: name.clone(),
            name,
            panic_sink: None,
            thread_start: None,
            logged: Arc::default(),
        }
    }

    /// Starts the device's thread for `session`.
    pub(super) fn start(&mut self, session: Session, shared: &Arc<Shared>) -> io::Result<()> {
        let (device, shared) = (self.device.clone(), shared.clone());
        let (name, log_name, logged) =
            (self.name.clone(), self.log_name.clone(), self.logged.clone());
        let (panic_sink, thread_start) = (self.panic_sink.clone(), self.thread_start.clone());
        let active = Active::new(shared.clone());
        let builder = thread::Builder::new().name(self.name.clone()).stack_size(THREAD_STACK_SIZE);
        let thread = builder.spawn(move || {
            let active = active;
            active.0.pause.enter_thread();
            sys::block_signals();
            if let Some(start) = thread_start {
                start(&name);
            }
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(failure) = run(&mut **device, session) {
                // Before the driver can react to it.
                if let (Failure::Panic(message), Some(sink)) = (&failure, panic_sink) {
                    sink(&name, message);
                }
                shared.fail();
                logged.failure(&log_name, &failure);
            }
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Waits for the thread to end, if there is one; not if it is the calling one, in a device that holds
    /// and drops its own machine.
    pub(super) fn join(&mut self) {
        let thread = self.thread.take();
        if let Some(thread) = thread.filter(|one| one.thread().id() != thread::current().id()) {
            let _ = thread.join(); // A panic has been reported already.
        }
    }

    /// Logs why the device could not go live.
    pub(super) fn log(&self, error: DeviceError) {
        self.logged.failure(&self.log_name, &Failure::Error(error));
    }
}

/// A session is active until this is dropped, be it because no thread could be had.
struct Active(Arc<Shared>);

impl Active {
    fn new(shared: Arc<Shared>) -> Self {
        shared.pause.begin_session();
        Self(shared)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.pause.end_session();
    }
}

enum Failure {
    Error(DeviceError),
    /// What it said.
    Panic(String),
}

/// Runs the device to the end of the session; a panic of its code ends the session only.
fn run(device: &mut dyn VirtioDevice, mut session: Session) -> Result<(), Failure> {
    match panic::catch_unwind(AssertUnwindSafe(|| device.run(&mut session))) {
        Ok(result) => result.map_err(Failure::Error),
        Err(panic) => Err(Failure::Panic(message(&*panic))),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

impl Logged {
    fn failure(&self, name: &str, failure: &Failure) {
        let (seen, level) = match failure {
            Failure::Error(DeviceError::Queue(_) | DeviceError::Driver(_)) => {
                (&self.driver, log::Level::Warn)
            }
            _ => (&self.device, log::Level::Error),
        };
        if seen.swap(true, Ordering::Relaxed) {
            return;
        }
        match failure {
            Failure::Error(error) => {
                let cause = std::error::Error::source(error);
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                log::log!(level, "{name} needs a reset: {error}{cause}");
            }
            Failure::Panic(message) => log::log!(level, "{name} panicked: {message}"),
        }
    }
}
