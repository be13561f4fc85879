//! The device status field (virtio 1.2, 2.1 and 3.1.1).

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// The guest has noticed the device.
pub const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
/// The guest knows how to drive it.
pub const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
/// Driver and device agree on the features.
pub const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
/// The device is live.
pub const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
/// The device met an error that only a reset ends. The device sets it, never the driver.
pub const DEVICE_NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
/// The driver has given up on the device.
pub const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

const KNOWN: u32 = ACKNOWLEDGE | DRIVER;
const AGREED: u32 = KNOWN | FEATURES_OK;
const LIVE: u32 = AGREED | DRIVER_OK;

/// The steps of a driver's initialization (3.1.1), in order. Both of the first at once is what some
/// firmware does.
const STEPS: [(u32, u32, Step); 5] = [
    (0, ACKNOWLEDGE, Step::Accept),
    (0, KNOWN, Step::Accept),
    (ACKNOWLEDGE, KNOWN, Step::Accept),
    (KNOWN, AGREED, Step::AgreeOnFeatures),
    (AGREED, LIVE, Step::Start),
];

/// What a write to the status register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Take the value over.
    Accept,
    /// Take it over if the driver's features are acceptable; else `FEATURES_OK` stays clear.
    AgreeOnFeatures,
    /// Take it over, and go live.
    Start,
    /// Take it over; the device is of no more use until reset.
    Fail,
    /// Back to the beginning.
    Reset,
    /// Nothing: a step left out or out of order, a bit cleared that only a reset may clear (2.1.1), an
    /// unknown bit, or what is so already.
    Ignore,
}

/// What to do when the driver writes `new` where the status is `old`. `DEVICE_NEEDS_RESET` is not the
/// driver's to write, so it does not count in either.
pub(super) fn step(old: u32, new: u32) -> Step {
    if new == 0 {
        return Step::Reset;
    }
    let (old, new) = (old & !DEVICE_NEEDS_RESET, new & !DEVICE_NEEDS_RESET);
    if new == old | FAILED && new != old {
        return Step::Fail;
    }
    STEPS.iter().find(|(from, to, _)| (*from, *to) == (old, new)).map_or(Step::Ignore, |row| row.2)
}

/// Whether the driver may write its features now: after it made itself known, before it fixed them.
pub(super) fn features_open(status: u32) -> bool {
    status == KNOWN
}

/// Whether the driver may set up queues now: after the features are fixed, before the device is live
/// (3.1.1, step 7).
pub(super) fn queues_open(status: u32) -> bool {
    status == AGREED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_a_live_device_has_four_steps_in_one_order() {
        let way = [0, ACKNOWLEDGE, KNOWN, AGREED, LIVE];
        let steps: Vec<_> = way.windows(2).map(|pair| step(pair[0], pair[1])).collect();
        assert_eq!(steps, [Step::Accept, Step::Accept, Step::AgreeOnFeatures, Step::Start]);
    }

    #[test]
    fn of_all_other_values_only_failed_and_zero_do_anything() {
        let mut accepted = 0;
        for old in (0..=0xff).filter(|old| old & DEVICE_NEEDS_RESET == 0) {
            for new in 0..=0x1ff {
                match step(old, new) {
                    Step::Ignore => {}
                    Step::Reset => assert_eq!(new, 0),
                    Step::Fail => assert_eq!(new & !DEVICE_NEEDS_RESET, old | FAILED),
                    _ => accepted += 1,
                }
            }
        }
        assert_eq!(accepted, 2 * STEPS.len()); // With and without the bit that does not count.
    }
}
