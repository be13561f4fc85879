//! A network that needs no rights: `passt` carries the guest's connections over sockets of this user.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::str::FromStr;

use thiserror::Error;

use super::Net;
use crate::sys;

/// What `passt` says if nobody listens to the system's log.
const NO_SYSLOG: &str = "to syslog";

/// A network by [`passt`](https://passt.top): made by [`Net::user`], started by [`start`](Self::start).
///
/// The guest sees a network of its own with this host's address in it: `passt` answers DHCP, DHCPv6, NDP
/// and DNS as this host's own set-up says, and makes each connection of the guest one of this user's. The
/// host itself, with its loopback address, is where the guest's default gateway is, unless
/// [`host_loopback`](Self::host_loopback) says otherwise. Nobody reaches the guest but by ports that were
/// [published](Self::publish). The host needs a default route.
#[derive(Debug, Clone)]
#[must_use = "nothing begins before start()"]
pub struct UserNet {
    published: Vec<Publish>,
    host_loopback: bool,
}

impl Default for UserNet {
    fn default() -> Self {
        Self { published: Vec::new(), host_loopback: true }
    }
}

impl Net {
    /// A card on a network that needs no rights: see [`UserNet`].
    ///
    /// ```no_run
    /// use sparkler_devices::virtio::net::Net;
    ///
    /// let net = Net::user().publish((8080, 80)).start()?;
    /// # Ok::<(), sparkler_devices::virtio::net::UserNetError>(())
    /// ```
    pub fn user() -> UserNet {
        UserNet::default()
    }
}

impl UserNet {
    /// Hands on what comes to a port of this host. May be called again, for further ports.
    pub fn publish(mut self, port: impl Into<Publish>) -> Self {
        self.published.push(port.into());
        self
    }

    /// Whether the guest reaches what listens on this host's loopback address, at the address of its
    /// default gateway. By default it does. Without, a guest that is not trusted finds no services there
    /// that were meant for this host alone; nor a name server, if this host's own listens there only.
    /// Other addresses of this host it reaches as any machine of the network does.
    pub fn host_loopback(mut self, reachable: bool) -> Self {
        self.host_loopback = reachable;
        self
    }

    /// Starts `passt`, which is looked for as `PATH` says.
    ///
    /// This starts a process. It goes into the background, is no child of this one any more when this
    /// returns, and ends by itself as soon as the `Net`, or the machine that has it, is dropped, or this
    /// process ends in whatever way: then its connection is closed. If this process is root's, `passt`
    /// runs as the user `nobody`.
    ///
    /// # Errors
    /// [`UserNetError`]: `passt` is not installed, refuses to start, or a published port is not free.
    pub fn start(&self) -> Result<Net, UserNetError> {
        self.start_program("passt".as_ref())
    }

    fn start_program(&self, program: &OsStr) -> Result<Net, UserNetError> {
        // passt itself does not complain as long as one of the address families is left.
        for port in &self.published {
            if port.host == 0 || port.guest == 0 {
                return Err(UserNetError::NoPort { publish: *port });
            }
            let address = port.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            TcpListener::bind((address, port.host))
                .map_err(|source| UserNetError::Port { port: port.host, source })?;
        }
        let (ours, theirs) = UnixStream::pair().map_err(UserNetError::Socket)?;
        let theirs = OwnedFd::from(theirs);
        let mut passt = Command::new(program);
        // It quits when its socket is closed; and it goes into the background once it is ready.
        passt.args(["--quiet", "--fd", &theirs.as_raw_fd().to_string()]);
        if !self.host_loopback {
            passt.arg("--no-map-gw");
        }
        for port in &self.published {
            passt.arg("--tcp-ports").arg(port.to_string());
        }
        sys::hand_on(&mut passt, theirs);
        let output = passt.stdin(Stdio::null()).output().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => UserNetError::NotInstalled,
            _ => UserNetError::Start(source),
        })?;
        if !output.status.success() {
            return Err(UserNetError::Refused(reason(&output.stderr)));
        }
        Ok(Net::stream_fd(ours))
    }
}

/// A port of this host whose TCP connections go to a port of the guest.
///
/// As text it is `HOST:GUEST`, or `ADDRESS/HOST:GUEST`. Ports go from 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Publish {
    address: Option<IpAddr>,
    host: u16,
    guest: u16,
}

impl Publish {
    /// Port `host` of all addresses of this host becomes port `guest` of the guest.
    #[must_use]
    pub fn new(host: u16, guest: u16) -> Self {
        Self { address: None, host, guest }
    }

