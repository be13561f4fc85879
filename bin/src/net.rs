//! `--net tap=NAME…`, `--net user…`, `--net stream=PATH…`: parsed here, opened when the machine is built.

use std::path::PathBuf;
use std::str::FromStr;

use sparkler::virtio::net::{
    MAX_MTU, MAX_QUEUE_PAIRS, MIN_MTU, MacAddress, Net, NetError, Publish, RateLimit, UserNetError,
};
use thiserror::Error;

use crate::options::{BadValue, at_least_one, bytes, number, ranged, split};

/// An interface as the command line says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetArg {
    network: Network,
    mac: Option<MacAddress>,
    mtu: Option<u16>,
    packets_per_second: u64,
    bytes_per_second: u64,
}

/// What it is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Network {
    Tap { name: String, queues: u16, vhost: bool },
    Stream(PathBuf),
    User { ports: Vec<Publish>, loopback: bool },
}

/// Why an interface has no network.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    User(#[from] UserNetError),
}

impl NetArg {
    pub(crate) fn open(&self) -> Result<Net, OpenError> {
        let mut net = match &self.network {
            Network::Tap { name, queues, vhost } => {
                let tap = Net::tap(name)?.queues(*queues)?;
                if *vhost { tap.vhost()? } else { tap }
            }
            Network::Stream(path) => Net::stream(path)?,
            Network::User { ports, loopback } => {
                let user = Net::user().host_loopback(*loopback);
                ports.iter().fold(user, |net, port| net.publish(*port)).start()?
            }
        };
        if let Some(mac) = self.mac {
            net = net.mac(mac);
        }
        if let Some(mtu) = self.mtu {
            net = net.mtu(mtu)?;
        }
        let limit = RateLimit::new()
            .packets_per_second(self.packets_per_second)
            .bytes_per_second(self.bytes_per_second);
        Ok(net.rate_limit(limit))
    }
}

/// What is wrong with the text after `--net`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum NetArgError {
    #[error("no network {0:?}; write tap=NAME, user, or stream=PATH, and options behind it")]
    Network(String),
    #[error("no option {option:?} of {network}; there are {right}")]
    Option { option: String, network: &'static str, right: &'static str },
    #[error(transparent)]
    Value(#[from] BadValue),
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('=') {
            Some(("tap", name)) if !name.is_empty() => {
                Some(Self::Tap { name: name.to_owned(), queues: 1, vhost: false })
            }
            Some(("stream", path)) if !path.is_empty() => Some(Self::Stream(path.into())),
            None if text == "user" => Some(Self::User { ports: Vec::new(), loopback: true }),
            _ => None,
        }
    }

    /// Its name, and the options that it has.
    fn options(&self) -> (&'static str, &'static str) {
        match self {
            Self::Tap { .. } => ("tap", "mac=ADDRESS, mtu=N, pps=N, bps=SIZE, queues=N, vhost"),
            Self::Stream(_) => ("stream", "mac=ADDRESS, mtu=N, pps=N, bps=SIZE"),
            Self::User { .. } => {
                ("user", "mac=ADDRESS, mtu=N, pps=N, bps=SIZE, publish=HOST:GUEST, no-loopback")
            }
        }
    }
}

impl FromStr for NetArg {
    type Err = NetArgError;

    /// A comma in a path is written twice.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = split(text).into_iter();
        let first = parts.next().unwrap_or_default();
        let network = Network::parse(&first).ok_or(NetArgError::Network(first))?;
        let mut net =
            Self { network, mac: None, mtu: None, packets_per_second: 0, bytes_per_second: 0 };
        for part in parts {
            let (option, value) = part.split_once('=').unwrap_or((&part, ""));
            match (option, &mut net.network) {
                ("mac", _) => net.mac = Some(parse("mac", value)?),
                ("mtu", _) => net.mtu = Some(ranged("mtu", value, MIN_MTU..=MAX_MTU)?),
                ("pps", _) => {
                    net.packets_per_second = at_least_one("pps", number("pps", value)?)?;
                }
                ("bps", _) => net.bytes_per_second = bytes("bps", value)?,
                ("queues", Network::Tap { queues, .. }) => {
                    *queues = ranged("queues", value, 1..=MAX_QUEUE_PAIRS)?
                }
                ("vhost", Network::Tap { vhost, .. }) if option == part => *vhost = true,
                ("publish", Network::User { ports, .. }) => ports.push(parse("publish", value)?),
                ("no-loopback", Network::User { loopback, .. }) if option == part => {
                    *loopback = false;
                }
                (_, network) => {
                    let (network, right) = network.options();
                    return Err(NetArgError::Option { option: part, network, right });
                }
            }
        }
        Ok(net)
    }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(
    option: &'static str,
    value: &str,
) -> Result<T, BadValue> {
    value.parse().map_err(|right| BadValue::new(option, value, right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_their_options() {
        let text = "tap=tap0,queues=2,mtu=9000,mac=02:00:00:00:00:07,bps=10M,pps=500";
        let tap: NetArg = text.parse().unwrap();
        assert_eq!((tap.bytes_per_second, tap.packets_per_second), (10 << 20, 500));
        assert_eq!(tap.network, Network::Tap { name: "tap0".into(), queues: 2, vhost: false });
        let fast: NetArg = "tap=tap0,vhost".parse().unwrap();
        assert_eq!(fast.network, Network::Tap { name: "tap0".into(), queues: 1, vhost: true });
        assert_eq!(tap.mtu, Some(9000));
        assert_eq!(tap.mac, Some("02:00:00:00:00:07".parse().unwrap()));

        let stream: NetArg = "stream=/run/a,,b".parse().unwrap();
        assert_eq!(stream.network, Network::Stream("/run/a,b".into()));
        assert_eq!((stream.mac, stream.mtu), (None, None));

        let user: NetArg = "user,publish=8080:80,publish=127.0.0.1/2222:22".parse().unwrap();
        let ports = ["8080:80", "127.0.0.1/2222:22"].map(|port| port.parse().unwrap());
        assert_eq!(user.network, Network::User { ports: ports.to_vec(), loopback: true });
        let alone: NetArg = "user,no-loopback".parse().unwrap();
        assert_eq!(alone.network, Network::User { ports: Vec::new(), loopback: false });
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<NetArg>().unwrap_err();
        for text in ["", "tap", "tap=", "stream", "user=me", "bridge=br0", "tap0"] {
            assert_eq!(error(text), NetArgError::Network(text.into()));
        }
        for text in [
            "tap=t,publish=1:2",
            "user,queues=2",
            "stream=s,queues=2",
            "user,",
            "user,x",
            "user,no-loopback=1",
            "tap=t,no-loopback",
            "tap=t,vhost=on",
            "user,vhost",
        ] {
            assert!(matches!(error(text), NetArgError::Option { .. }), "{text}");
        }
        for text in [
            "user,publish=80",
            "user,publish=0:80",
            "user,mtu=many",
            "user,mtu=67",
            "user,mtu=70000",
            "tap=t,queues=0",
            "tap=t,mac=1:2",
            "tap=t,mac",
            "user,pps=0",
            "user,bps=x",
        ] {
            assert!(matches!(error(text), NetArgError::Value(_)), "{text}");
        }
    }
}
