use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use super::backend::NetBackend;
use super::error::NetError;
use super::mac::MacAddress;
use super::rate_limit::RateLimit;
use super::state::{NetHandle, State};
use super::stream::Stream;
use super::tap;
use super::vhost::Vhost;

/// The most pairs of queues that a network card can have.
pub const MAX_QUEUE_PAIRS: u16 = 16;
/// The least MTU: what every IPv4 host must take (virtio 1.2, 5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// The largest MTU.
pub const MAX_MTU: u16 = 65_535;

/// A network card and what it is plugged into, ready to be given to a machine.
///
/// ```no_run
/// use sparkler_devices::virtio::net::{MacAddress, Net, NetDevice};
///
/// let tap = Net::tap("tap0")?.queues(2)?.mac(MacAddress::for_name("web-1"));
/// let passt = Net::stream("/run/user/1000/passt.socket")?.mtu(65_520)?;
/// let (one_end, other_end) = Net::pair()?;
/// let device = NetDevice::new(tap);
/// # Ok::<(), sparkler_devices::virtio::net::NetError>(())
/// ```
pub struct Net {
    /// One for each pair of queues; at least one.
    pub(super) backends: Vec<Box<dyn NetBackend>>,
    /// A tap that can be opened again, for more queues.
    tap: Option<String>,
    /// All backends are taps.
    taps: bool,
    /// The host's kernel moves the frames.
    pub(super) vhost: Option<Vhost>,
    pub(super) mtu: Option<u16>,
    pub(super) rate_limit: RateLimit,
    pub(super) state: Arc<State>,
}

impl Net {
    /// Plugs the card into a tap, a network interface of the host. If there is none of that name it is
    /// created, set up, and deleted with the card; what addresses and routes it has, or which bridge it
    /// belongs to, is for the host's administrator to say.
    ///
    /// Checksums and segmentation are left to the host's kernel where that can do them.
    ///
    /// # Errors
    /// [`NetError`] says what is missing and how to get it.
    pub fn tap(name: &str) -> Result<Self, NetError> {
        let taps = tap::open(name, 1)?;
        Ok(Self { tap: Some(name.to_owned()), taps: true, ..Self::plain(boxed(taps)) })
    }

    /// Plugs the card into a tap that is open already: a file descriptor of `/dev/net/tun` for each pair
    /// of queues, attached with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` (and `IFF_MULTI_QUEUE` if there are
    /// several). They become non-blocking.
    ///
    /// # Errors
    /// [`NetError::TapFd`] names one that is something else, [`NetError::Queues`] if there are none or
    /// too many.
    pub fn tap_fds(queues: Vec<OwnedFd>) -> Result<Self, NetError> {
        Ok(Self { taps: true, ..Self::backends(boxed(tap::from_fds(queues)?))? })
    }

    /// Plugs the card into the Unix stream socket at `path`, where passt or another monitor listens
    /// (QEMU: `-netdev stream`). Each frame has its length before it, as four bytes, the highest first.
    ///
    /// If the other end goes away, or sends what is no frame, the guest sees its cable unplugged. What
    /// the other end does not read keeps the guest waiting.
    ///
    /// # Errors
    /// [`NetError::Connect`] if nobody listens there.
    pub fn stream(path: impl AsRef<Path>) -> Result<Self, NetError> {
        let path = path.as_ref();
        let socket = UnixStream::connect(path)
            .map_err(|source| NetError::Connect { path: path.to_owned(), source })?;
        Ok(Self::backend(Stream::new(socket)))
    }

    /// The same with a stream socket that is connected already; it need not be a Unix socket.
    #[must_use]
    pub fn stream_fd(socket: impl Into<OwnedFd>) -> Self {
        // Only what it can do as a socket is used, whatever its family.
        Self::backend(Stream::new(UnixStream::from(socket.into())))
    }

    /// Two cards with a cable between them, for two machines of this process.
    ///
    /// # Errors
    /// [`NetError::Socket`] if the process has no file descriptors left.
    pub fn pair() -> Result<(Self, Self), NetError> {
        let (one, other) = UnixStream::pair().map_err(NetError::Socket)?;
        Ok((Self::stream_fd(one), Self::stream_fd(other)))
    }

    /// Plugs the card into a network of your own, see [`NetBackend`].
    #[must_use]
    pub fn backend(backend: impl NetBackend) -> Self {
        Self::plain(vec![Box::new(backend)])
    }

    /// The same with several pairs of queues, each of which has a backend.
    ///
    /// # Errors
    /// [`NetError::Queues`] if they are not 1 to [`MAX_QUEUE_PAIRS`].
    pub fn backends(backends: Vec<Box<dyn NetBackend>>) -> Result<Self, NetError> {
        let (queues, limit) = (backends.len(), MAX_QUEUE_PAIRS.into());
        if !(1..=limit).contains(&queues) {
            return Err(NetError::Queues { queues, limit });
        }
        Ok(Self::plain(backends))
    }

    /// The card's address. By default it has one that is locally administered, and that no other card of
    /// this process has.
    #[must_use]
    pub fn mac(self, mac: MacAddress) -> Self {
        self.state.set_own_mac(mac);
        self
    }

