//! The Differentiated System Description Table (section 5.2.11.1): devices and sleep states, in
//! AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiConfig, AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Uart, VirtioMmio};

/// With 2 and above, AML integers have 64 bits.
const REVISION: u8 = 2;
const HEADER_LEN: u32 = 36;

/// The names `V000` to `VFFF`.
const VIRTIO_LIMIT: usize = 0x1000;
const HIGHEST_SLEEP_TYPE: u8 = 7;
const POWER_BUTTON: &str = "PWRB";

pub(super) fn build(config: &AcpiConfig<'_>) -> Result<Vec<u8>, AcpiError> {
    check(config)?;
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut aml = Vec::new();
    add_soft_off(&mut aml, config.s5_sleep_type);
    if let Some(uart) = config.uart {
        add_uart(&mut aml, uart);
    }
    if let Some(gsi) = config.power_button {
        add_power_button(&mut aml, gsi);
    }
    for (uid, device) in (0u32..).zip(config.virtio_mmio) {
        add_virtio_mmio(&mut aml, uid, device)?;
    }
    dsdt.append_slice(&aml);
    Ok(dsdt.as_slice().to_vec())
}

fn check(config: &AcpiConfig<'_>) -> Result<(), AcpiError> {
    if config.s5_sleep_type > HIGHEST_SLEEP_TYPE {
        return Err(AcpiError::SleepType { value: config.s5_sleep_type });
    }
    let count = config.virtio_mmio.len();
    if count > VIRTIO_LIMIT {
        return Err(AcpiError::TooManyDevices { count, limit: VIRTIO_LIMIT });
    }
    Ok(())
}

/// `\_S5`: hardware-reduced platforms use the first element only (section 7.4.2).
fn add_soft_off(aml: &mut Vec<u8>, sleep_type: u8) {
    let package = Package::new(vec![&sleep_type, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &package).to_aml_bytes(aml);
}

fn add_uart(aml: &mut Vec<u8>, uart: Uart) {
    let id = EISAName::new("PNP0501");
    let io = IO::new(uart.port, uart.port, 1, 8);
    // A consumer, edge-triggered, active high, not shared.
    let interrupt = Interrupt::new(true, true, false, false, uart.gsi);
    let resources = ResourceTemplate::new(vec![&io, &interrupt]);
    add_device(aml, "COM1", &id, &ZERO, &resources);
}

/// A control method power button (section 4.8.3.1.1.2), and the generic event device (section 5.6.9) that tells of
/// it: its one interrupt is one press.
fn add_power_button(aml: &mut Vec<u8>, gsi: u32) {
    const PRESSED: u8 = 0x80;
    let button = EISAName::new("PNP0C0C");
    let button = Name::new("_HID".into(), &button);
    let uid = Name::new("_UID".into(), &ZERO);
    let button = Device::new(POWER_BUTTON.into(), vec![&button, &uid]);
    Scope::new("_SB_".into(), vec![&button]).to_aml_bytes(aml);

    let hardware_id = Name::new("_HID".into(), &"ACPI0013");
    // A consumer, edge-triggered, active high, not shared.
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let resources = Name::new("_CRS".into(), &resources);
    let button = Path::new(POWER_BUTTON);
    let notify = Notify::new(&button, &PRESSED);
    let event = Method::new("_EVT".into(), 1, true, vec![&notify]);
    let events = Device::new("GED0".into(), vec![&hardware_id, &uid, &resources, &event]);
    Scope::new("_SB_".into(), vec![&events]).to_aml_bytes(aml);
}

/// `LNRO0005` is the id to which Linux's virtio-mmio driver listens.
fn add_virtio_mmio(aml: &mut Vec<u8>, uid: u32, device: &VirtioMmio) -> Result<(), AcpiError> {
    let &VirtioMmio { address, size, gsi } = device;
    let base = u32::try_from(address).ok().filter(|base| base.checked_add(size).is_some());
    let base = base.ok_or(AcpiError::DeviceAddress { address, size })?;
    let registers = Memory32Fixed::new(true, base, size);
    // A consumer, edge-triggered, active high, shared. Edges suit an irqfd; a device that raises its
    // interrupt while another's is being served makes a new edge, so none is lost by sharing.
    let interrupt = Interrupt::new(true, true, false, true, gsi);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    add_device(aml, &format!("V{uid:03X}"), &"LNRO0005", &uid, &resources);
    Ok(())
}

fn add_device(
    aml: &mut Vec<u8>,
    name: &str,
    hardware_id: &dyn Aml,
    uid: &dyn Aml,
    resources: &dyn Aml,
) {
    let hardware_id = Name::new("_HID".into(), hardware_id);
    let uid = Name::new("_UID".into(), uid);
    let resources = Name::new("_CRS".into(), resources);
    let device = Device::new(Path::new(name), vec![&hardware_id, &uid, &resources]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}