    /// On this address only.
    #[must_use]
    pub fn on(self, address: IpAddr) -> Self {
        Self { address: Some(address), ..self }
    }
}

impl From<(u16, u16)> for Publish {
    /// The port of the host, and then that of the guest.
    fn from((host, guest): (u16, u16)) -> Self {
        Self::new(host, guest)
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}/")?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// The text is no [`Publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("write HOST:GUEST or ADDRESS/HOST:GUEST, with ports from 1 to 65535")]
pub struct ParsePublishError;

impl FromStr for Publish {
    type Err = ParsePublishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, ports) = match text.split_once('/') {
            Some((address, ports)) => {
                (Some(address.parse().map_err(|_| ParsePublishError)?), ports)
            }
            None => (None, text),
        };
        let (host, guest) = ports.split_once(':').ok_or(ParsePublishError)?;
        let port = |text: &str| match text.parse() {
            Ok(port @ 1u16..) => Ok(port),
            _ => Err(ParsePublishError),
        };
        Ok(Self { address, host: port(host)?, guest: port(guest)? })
    }
}

/// Why there is no network by `passt`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UserNetError {
    /// It is not on the `PATH`.
    #[error("passt is not installed; it is in the package passt of Debian, Fedora and others")]
    NotInstalled,
    /// What is to be published has port 0, which is none.
    #[error("{publish} cannot be published: ports go from 1 to 65535")]
    NoPort {
        /// What was to be published.
        publish: Publish,
    },
    /// A published port is not free, or not for this user.
    #[error("port {port} of this host cannot be published")]
    Port {
        /// The port.
        port: u16,
        /// The reason.
        source: io::Error,
    },
    /// It cannot be run.
    #[error("cannot run passt")]
    Start(#[source] io::Error),
    /// It ended at once; the text is what it said.
    #[error("passt refuses to start: {0}")]
    Refused(String),
    /// There is no socket to speak to it.
    #[error("cannot make a socket for passt")]
    Socket(#[source] io::Error),
}

/// What it said, on one line.
fn reason(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = text.lines().map(str::trim).filter(|it| !it.is_empty() && !it.ends_with(NO_SYSLOG));
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() { "it does not say why".to_owned() } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn ports_are_written_as_they_are_read() {
        for text in ["8080:80", "127.0.0.1/8080:80", "::1/1:65535"] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        for text in ["", "80", "80:", ":80", "0:80", "80:0", "65536:80", "localhost/80:80", "1:2:3"]
        {
            assert_eq!(text.parse::<Publish>(), Err(ParsePublishError), "{text}");
        }
        let port = Publish::new(8080, 80).on(Ipv4Addr::LOCALHOST.into());
        assert_eq!(port, "127.0.0.1/8080:80".parse().unwrap());
    }

    #[test]
    fn a_program_that_is_not_there_or_fails_is_told_apart() {
        let start = |program: &str| UserNet::default().start_program(program.as_ref()).unwrap_err();
        assert!(matches!(start("/nonexistent/passt"), UserNetError::NotInstalled));
        let refused = start("false");
        assert!(matches!(&refused, UserNetError::Refused(why) if why == "it does not say why"));
        assert_eq!(reason(b"Failed to send 31 bytes to syslog\nno\n way \n"), "no; way");
    }

    #[test]
    fn passt_is_told_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("passt");
        std::fs::write(&program, "#!/bin/sh\necho \"$*\" >&2; exit 1\n").unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        // Another test's child may have it open for writing yet.
        let told = |net: UserNet| loop {
            match net.start_program(program.as_os_str()).unwrap_err() {
                UserNetError::Start(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                }
                UserNetError::Refused(words) => return words,
                error => panic!("{error:?}"),
            }
        };
        assert!(!told(Net::user()).contains("--no-map-gw"));
        assert!(told(Net::user().host_loopback(false)).contains(" --no-map-gw"));
    }

    #[test]
    fn port_zero_is_refused() {
        for ports in [(0, 80), (8080, 0)] {
            let error = Net::user().publish(ports).start_program("true".as_ref()).unwrap_err();
            let UserNetError::NoPort { publish } = error else { panic!("{error}") };
            assert_eq!(publish, ports.into());
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let net = UserNet::default().publish(Publish::new(port, 80).on(Ipv4Addr::LOCALHOST.into()));
        let error = net.start_program("true".as_ref()).unwrap_err();
        assert!(matches!(error, UserNetError::Port { port: named, .. } if named == port));
    }
}
