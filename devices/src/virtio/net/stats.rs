use std::sync::atomic::{AtomicU64, Ordering};

use super::state::State;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a network card has done since it was made, for all of its sessions together. "Sent" and
        /// "received" are the guest's.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct NetStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, as counted. Each is a number of its own, so the order of updates does not matter.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            /// Calls `each` with every counter.
            fn each(&self, each: &mut dyn FnMut(&'static str, u64)) {
                $(each(stringify!($name), self.$name.load(Ordering::Relaxed));)*
            }

            pub(super) fn snapshot(&self) -> NetStats {
                NetStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Frames that the guest sent and the backend took. One that is to be cut up counts as one.
    sent_frames,
    /// Bytes of them, from their Ethernet headers on.
    sent_bytes,
    /// Frames that the guest received. One that was not cut up counts as one.
    received_frames,
    /// Bytes of them.
    received_bytes,
    /// Dropped: what the guest sent was no frame, too long, or had a header that broke the rules.
    sent_malformed,
    /// Dropped: the backend refused a frame of the guest.
    sent_refused,
    /// Dropped: the guest sent a frame while the link was down.
    sent_without_link,
    /// Dropped: the backend came with something that is no frame, or too long for any.
    received_malformed,
    /// Dropped: a frame was longer than the guest's buffer and the driver takes no frame in several, or
    /// longer than all buffers that fit into its queue, or than [`Net::mtu`](super::Net::mtu) allows; or
    /// longer than any that the driver must expect, and there were not enough buffers for it.
    received_too_long,
    /// Dropped: a frame for another card, which the driver had asked not to get.
    received_filtered,
    /// Dropped: a frame came while the link was down.
    received_without_link,
    /// Times that frames had to wait because the guest had no buffers for them. None is lost by that.
    receive_paused,
    /// Times that sending had to wait for the backend. None is lost by that.
    send_paused,
    /// Times that the rate limit made frames wait.
    throttled,
    /// Commands of the driver that were answered by an error.
    refused_commands,
}

impl super::super::Counters for State {
    fn read(&self, each: &mut dyn FnMut(&'static str, u64)) {
        self.counters.each(each);
    }
}

/// Adds to a counter; it wraps around, after centuries.
pub(super) fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
