//! Which frames the driver wants (virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2).

use super::mac::MacAddress;

/// The most addresses of each kind that are kept. With more, all of the kind are let through.
pub(super) const MOST_ADDRESSES: usize = 64;

/// An address of a card or a group.
pub(super) type Address = [u8; 6];

/// What the driver has said.
#[derive(Debug)]
pub(super) struct Filter {
    mac: Address,
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
    pub(super) unicast: Table,
    pub(super) multicast: Table,
}

/// Addresses that are let through.
#[derive(Debug, Default)]
pub(super) enum Table {
    #[default]
    Empty,
    These(Vec<Address>),
    /// They were too many.
    All,
}

impl Table {
    fn has(&self, address: Address) -> bool {
        match self {
            Self::Empty => false,
            Self::These(addresses) => addresses.contains(&address),
            Self::All => true,
        }
    }
}

impl Filter {
    /// One that lets everything through, until the driver says something else.
    pub(super) fn new(mac: MacAddress) -> Self {
        Self {
            mac: mac.bytes(),
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::Empty,
            multicast: Table::Empty,
        }
    }

    pub(super) fn set_mac(&mut self, mac: MacAddress) {
        self.mac = mac.bytes();
    }

    /// Whether a frame for `destination` is let through.
    pub(super) fn accepts(&self, destination: Address) -> bool {
        const BROADCAST: Address = [0xff; 6];
        let [first, ..] = destination;
        if self.promiscuous {
            true
        } else if destination == BROADCAST {
            !self.no_broadcast
        } else if first & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.has(destination))
        } else {
            let known = destination == self.mac || self.unicast.has(destination);
            !self.no_unicast && (self.all_unicast || known)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Address = [2, 0, 0, 0, 0, 1];
    const OTHER: Address = [2, 0, 0, 0, 0, 2];
    const GROUP: Address = [1, 0, 0x5e, 0, 0, 1];
    const BROADCAST: Address = [0xff; 6];

    fn accepted(change: impl FnOnce(&mut Filter)) -> [bool; 4] {
        let mut filter = Filter::new(MacAddress::new(OWN).unwrap());
        filter.promiscuous = false;
        change(&mut filter);
        [OWN, OTHER, GROUP, BROADCAST].map(|address| filter.accepts(address))
    }

    #[test]
    fn each_mode_and_table_lets_through_what_it_says() {
        let (y, n) = (true, false);
        assert_eq!(accepted(|_| {}), [y, n, n, y]);
        assert_eq!(accepted(|f| f.promiscuous = true), [y, y, y, y]);
        assert_eq!(accepted(|f| f.all_multicast = true), [y, n, y, y]);
        assert_eq!(accepted(|f| f.all_unicast = true), [y, y, n, y]);
        assert_eq!(accepted(|f| f.no_broadcast = true), [y, n, n, n]);
        assert_eq!(accepted(|f| f.no_unicast = true), [n, n, n, y]);
        assert_eq!(accepted(|f| f.unicast = Table::These(vec![OTHER])), [y, y, n, y]);
        assert_eq!(accepted(|f| f.multicast = Table::These(vec![GROUP])), [y, n, y, y]);
        assert_eq!(accepted(|f| f.multicast = Table::All), [y, n, y, y]);
        let both = |f: &mut Filter| (f.all_multicast, f.no_multicast) = (true, true);
        assert_eq!(accepted(both), [y, n, n, y]);
        assert_eq!(accepted(|f| f.set_mac(MacAddress::new(OTHER).unwrap())), [n, y, n, y]);
        let all = |f: &mut Filter| (f.promiscuous, f.no_unicast) = (true, true);
        assert_eq!(accepted(all), [y, y, y, y]);
    }
}
