use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a network card cannot be had, or not in this way.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// The name is not one that a network interface can have.
    #[error(
        "a tap cannot be called {name:?}: it takes 1 to 15 bytes without spaces, slashes, colons or \
         percent signs"
    )]
    TapName {
        /// What was given.
        name: String,
    },
    /// There is no `/dev/net/tun`.
    #[error(
        "there is no /dev/net/tun: load the module tun (modprobe tun), and in a container pass the \
         device in"
    )]
    TunMissing,
    /// `/dev/net/tun` is there, but this user may not use it.
    #[error("no permission on /dev/net/tun: it usually is open to everybody (chmod 666)")]
    TunPermission,
    /// `/dev/net/tun` cannot be opened for another reason.
    #[error("cannot open /dev/net/tun")]
    TunOpen(#[source] io::Error),
    /// This user may not create the tap, or not use the one that there is.
    #[error(
        "no permission to use the tap {name}: let root make it for this user (ip tuntap add dev \
         {name} mode tap user USER{multi}), or give the process CAP_NET_ADMIN",
        multi = if *.queues > 1 { " multi_queue" } else { "" }
    )]
    TapPermission {
        /// Its name.
        name: String,
        /// How many queues were asked for.
        queues: u16,
    },
    /// Another machine or process uses the tap.
    #[error("the tap {name} is in use by another machine or process")]
    TapBusy {
        /// Its name.
        name: String,
    },
    /// The interface is no tap, or not one of several queues.
    #[error("{}", tap_kind(name, *queues))]
    TapKind {
        /// Its name.
        name: String,
        /// How many queues were asked for.
        queues: u16,
    },
    /// The kernel refuses to set up the tap.
    #[error("cannot set up the tap {name}: {step} failed")]
    Tap {
        /// Its name, or the number of its file descriptor.
        name: String,
        /// The call that failed.
        step: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// A file descriptor is not that of a tap with a header before each frame.
    #[error(
        "file descriptor {fd} is not attached to a tap whose frames have a header: open /dev/net/tun \
         and call TUNSETIFF with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"
    )]
    TapFd {
        /// Its number.
        fd: i32,
    },
    /// There is no `/dev/vhost-net`.
    #[error(
        "there is no /dev/vhost-net: load the module vhost_net (modprobe vhost_net), and in a container \
         pass the device in"
    )]
    VhostMissing,
    /// `/dev/vhost-net` is there, but this user may not use it.
    #[error(
        "no permission on /dev/vhost-net: give this user, or its group, the right to read and write it"
    )]
    VhostPermission,
    /// `/dev/vhost-net` cannot be opened or used for another reason.
    #[error("cannot use /dev/vhost-net")]
    VhostOpen(#[source] io::Error),
    /// vhost-net serves cards on taps only.
    #[error("vhost-net can serve a card on a tap, not one on another network")]
    VhostNoTap,
    /// Frames that the host's kernel moves cannot be counted here, so not be limited.
    #[error("a card that vhost-net serves can have no rate limit: set one of the two")]
    VhostRateLimit,
    /// Nobody listens at a socket.
    #[error("cannot connect to the socket {}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A socket cannot be made or used.
    #[error("cannot use a socket as a network")]
    Socket(#[source] io::Error),
    /// Too few or too many queues.
    #[error("this network card has 1 to {limit} pairs of queues, not {queues}")]
    Queues {
        /// What was asked for.
        queues: usize,
        /// The most there can be: of any card, or with what this one is plugged into.
        limit: usize,
    },
    /// The MTU is not one that a network can have.
    #[error("an MTU of {mtu} is not possible: ask for {min} to {max}", min = super::MIN_MTU, max = super::MAX_MTU)]
    Mtu {
        /// What was asked for.
        mtu: u16,
    },
}

fn tap_kind(name: &str, queues: u16) -> String {
    if queues == 1 {
        return format!("{name} is no tap (ip tuntap add dev NAME mode tap makes one)");
    }
    format!(
        "{name} cannot be used with {queues} queues: it is no tap, or was not made for several \
         queues (ip tuntap add dev {name} mode tap multi_queue)"
    )
}