    /// Tells the guest the largest IP packet that the network carries, in bytes: 68 to 65,535.
    ///
    /// Frames for the guest whose packet is longer than that and than 1,500 bytes are dropped and counted
    /// ([`NetStats::received_too_long`](super::NetStats::received_too_long)), unless its driver takes what
    /// is still to be cut up. By default the guest is told nothing and assumes 1,500, and longer frames are
    /// carried as far as the guest's driver has enough buffers for them when they come; otherwise they are
    /// dropped and counted as well.
    ///
    /// # Errors
    /// [`NetError::Mtu`] if it is out of range.
    pub fn mtu(self, mtu: u16) -> Result<Self, NetError> {
        if mtu < MIN_MTU {
            return Err(NetError::Mtu { mtu });
        }
        Ok(Self { mtu: Some(mtu), ..self })
    }

    /// How many pairs of queues the guest can use, one for each of its vCPUs for example. A tap by name
    /// is opened so many times; what else a card is plugged into has a number of its own, which is the
    /// limit.
    ///
    /// # Errors
    /// [`NetError::Queues`], or why the tap cannot be had with so many.
    pub fn queues(mut self, queues: u16) -> Result<Self, NetError> {
        let limit = match &self.tap {
            Some(_) => MAX_QUEUE_PAIRS.into(),
            None => self.backends.len(),
        };
        let count = usize::from(queues);
        if !(1..=limit).contains(&count) {
            return Err(NetError::Queues { queues: count, limit });
        }
        match &self.tap {
            Some(name) if count != self.backends.len() => {
                // It is made for one queue or for several: the first one must go.
                self.backends.clear();
                self.backends = boxed(tap::open(name, queues)?);
            }
            _ => self.backends.truncate(count),
        }
        // Each pair of queues has one of its own.
        if self.vhost.is_some() { self.vhost() } else { Ok(self) }
    }

    /// Has the host's kernel move frames between the tap and the guest's memory, by `/dev/vhost-net`, which
    /// the module `vhost_net` makes and this user must have access to. That takes fewer steps than through
    /// this process, and can be faster for large transfers; measure with `cargo xtask bench net`.
    ///
    /// What this process does not see, it does not count, limit or filter: of [`NetStats`](super::NetStats)
    /// all but [`refused_commands`](super::NetStats::refused_commands) stays 0; there can be no
    /// [`rate_limit`](Self::rate_limit); the guest gets all that comes over the tap, also frames for other
    /// cards, and of any length; headers of its frames are checked by the host's kernel alone. While
    /// [`NetHandle::set_link`] has the cable out, frames wait.
    ///
    /// Of errors, this process knows what the kernel tells. A driver that breaks the rules of a queue is told to
    /// reset the card, as ever, but not for all that is wrong in a frame: with a buffer shorter than the header
    /// of 12 bytes, or a checksum beyond the end of the frame, its queue stands still, and the kernel's thread
    /// tries that frame again and again until the driver resets the card. That the tap was deleted is noticed
    /// when the guest sends what the kernel sends in batches, frames that fit into a page, and whenever the
    /// kernel is to start anew: after a reset, a pause, or with the cable in again.
    ///
    /// The kernel's thread, one for each pair of queues, runs where this card's own thread may, from Linux 6.4
    /// on, and anywhere before. What it takes of the CPU only a cgroup limits.
    ///
    /// # Errors
    /// [`NetError::VhostNoTap`] if the card is not on a tap, [`NetError::VhostMissing`],
    /// [`NetError::VhostPermission`] or [`NetError::VhostOpen`] if there is no vhost-net to be had.
    pub fn vhost(mut self) -> Result<Self, NetError> {
        if !self.taps {
            return Err(NetError::VhostNoTap);
        }
        self.vhost = Some(Vhost::open(self.backends.len())?);
        Ok(self)
    }

    /// How much may be sent, and how much received, in a second. No limit by default. A card with a limit and
    /// [`vhost`](Self::vhost) is refused when it is put on a machine.
    #[must_use]
    pub fn rate_limit(self, rate_limit: RateLimit) -> Self {
        Self { rate_limit, ..self }
    }

    /// What can be done with the card later, while a machine uses it.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle(Arc::clone(&self.state))
    }

    fn plain(backends: Vec<Box<dyn NetBackend>>) -> Self {
        let (rate_limit, state) = (RateLimit::new(), Arc::new(State::new(MacAddress::random())));
        Self { backends, tap: None, taps: false, vhost: None, mtu: None, rate_limit, state }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("tap", &self.tap)
            .field("vhost", &self.vhost.is_some())
            .field("queue_pairs", &self.backends.len())
            .field("mac", &self.state.own_mac())
            .field("mtu", &self.mtu)
            .field("rate_limit", &self.rate_limit)
            .finish_non_exhaustive()
    }
}

fn boxed(backends: Vec<impl NetBackend>) -> Vec<Box<dyn NetBackend>> {
    backends.into_iter().map(|backend| Box::new(backend) as _).collect()
}
